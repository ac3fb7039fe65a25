"""What happened on the boxes, for the checker: which attempts ran, what they made, which spools let go of."""

import hashlib
from dataclasses import dataclass, field

from koubou_agent.effects import Success
from koubou_common.messages import Dispatch
from koubou_common.messages.values import AgentStatus, Body, Metrics

OUTAGE_S = 10.0  # an Ollama that is restarted


@dataclass(slots=True)
class Work:
    """`void` is called when a restore takes back what the broker had recorded."""

    #: attempt uid -> model and the version of it that really answered
    answerers: dict[str, tuple[str, str]] = field(default_factory=dict)
    produced: dict[str, bytes] = field(default_factory=dict)  # attempt uid -> sha256 of its output
    raw: dict[bytes, bytes] = field(default_factory=dict)  # what was said, by its sha256
    started: list[str] = field(default_factory=list)
    outcomes: set[str] = field(default_factory=set)  # that were durable in a spool, and count
    forgotten: set[str] = field(default_factory=set)  # of these: the spool has it no longer
    most_at_once: dict[str, int] = field(default_factory=dict)  # worker -> attempts that ran together, per agent
    most_given: dict[str, int] = field(default_factory=dict)  # worker -> attempts that it held together, per agent
    overtaken: set[str] = field(default_factory=set)  # attempts whose dispatch came after one of a higher number
    wiped: int = 0  # caches wiped on Removed
    ollama_s: float = 0.0  # of attempts that came to their end
    begun_s: dict[str, float] = field(default_factory=dict)
    loads: int = 0  # of a model in the place of another, or of none
    outage_until_s: float = 0.0  # no Ollama answers before

    def said(self, uid: str, raw: bytes) -> Success:
        """An attempt came to a good end."""
        sha256 = hashlib.sha256(raw).digest()
        self.produced[uid] = sha256
        self.raw[sha256] = raw
        model, digest = self.answerers[uid]
        return Success(uid, Body(sha256, len(raw)), 0, len(raw), (), model, digest, Metrics(output_tokens=3), "")

    def given(self, name: str, dispatch: Dispatch, before: AgentStatus, now: AgentStatus) -> None:
        """A dispatch came: count what its agent holds."""
        uid = dispatch.attempt_uid
        if dispatch.number < before.last_dispatch and all(held.uid != uid for held in before.running):
            self.overtaken.add(uid)
        given = sum(held.uid not in self.overtaken for held in now.running) + now.releasing
        self.most_given[name] = max(given, self.most_given.get(name, 0))

    def void(self) -> None:
        """What was delivered so far, was delivered to a database that is gone."""
        self.outcomes -= self.forgotten
        self.forgotten.clear()

    def begin_outage(self, now_s: float) -> None:
        """No Ollama answers for a while."""
        self.outage_until_s = now_s + OUTAGE_S

    def let_go(self, uid: str, *, counts: bool) -> None:
        """A spool forgets an outcome; it does not count if a broker said so whose database is gone."""
        if counts:
            self.forgotten.add(uid)
        else:
            self.outcomes.discard(uid)
