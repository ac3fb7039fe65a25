"""Why a worker does not get a task: one word each, the same in the broker, in JSON, on screens and in metrics. Pure."""

from collections.abc import Mapping
from enum import StrEnum


class Reason(StrEnum):
    """Why a worker is not given a task, or not now. New ones may be added, none changes its meaning."""

    # It never will, as things are set up.
    OTHER_WORKER = "other_worker"
    LABEL_MISSING = "label_missing"
    CAPABILITY_MISSING = "capability_missing"
    MODEL_NOT_LISTED = "model_not_listed"
    DIGEST_DIFFERS = "digest_differs"
    WINDOW_TOO_SMALL = "window_too_small"
    EXCLUDED = "excluded"
    # It is not eligible now.
    NOT_CONNECTED = "not_connected"
    STOPPED_ANSWERING = "stopped_answering"
    PAUSED = "paused"
    DRAINING = "draining"
    CANNOT_WORK = "cannot_work"
    COOLING_DOWN = "cooling_down"
    MODEL_ABSENT = "model_absent"
    # It is eligible, but has no room now.
    BUSY = "busy"
    RELEASING = "releasing"
    FOREIGN_LOAD = "foreign_load"
    # It has room, and the policy has another plan for it or for the task.
    AVOIDED = "avoided"
    WAITS_FOR_PREFERRED = "waits_for_preferred"
    KEPT_FOR_LOADED_MODEL = "kept_for_loaded_model"
    FASTER_ELSEWHERE = "faster_elsewhere"
    OTHER = "other"  # a reason that only a newer Koubou has a word for

    @property
    def text(self) -> str:
        """The reason in a user's words."""
        return _TEXTS[self]

    @property
    def is_lasting(self) -> bool:
        """Whether waiting does not change it: only another set-up does."""
        return self in _LASTING

    @property
    def is_plan(self) -> bool:
        """Whether the worker has room for the task, and the policy another plan."""
        return self in _PLANS


_LASTING = frozenset(
    {
        Reason.OTHER_WORKER,
        Reason.LABEL_MISSING,
        Reason.CAPABILITY_MISSING,
        Reason.MODEL_NOT_LISTED,
        Reason.DIGEST_DIFFERS,
        Reason.WINDOW_TOO_SMALL,
        Reason.EXCLUDED,
    }
)

_PLANS = frozenset({Reason.AVOIDED, Reason.WAITS_FOR_PREFERRED, Reason.KEPT_FOR_LOADED_MODEL, Reason.FASTER_ELSEWHERE})

_TEXTS: Mapping[Reason, str] = {
    Reason.OTHER_WORKER: "another worker was asked for",
    Reason.LABEL_MISSING: "lacks a label that was asked for",
    Reason.CAPABILITY_MISSING: "lacks a capability that was asked for",
    Reason.MODEL_NOT_LISTED: "does not list the model",
    Reason.DIGEST_DIFFERS: "has another version of the model",
    Reason.WINDOW_TOO_SMALL: "its window is too small",
    Reason.EXCLUDED: "failed on this task in a way that would repeat",
    Reason.NOT_CONNECTED: "not connected",
    Reason.STOPPED_ANSWERING: "stopped answering",
    Reason.PAUSED: "paused",
    Reason.DRAINING: "draining",
    Reason.CANNOT_WORK: "cannot work",
    Reason.COOLING_DOWN: "cooling down after failures",
    Reason.MODEL_ABSENT: "its Ollama does not have the model now",
    Reason.BUSY: "busy",
    Reason.RELEASING: "its Ollama is still finishing a cancelled call",
    Reason.FOREIGN_LOAD: "somebody else is using its Ollama",
    Reason.AVOIDED: "failed on this task last; another worker is there",
    Reason.WAITS_FOR_PREFERRED: "the rule waits for a preferred worker",
    Reason.KEPT_FOR_LOADED_MODEL: "goes on with tasks for the model it has loaded",
    Reason.FASTER_ELSEWHERE: "another worker will have done it sooner",
    Reason.OTHER: "a reason that only a newer Koubou has a word for",
}
