"""Every message, one union per direction; docs/protocol.md says who may send which."""

from koubou_common.messages.agent import AgentHello, Failure, Goodbye, Heartbeat, Result
from koubou_common.messages.broker import (
    UNASKED,
    Abort,
    BackupEnded,
    BackupMade,
    BackupPart,
    Changes,
    ClientWelcome,
    Dispatch,
    Enrolled,
    Error,
    Explanation,
    HeartbeatAck,
    Invited,
    Keys,
    ParkedWork,
    PartStaged,
    Preview,
    Purged,
    Removed,
    ResultStored,
    Stats,
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
    EndBackup,
    Enrol,
    Explain,
    GetBackupPart,
    GetKeys,
    GetParked,
    GetResult,
    GetStats,
    GetStatus,
    GetStory,
    GetTasks,
    GetWorkers,
    Invite,
    MakeBackup,
    Purge,
    RemoveWorker,
    Retry,
    RevokeKey,
    SetWorkerMode,
    Submit,
    Watch,
)
from koubou_common.messages.shared import BlobChunk, BlobGet, BlobMissing

# Protocol versions spoken by this release. 1: 0.1.0, which drops a message with an error class that it does not know.
PROTO_MIN, PROTO_MAX = 1, 2

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
    | MakeBackup
    | GetBackupPart
    | EndBackup
    | Purge
    | GetParked
    | GetStats
    | Explain
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
    | BackupMade
    | BackupPart
    | BackupEnded
    | Purged
    | ParkedWork
    | Stats
    | Explanation
    | Error
)
ToBroker = FromAgent | FromClient | BlobMessage
FromBroker = ToAgent | ToClient | BlobMessage
Message = ToBroker | FromBroker

__all__ = [
    "PROTO_MAX",
    "PROTO_MIN",
    "UNASKED",
    "Abort",
    "AgentHello",
    "BackupEnded",
    "BackupMade",
    "BackupPart",
    "BlobChunk",
    "BlobGet",
    "BlobMessage",
    "BlobMissing",
    "Cancel",
    "Changes",
    "ClientHello",
    "ClientWelcome",
    "Dispatch",
    "EndBackup",
    "Enrol",
    "Enrolled",
    "Error",
    "Explain",
    "Explanation",
    "Failure",
    "FromAgent",
    "FromBroker",
    "FromClient",
    "GetBackupPart",
    "GetKeys",
    "GetParked",
    "GetResult",
    "GetStats",
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
    "MakeBackup",
    "Message",
    "ParkedWork",
    "PartStaged",
    "Preview",
    "Purge",
    "Purged",
    "RemoveWorker",
    "Removed",
    "Result",
    "ResultStored",
    "Retry",
    "RevokeKey",
    "SetWorkerMode",
    "Stats",
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
