"""Somebody who asks all that may be asked, of his own, of others and of nothing, and changes nothing by it."""

from dataclasses import replace

from koubou_client.tasks import parts_of
from koubou_common.errors import Code
from koubou_common.messages import (
    Error,
    Explain,
    Explanation,
    GetStats,
    GetStatus,
    GetStory,
    GetWorkers,
    Message,
    Preview,
    Stats,
    Status,
    Story,
    Submit,
    Workers,
)
from koubou_common.messages.values import TaskState
from sim.broker_node import BrokerNode
from sim.client_node import ClientNode, marked
from sim.talker import Request, Talker
from sim.world import World

_NOBODYS = (10_000_000, 2**53)  # ids that no task has
_FIRST_IDS = 40  # mostly of somebody's, perhaps of another person


class CuriousNode(Talker):
    """A second program of a client's, with the same key."""

    def __init__(self, world: World, broker: BrokerNode, client: ClientNode) -> None:
        super().__init__(world, broker, f"{client.name} (curious)", client.public_key)
        self._client = client
        client.companions.append(self)
        self._dry_runs = 0
        self._asked_known: set[str] = set()  # questions for a task of which the client had been told before
        self.answers = 0

    def act(self) -> None:
        """Ask something."""
        draws = self.world.draws
        what = draws.choice(("explain", "explain", "explain", "story", "stats", "dry run", "overview"))
        match what:
            case "explain":
                self._ask_for_task(Explain(self.request_id(), self._some_id()))
            case "story":
                self._ask_for_task(GetStory(self.request_id(), self._some_id()))
            case "stats":
                self.ask(GetStats(self.request_id(), draws.choice((1, 24, 8_760)), draws.choice(("", "w0", "nobody"))))
            case "dry run":
                self._dry_run()
            case _:
                self.ask(GetStatus(self.request_id()))
                self.ask(GetWorkers(self.request_id()))

    def took(self, message: Message, epoch: int) -> None:
        """Answers."""
        asked = None
        match message:
            case Explanation(task=view) | Story(task=view):
                asked = self.answered(message.request_id)
                assert view.principal == self._client.name, f"{self.name} is told of a task of {view.principal}"
                assert asked is None or view.task_id == asked.message.task_id, f"{self.name}: another task is explained"
                if isinstance(message, Explanation) and view.state is TaskState.QUEUED and not message.candidates:
                    # A workshop that was set up with workers has some, able or not.
                    raise AssertionError(f"task {view.task_id} waits, and nobody is named who could take it")
            case Preview(plans=plans):
                asked = self.answered(message.request_id)
                assert asked is None or len(plans) == len(asked.message.tasks), f"{self.name}: {len(plans)} plans"
            case Stats() | Status() | Workers():
                asked = self.answered(message.request_id)
        self.answers += asked is not None

    def refused(self, error: Error, asked: Request | None) -> None:
        """What is somebody else's looks as if it did not exist; what is one's own does not."""
        self.answers += 1
        message = asked.message if asked is not None else None
        assert error.code is Code.NOT_FOUND, f"{self.name}: {error}; asked was {message!r:.300}"
        if isinstance(message, Explain | GetStory):
            is_there = self._client.is_surely_there(message.task_id, self._epoch)
            assert not is_there or message.request_id not in self._asked_known, (
                f"task {message.task_id} of {self._client.name} is said not to be there"
            )

    def _ask_for_task(self, message: Explain | GetStory) -> None:
        if self._client.is_surely_there(message.task_id, self._epoch):
            self._asked_known.add(message.request_id)
        self.ask(message)

    def _some_id(self) -> int:
        draws = self.world.draws
        own = [task_id for ids in self._client.accepted.values() for task_id in ids]
        if own and draws.random() < 0.5:
            return draws.choice(own)
        return draws.choice((*_NOBODYS, *(draws.randint(1, _FIRST_IDS) for _ in range(6))))

    def _dry_run(self) -> None:
        self._dry_runs += 1
        key = f"{self.name}/{self._dry_runs}"
        count = self.world.draws.choice((1, 3))
        drafts = [self._client.draft(key, f"{key}/{index}") for index in range(count)]
        if self.broker.is_whole:
            ((message, _),) = parts_of(drafts, [self.request_id()], key, as_batch=False, dry_run=True)
        else:
            specs = tuple(marked(draft.spec) for draft in drafts)
            message = replace(Submit(self.request_id(), key, specs, as_batch=False), dry_run=True)
        self.ask(message)
