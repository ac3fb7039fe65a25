"""Messages that go both ways: pieces of blobs."""

from dataclasses import dataclass

from koubou_common.messages.limits import Counter, Sha256
from koubou_common.messages.values import Chunk


@dataclass(frozen=True, slots=True)
class BlobGet:
    """Ask for one piece of a blob; at most CHUNKS_OUTSTANDING at a time."""

    sha256: Sha256
    index: Counter


@dataclass(frozen=True, slots=True)
class BlobChunk:
    """Piece `index` of a blob; every piece but the last has CHUNK_BYTES."""

    sha256: Sha256
    index: Counter
    data: Chunk


@dataclass(frozen=True, slots=True)
class BlobMissing:
    """The answer to a BlobGet for what the asked side has not, or must not give."""

    sha256: Sha256
