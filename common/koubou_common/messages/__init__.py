"""Every message, one union per direction; docs/protocol.md says who may send which."""

from koubou_common.messages.agent import AgentHello, Failure, Goodbye, Heartbeat, Result
from koubou_common.messages.broker import (
    Abort,
    Changes,
    ClientWelcome,
    Dispatch,
    Enrolled,
    Error,
    HeartbeatAck,
    Invited,
    Keys,
    PartStaged,
    Preview,
    Removed,
    ResultStored,
    Status,
    Story,
    Submitted,
    TaskChanged,
    TaskResult,
    Tasks,
    Watching,
    Welcome,
    Workers,
)
from koubou_common.messages.client import (
    Cancel,
    ClientHello,
    Enrol,
    GetKeys,
    GetResult,
    GetStatus,
    GetStory,
    GetTasks,
    GetWorkers,
    Invite,
    RemoveWorker,
    Retry,
    RevokeKey,
    SetWorkerMode,
    Submit,
    Watch,
)
from koubou_common.messages.shared import BlobChunk, BlobGet, BlobMissing

PROTO_MIN, PROTO_MAX = 1, 1  # protocol versions spoken by this release

BlobMessage = BlobGet | BlobChunk | BlobMissing
FromAgent = AgentHello | Heartbeat | Result | Failure | Goodbye
FromClient = (
    ClientHello
    | Submit
    | GetTasks
    | GetStory
    | GetResult
    | Watch
    | Cancel
    | Retry
    | GetStatus
    | GetWorkers
    | SetWorkerMode
    | RemoveWorker
    | Invite
    | Enrol
    | GetKeys
    | RevokeKey
)
ToAgent = Welcome | Dispatch | Abort | ResultStored | HeartbeatAck | Removed | Error
ToClient = (
    ClientWelcome
    | Submitted
    | PartStaged
    | Preview
    | Tasks
    | Story
    | TaskResult
    | Watching
    | TaskChanged
    | Changes
    | Status
    | Workers
    | Invited
    | Enrolled
    | Keys
    | Error
)
ToBroker = FromAgent | FromClient | BlobMessage
FromBroker = ToAgent | ToClient | BlobMessage
Message = ToBroker | FromBroker

__all__ = [
    "PROTO_MAX",
    "PROTO_MIN",
    "Abort",
    "AgentHello",
    "BlobChunk",
    "BlobGet",
    "BlobMessage",
    "BlobMissing",
    "Cancel",
    "Changes",
    "ClientHello",
    "ClientWelcome",
    "Dispatch",
    "Enrol",
    "Enrolled",
    "Error",
    "Failure",
    "FromAgent",
    "FromBroker",
    "FromClient",
    "GetKeys",
    "GetResult",
    "GetStatus",
    "GetStory",
    "GetTasks",
    "GetWorkers",
    "Goodbye",
    "Heartbeat",
    "HeartbeatAck",
    "Invite",
    "Invited",
    "Keys",
    "Message",
    "PartStaged",
    "Preview",
    "RemoveWorker",
    "Removed",
    "Result",
    "ResultStored",
    "Retry",
    "RevokeKey",
    "SetWorkerMode",
    "Status",
    "Story",
    "Submit",
    "Submitted",
    "TaskChanged",
    "TaskResult",
    "Tasks",
    "ToAgent",
    "ToBroker",
    "ToClient",
    "Watch",
    "Watching",
    "Welcome",
    "Workers",
]
