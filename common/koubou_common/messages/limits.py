"""How large anything on the wire may be, and why; the codec enforces these on both sides."""

from dataclasses import dataclass
from typing import Annotated

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

MESSAGE_BYTES = 1_000_000  # one frame; libzmq's MAXMSGSIZE: a stranger can make us buffer no more than this
INLINE_BYTES = 256 * KIB  # bodies travel inside a message while it stays below: one round trip
KEPT_BYTES_LEAST = 4 * KIB  # inline bodies of this size stay with the agent; smaller ones are cheaper sent anew
CHUNK_BYTES = 512 * KIB  # a blob's piece: two fit no message, so a piece never starves heartbeats for long
CHUNKS_OUTSTANDING = 4  # pieces asked for ahead: fills a LAN, holds 2 MiB a transfer
HWM_MESSAGES = 64  # high-water mark both ways: 1,000 was measured to hold 1 GiB
QUEUE_BYTES = 8 * MIB  # what the broker keeps for a slow peer before it gives the session up

PROMPT_BYTES = 1 * MIB
FILE_BYTES = 4 * MIB
TASK_BYTES = 16 * MIB
TASK_FILES = 200
RESULT_BYTES = 4 * MIB
LOG_BYTES = 16 * KIB  # the end of gemini-repo-cli's log, without prompts
BATCH_TASKS = 10_000  # one submission; more is several batches
PART_TASKS = 500  # tasks in one message of a submission
PAGE_TASKS = 200  # tasks in one page of a listing
PAGE_PARKED = 100  # parked outcomes in one page: their details are long

PRIORITY_LOWEST, PRIORITY_HIGHEST, PRIORITY_DEFAULT = 1, 10, 5
MIN_NUM_CTX = 256  # below, Ollama answers 200 with a window of a few tokens (facts: recorded)


@dataclass(frozen=True, slots=True)
class Chars:
    """Bounds of a text, in characters."""

    most: int
    least: int = 0


@dataclass(frozen=True, slots=True)
class Size:
    """Bounds of a byte string, in bytes."""

    most: int
    least: int = 0


@dataclass(frozen=True, slots=True)
class Count:
    """Bounds of a list, in items."""

    most: int


@dataclass(frozen=True, slots=True)
class Between:
    """Bounds of a number, both included."""

    least: float
    most: float


Id = Annotated[int, Between(1, 2**53)]
Counter = Annotated[int, Between(0, 2**53)]
Millis = Annotated[int, Between(0, 2**53)]  # wall clock, ms since 1970, or a duration in ms
Seconds = Annotated[float, Between(0, 10 * 365 * 86_400)]
Uid = Annotated[str, Chars(32, 32)]  # 128 random bits, hex
RequestId = Annotated[str, Chars(64, 1)]
Key = Annotated[str, Chars(40, 40)]  # a CURVE key, z85
Sha256 = Annotated[bytes, Size(32, 32)]
Word = Annotated[str, Chars(64)]
Name = Annotated[str, Chars(255)]
Sentence = Annotated[str, Chars(2_000)]
Log = Annotated[str, Chars(LOG_BYTES)]
Priority = Annotated[int, Between(PRIORITY_LOWEST, PRIORITY_HIGHEST)]
