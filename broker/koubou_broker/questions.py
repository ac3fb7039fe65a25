"""Which messages may be answered while nothing can be written. Pure."""

from koubou_common.messages import (
    AgentHello,
    ClientHello,
    Enrol,
    Explain,
    GetKeys,
    GetResult,
    GetStats,
    GetStatus,
    GetStory,
    GetTasks,
    GetWorkers,
    Submit,
    ToBroker,
    Watch,
)

#: What changes nothing. A Submit is among them while none is taken: one that was accepted before is told so.
_QUESTIONS = (
    ClientHello,
    Explain,
    GetKeys,
    GetResult,
    GetStats,
    GetStatus,
    GetStory,
    GetTasks,
    GetWorkers,
    Submit,
    Watch,
)


def would_write(message: ToBroker, *, is_greeted: bool) -> bool:
    """Whether an answer might rest on a change. Who has not said hello is only told to."""
    match message:
        case AgentHello():
            return not message.looks_only
        case Enrol():
            return True
        case _:
            return is_greeted and not isinstance(message, _QUESTIONS)
