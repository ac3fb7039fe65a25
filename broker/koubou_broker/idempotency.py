"""What makes a repeated submission the same one: the hash of its key, the digest of what it asks for. Pure."""

import hashlib
from collections.abc import Iterable

from koubou_common.messages.values import TaskSpec
from koubou_common.models import full_model


def submission_hash(principal: str, key: str) -> int:
    """64 bits that tell most new idempotency keys from known ones without a look-up."""
    digest = hashlib.blake2b(f"{principal}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def submission_digest(specs: Iterable[TaskSpec], *, as_batch: bool) -> bytes:
    """What the tasks ask for; not how urgent it is, what they are called or what the old file was."""
    digest = hashlib.sha256(b"batch" if as_batch else b"tasks")
    for spec in specs:
        digest.update(_canonical(spec))
    return digest.digest()


def _canonical(spec: TaskSpec) -> bytes:
    # repr of a tuple of plain values says where each ends, so that no two specs run into each other.
    wanted: tuple[object, ...] = (
        spec.prompt.sha256,
        tuple((file.name, file.body.sha256) for file in spec.files),
        spec.target,
        spec.repo,
        # Its case counts, as in 0.1.0: a submission repeated after an upgrade must still be the same one.
        full_model(spec.model) if spec.model else "",
        spec.task_type,
        tuple(sorted((option.name, repr(option.value)) for option in spec.options)),
        spec.worker,
        tuple(sorted((label.key, label.value) for label in spec.labels)),
        spec.min_context,
        spec.timeout_s,
        spec.max_attempts,
        spec.strict_output,
        spec.out_path,
    )
    wishes = (tuple(sorted(set(spec.capabilities))), spec.same_digest)
    if any(wishes):
        # Only where there are some, for the same reason.
        wanted = (*wanted, wishes)
    return repr(wanted).encode("utf-8", "surrogatepass")
