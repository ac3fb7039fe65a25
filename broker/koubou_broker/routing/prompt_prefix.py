"""What tasks of a batch share: the beginning of their prompts, by which a box that read it once knows it. Pure."""

import hashlib

from koubou_broker.records import NewTask

_DIGEST_BYTES = 8  # a collision costs a wrong guess, nothing else


def prefix_of(spec: NewTask) -> tuple[str, int]:
    """The part that other tasks share, by its key and its size in bytes; an empty key: nothing is known to be shared.

    It is the prompt, which comes first whatever is asked, and the first `prefix_files` files.
    """
    # Only where the client says so: a bucket for every prompt that is like no other would help nobody.
    if not spec.prefix_files:
        return "", 0
    digest = hashlib.blake2b(spec.model.encode(), digest_size=_DIGEST_BYTES)
    digest.update(spec.prompt.sha256)
    shared = spec.files[: spec.prefix_files]
    for file in shared:
        digest.update(file.body.sha256 + file.name.encode() + b"\0")
    return digest.hexdigest(), spec.prompt.size_bytes + sum(file.body.size_bytes for file in shared)
