"""What a principal, and all together, may have in the queue; a refusal names the limit and when to ask again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from koubou_broker.core.state import Account, Refusal, State
from koubou_broker.records import NewTask
from koubou_common.errors import Code
from koubou_common.messages.values import TaskSpec

RETRY_S = 30.0  # a full queue empties by tasks, not by milliseconds
HELD_BACK_S = 60.0  # the alert lasts so long after the last refusal: who obeys asks twice within


@dataclass(frozen=True, slots=True)
class _Quota:
    """One limit of one principal."""

    limit: str
    what: str
    have: int
    more: int
    most: int


def check_quota(state: State, principal: str, specs: Sequence[TaskSpec | NewTask]) -> None:
    """Raise a Refusal where a principal, or everybody together, would have too much that has not ended."""
    for quota in _quotas(state, principal, specs):
        if quota.more and quota.have + quota.more > quota.most:
            raise _refusal(state, principal, quota)
    have, most = len(state.tasks), state.settings.limits.queue_tasks
    if have + len(specs) > most:
        text = f"{have:,} tasks of all clients have not ended; the limit queue_tasks is {most:,}"
        state.alert("queue_full", f"{text}: no more are taken", lasts_s=HELD_BACK_S)
        hint = "nothing was accepted; it will be when some have ended"
        raise Refusal(Code.BUSY, f"{text}, and {len(specs):,} would come", hint, RETRY_S)


def _quotas(state: State, principal: str, specs: Sequence[TaskSpec | NewTask]) -> Iterator[_Quota]:
    limits = state.settings.limits
    account = state.accounts.get(principal) or Account()
    yield _Quota("queue_per_client", "tasks", len(account.tasks), len(specs), limits.queue_per_client)
    files = sum(len(spec.files) for spec in specs)
    yield _Quota("files_per_client", "context files", account.files, files, limits.files_per_client)
    bodies: dict[bytes, int] = {}
    for spec in specs:
        bodies[spec.prompt.sha256] = spec.prompt.size_bytes
        for file in spec.files:
            bodies[file.body.sha256] = file.body.size_bytes
    new_bytes = sum(size for sha256, size in bodies.items() if sha256 not in account.bodies)
    what = "bytes of prompts and files in tasks"
    yield _Quota("bytes_per_client", what, account.size_bytes, new_bytes, limits.bytes_per_client)


def _refusal(state: State, principal: str, quota: _Quota) -> Refusal:
    if quota.more > quota.most:
        text = f"{quota.more:,} {quota.what} at once; the limit {quota.limit} is {quota.most:,}"
        return Refusal(Code.TOO_LARGE, text, "submit less at a time")
    limit = f"the limit {quota.limit} is {quota.most:,}"
    state.alert(
        f"held_back:{principal}",
        f"{principal} has {quota.have:,} {quota.what} that have not ended; {limit}: more is refused",
        lasts_s=HELD_BACK_S,
    )
    text = f"{quota.have:,} {quota.what} of yours have not ended and {quota.more:,} would come; {limit}"
    return Refusal(Code.BUSY, text, "nothing was accepted; wait for some to end, or cancel some", RETRY_S)
