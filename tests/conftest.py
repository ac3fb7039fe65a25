"""What every test can rely on."""

import signal


def pytest_configure() -> None:
    """Ctrl-C works in the programs that tests start, also where the tests themselves run in the background.

    A shell starts background jobs with SIGINT ignored, and children inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
