"""`koubou-ctl` and `python -m koubou_client.ctl`."""

from koubou_client.ctl.root import run

main = run

if __name__ == "__main__":
    main()
