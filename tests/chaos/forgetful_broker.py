"""The real broker with short days: retention counts `KOUBOU_SOAK_DAY_S` seconds as one day, and walks more often.

The settings know whole days only; a soak of an hour is to see the database stop growing.
"""

import os

from koubou_broker import retention
from koubou_broker.__main__ import main

DAY_VARIABLE = "KOUBOU_SOAK_DAY_S"
_WALKS_A_DAY = 3

if __name__ == "__main__":
    day_s = float(os.environ[DAY_VARIABLE])
    retention.DAY_MS = round(day_s * 1_000)
    retention.UNREFERENCED_MS = retention.DAY_MS
    retention.WALK_PAUSE_S = day_s / _WALKS_A_DAY
    main()
