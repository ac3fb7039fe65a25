"""The facts by task and by attempt, for the checks."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

from koubou_common.messages.values import AttemptState
from sim.facts import AttemptRow, EventRow, Facts, TaskRow


@dataclass(frozen=True)
class View:
    """The facts by task and by attempt."""

    facts: Facts

    @cached_property
    def tasks(self) -> dict[int, TaskRow]:
        return {row.task_id: row for row in self.facts.tasks}

    @cached_property
    def attempts(self) -> dict[str, AttemptRow]:
        return {row.uid: row for row in self.facts.attempts}

    @cached_property
    def attempts_of(self) -> dict[int, list[AttemptRow]]:
        found: dict[int, list[AttemptRow]] = defaultdict(list)
        for row in self.facts.attempts:
            found[row.task_id].append(row)
        return found

    @cached_property
    def events_of(self) -> dict[int, list[EventRow]]:
        found: dict[int, list[EventRow]] = defaultdict(list)
        for row in self.facts.events:
            found[row.task_id].append(row)
        return found

    @cached_property
    def made(self) -> dict[bytes, list[AttemptRow]]:
        """The recorded successes by what they made."""
        found: dict[bytes, list[AttemptRow]] = defaultdict(list)
        for row in self.facts.attempts:
            if row.state is AttemptState.SUCCEEDED and row.uid in self.facts.outputs:
                found[self.facts.outputs[row.uid]].append(row)
        return found

    def makers(self, task: TaskRow) -> list[AttemptRow]:
        """Whose output a succeeded task has: its own attempt's or, given again, an earlier task's."""
        if not task.is_cached:
            return self.winners(task)
        return self.made.get(task.result, []) if task.result is not None else []

    def winners(self, task: TaskRow) -> list[AttemptRow]:
        """The attempts of this generation that are recorded as its success."""
        return [
            row
            for row in self.attempts_of[task.task_id]
            if row.state is AttemptState.SUCCEEDED and row.generation == task.generation
        ]
