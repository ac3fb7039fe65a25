"""Child processes kept running: restarted with growing pauses when they die, stopped in order within a bound."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FIRST_PAUSE_S = 1.0  # a port or a lock is free again after this
LONGEST_PAUSE_S = 30.0  # somebody who has mended the cause should not wait long
STEADY_S = 60.0  # who ran so long died of something new: its pauses begin anew
KILL_AFTER_S = 10.0  # past the end that a child was given; it takes down its own children meanwhile

_LOG_MODE = 0o600
_TAIL_BYTES = 4_096
_POLL_S = 0.05


@dataclass(slots=True)
class Child:
    """A program that is to run; one log file, appended to over all its starts."""

    name: str
    arguments: Sequence[str]
    log_file: Path
    stop_s: float  # what it needs at most to end by itself
    final_codes: Collection[int] = ()  # exits that another start would not mend
    process: "subprocess.Popen[bytes] | None" = None
    starts: int = 0
    failures: int = 0  # deaths in a row
    started_s: float = 0.0
    restart_at_s: float | None = None  # None: it runs, or is to stay down
    log_start: int = field(default=0)  # where the log of this start begins

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """Of its process; 0 where there is none."""
        return self.process.pid if self.process is not None else 0

    def start(self) -> None:
        """Start it; it does not hear the terminal's Ctrl-C, so that children end in order."""
        self.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, _LOG_MODE)
        try:
            self.log_start = os.fstat(handle).st_size
            self.process = subprocess.Popen(
                self.arguments,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        finally:
            os.close(handle)
        self.starts += 1
        self.started_s = time.monotonic()
        self.restart_at_s = None

    def ask_to_stop(self) -> None:
        """Let it end by itself."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def last_words(self, lines: int = 8) -> str:
        """The end of what it said since its last start."""
        try:
            with self.log_file.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self.log_start, size - _TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


class Supervisor:
    """Tends children from one thread; `say` is told what happens to them."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.children: list[Child] = []

    def start(self, child: Child) -> None:
        """Start a child and look after it from now on."""
        self.children.append(child)
        child.start()

    def tend(self) -> None:
        """Notice who died and start who is due; call it several times a second."""
        now_s = time.monotonic()
        for child in self.children:
            if child.restart_at_s is not None:
                if now_s >= child.restart_at_s:
                    child.start()
            elif child.process is not None and (code := child.process.poll()) is not None:
                self._died(child, code, now_s)

    def stop(self, groups: Sequence[Sequence[Child]], is_urgent: Callable[[], bool]) -> None:
        """End the groups one after another; who overstays is killed, at once when it `is_urgent`."""
        for group in groups:
            for child in group:
                child.ask_to_stop()
            deadline_s = time.monotonic() + max((child.stop_s for child in group), default=0.0) + KILL_AFTER_S
            hurried = False
            while any(child.is_running for child in group) and time.monotonic() < deadline_s:
                if is_urgent() and not hurried:
                    hurried = True
                    deadline_s = min(deadline_s, time.monotonic() + KILL_AFTER_S)
                    for child in group:  # a second signal means: at once
                        child.ask_to_stop()
                time.sleep(_POLL_S)
            for child in group:
                self._reap(child)

    def _reap(self, child: Child) -> None:
        if child.process is None:
            return
        if child.process.poll() is None:
            child.process.kill()
            self._say(f"{child.name} did not end by itself and was killed; its log: {child.log_file}")
        child.process.wait()
        child.process = None

    def _died(self, child: Child, code: int, now_s: float) -> None:
        child.process = None
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        if code in child.final_codes:
            said = child.last_words()
            self._say(f"{child.name} ended ({how}) and stays down:\n{said}" if said else f"{child.name} ended ({how})")
            return
        child.failures = 1 if now_s - child.started_s >= STEADY_S else child.failures + 1
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (child.failures - 1))
        child.restart_at_s = now_s + pause_s
        self._say(f"{child.name} died ({how}); again in {pause_s:.0f} s. Its log: {child.log_file}")
