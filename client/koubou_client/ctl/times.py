"""Times as people and scripts read them."""

from datetime import UTC, datetime

_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def rfc3339(at_ms: int) -> str | None:
    """A wall-clock time for scripts, in UTC; None for "not yet"."""
    if not at_ms:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def duration(ms: int) -> str:
    """A duration in its two largest units: `2 m 11 s`, `450 ms`."""
    if ms < 1_000:
        return f"{max(0, ms)} ms"
    left = ms // 1_000
    parts = []
    for unit, seconds in _UNITS:
        if left >= seconds:
            parts.append(f"{left // seconds} {unit}")
            left %= seconds
        if len(parts) == 2:
            break
    return " ".join(parts)


def about(seconds: float) -> str:
    """A duration that nobody knows exactly, in one unit: `40 s`, `12 m`, `3 h`."""
    if seconds < 10:
        return f"{max(1, round(seconds))} s"
    if seconds < 120:
        return f"{round(seconds / 5) * 5} s"
    unit, length_s = next((unit, length_s) for unit, length_s in _UNITS if seconds >= 2 * length_s)
    return f"{seconds / length_s:.0f} {unit}"


def age(at_ms: int, now_ms: int) -> str:
    """How long ago, or `-` for "not yet"."""
    return duration(now_ms - at_ms) if at_ms else "-"


def local_time(at_ms: int) -> str:
    """A wall-clock time in the reader's own zone, to the second."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
