"""What keeps a workshop in order: backups, the removal of texts for good, a look at outcomes that were parked."""

from dataclasses import dataclass

from koubou_broker.core.requests import resolve
from koubou_broker.core.state import Refusal, Session, State
from koubou_broker.effects import AskBackup, Erase, Erased, FindParked, Found
from koubou_broker.task import Task
from koubou_common.errors import Code
from koubou_common.messages import (
    BackupMade,
    EndBackup,
    GetBackupPart,
    GetParked,
    MakeBackup,
    ParkedWork,
    Purge,
    Purged,
)
from koubou_common.messages.values import Body, Change, ParkedView

_RETRY_S = 5.0  # what a client waits whose purge the disk did not take


@dataclass(slots=True)
class _Erasing:
    """A purge on its way to the disk, and whom to tell."""

    session: int
    principal: str
    request_id: str
    tasks: dict[int, Task]
    refused: tuple[Change, ...]
    missing: tuple[int, ...]
    history: bool


class Upkeep:
    """Decides who may have what removed or copied; the removal and the copy are the server's work."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._erasing: dict[int, _Erasing] = {}
        self._last_token = 0

    def backup(self, session: Session, message: MakeBackup | GetBackupPart | EndBackup) -> None:
        """An operator wants a copy: what was accepted before is in it, for it is asked for after all Saves."""
        self._state.emit(AskBackup(session.session, session.name, message))

    def backed_up(self, session: int, principal: str, message: BackupMade) -> None:
        """A copy was made."""
        self._state.audit(principal, "backup", "", f"{message.size_bytes} bytes, {message.tasks} tasks")
        self._state.send(session, message)

    def purge(self, session: Session, message: Purge) -> None:
        """Remove what is kept of ended tasks; a repeated request finds it gone."""
        under_way = next(
            (one for one in self._erasing.values() if _asked(one) == (session.name, message.request_id)), None
        )
        if under_way is not None:
            under_way.session = session.session
            return

        def then(tasks: list[Task], missing: list[int]) -> None:
            held = self._held() if message.history else {}
            refused = [change for task in tasks if (change := _obstacle(task, held)) is not None]
            kept = {change.task_id for change in refused}
            self._erase(
                _Erasing(
                    session=session.session,
                    principal=session.name,
                    request_id=message.request_id,
                    tasks={task.task_id: task for task in tasks if task.task_id not in kept},
                    refused=tuple(refused),
                    missing=tuple(missing),
                    history=message.history,
                )
            )

        resolve(self._state, session, message, then)

    def erased(self, token: int, done: Erased) -> None:
        """The store has removed what it was asked to, or could not."""
        state = self._state
        erasing = self._erasing.pop(token, None)
        if erasing is None:
            return  # of an earlier core: whoever asked for it asks again
        state.gone(erasing.tasks)
        if done.task_ids:
            what = f"{done.texts} texts{' and all that is known of them' if erasing.history else ''}"
            state.audit(erasing.principal, "purge", _named(done.task_ids), what)
        if not erasing.history:
            for task_id in done.task_ids:
                task = erasing.tasks[task_id]
                state.event(task, erasing.principal, task.state, 0, "its inputs and its output were removed")
        if done.error:
            text = f"the texts of {len(done.task_ids)} of {len(erasing.tasks)} tasks were removed, then: {done.error}"
            refusal = Refusal(Code.STORE_FULL, text, "ask again for the rest", _RETRY_S)
            state.refuse(erasing.session, erasing.request_id, refusal)
            return
        state.send(
            erasing.session,
            Purged(
                request_id=erasing.request_id,
                tasks=len(done.task_ids),
                texts=done.texts,
                size_bytes=done.size_bytes,
                shared=done.shared,
                is_log_empty=done.is_log_empty,
                refused=erasing.refused,
                missing=erasing.missing,
            ),
        )

    def parked(self, session: Session, message: GetParked) -> None:
        """Outcomes of attempts that the database does not know, newest first."""
        state = self._state

        def then(found: Found) -> None:
            if message.attempt_uid and not found.parked:
                raise Refusal(Code.NOT_FOUND, f"nothing is parked as {message.attempt_uid}", "koubou-ctl parked")
            views = tuple(
                ParkedView(
                    uid=one.attempt_uid,
                    worker_id=one.worker_id,
                    at_ms=one.at_ms,
                    body=Body(one.raw.sha256, one.raw.size_bytes) if one.raw else None,
                    detail=one.detail[:_DETAIL_CHARS],
                )
                for one in found.parked
            )
            state.send(session.session, ParkedWork(message.request_id, views, found.parked_total))

        state.lookup(session.session, FindParked(message.attempt_uid, message.skip), then, message.request_id)

    def _erase(self, erasing: _Erasing) -> None:
        state = self._state
        if not erasing.tasks:
            nothing = Purged(erasing.request_id, 0, 0, 0, 0, True, erasing.refused, erasing.missing)
            state.send(erasing.session, nothing)
            return
        self._last_token += 1
        self._erasing[self._last_token] = erasing
        state.going_for(erasing.tasks)
        state.emit(Erase(self._last_token, tuple(erasing.tasks), erasing.history))

    def _held(self) -> dict[int, str]:
        """Ended tasks an agent still holds an attempt of -> its worker: its last word would come to no record."""
        attempts = self._state.attempts.values()
        return {one.task.task_id: one.record.worker_id for one in attempts if one.task.is_over}


_DETAIL_CHARS = 1_000  # of a parked outcome in a page
_NAMED = 5  # ids in a line of the audit


def _asked(erasing: _Erasing) -> tuple[str, str]:
    return erasing.principal, erasing.request_id


def _obstacle(task: Task, held: dict[int, str]) -> Change | None:
    if not task.is_over:
        return Change(task.task_id, task.state, changed=False, message=f"is {task.state}")
    worker_id = held.get(task.task_id)
    if worker_id is not None:
        said = f"{worker_id} has not ended its attempt yet"
        return Change(task.task_id, task.state, changed=False, message=said)
    return None


def _named(task_ids: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, task_ids[:_NAMED]))
    more = f" and {len(task_ids) - _NAMED} more" if len(task_ids) > _NAMED else ""
    return f"task {shown}{more}"
