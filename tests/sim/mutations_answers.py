"""Further mechanisms with their switches: who may do a task, what was answered before, who is told what."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from koubou_broker.cache_keys import Answerer, answer_key
from koubou_broker.core.attempts import Attempts
from koubou_broker.core.cache import ResultCache
from koubou_broker.core.submissions import Submissions
from koubou_broker.records import NewTask
from koubou_broker.routing.fitting import Fitting
from sim.bugs import Bugs

_NO_BUGS = Bugs()


def wishes(patch: pytest.MonkeyPatch) -> Bugs:
    """Capabilities, labels and the least window that a task asks for are not looked at."""
    original = Fitting._fit
    patch.setattr(Fitting, "_fit", lambda self, model, asked, *wishes: original(self, model, asked, (), (), 0))
    return _NO_BUGS


def same_digest(patch: pytest.MonkeyPatch) -> Bugs:
    """A submission that is to be answered by one version of its model is like any other."""
    patch.setattr("koubou_broker.core.submissions.with_versions", lambda state, tasks, asked: tasks)
    return _NO_BUGS


def answering_version(patch: pytest.MonkeyPatch) -> Bugs:
    """An answer counts whatever version of the model made it."""
    original = Attempts._fault_of
    patch.setattr(Attempts, "_fault_of", lambda self, message, digest: original(self, message, ""))
    return _NO_BUGS


def cache_by_principal(patch: pytest.MonkeyPatch) -> Bugs:
    """What one person was answered is given to another one."""
    return _keys_without(patch, lambda task, answerer: (replace(task, principal=""), answerer))


def cache_by_prompt(patch: pytest.MonkeyPatch) -> Bugs:
    """What was answered to one prompt is given to another one of the same length."""

    def of_no_prompt(task: NewTask, answerer: Answerer) -> tuple[NewTask, Answerer]:
        return replace(task, prompt=replace(task.prompt, sha256=bytes(32))), answerer

    return _keys_without(patch, of_no_prompt)


def cache_by_digest(patch: pytest.MonkeyPatch) -> Bugs:
    """What one version of a model answered is given for the answer of another one."""
    return _keys_without(patch, lambda task, answerer: (task, replace(answerer, digest="any")))


def _keys_without(patch: pytest.MonkeyPatch, blurred: Callable[[NewTask, Answerer], tuple[NewTask, Answerer]]) -> Bugs:
    patch.setattr("koubou_broker.core.cache.answer_key", lambda task, by: answer_key(*blurred(task, by)))
    return _NO_BUGS


def cache_when_wanted(patch: pytest.MonkeyPatch) -> Bugs:
    """Who asks for a new answer is given an earlier one."""
    original = ResultCache.keys_of
    patch.setattr(ResultCache, "keys_of", lambda self, spec: original(self, replace(spec, use_cache=True)))
    patch.setattr(ResultCache, "is_asked_for", lambda self, session, specs: self._state.may_look_up(session))
    return _NO_BUGS


def own_tasks(patch: pytest.MonkeyPatch) -> Bugs:
    """Everybody is told of everybody's tasks."""
    patch.setattr("koubou_broker.core.requests.may_see", lambda session, task: True)
    return _NO_BUGS


def dry_run(patch: pytest.MonkeyPatch) -> Bugs:
    """What was only to be tried is accepted."""
    original = Submissions.submit

    def submit(self: Any, session: Any, message: Any) -> None:
        if message.dry_run:
            original(self, session, replace(message, request_id=f"{message.request_id}/real", dry_run=False))
        original(self, session, message)

    patch.setattr(Submissions, "submit", submit)
    return _NO_BUGS
