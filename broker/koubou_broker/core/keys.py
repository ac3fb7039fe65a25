"""Who may speak: principals, invitations, enrolment, revocation; the role table."""

import re
from collections.abc import Mapping
from dataclasses import replace

from koubou_broker.core.agents import Agents
from koubou_broker.core.state import Refusal, Session, State
from koubou_broker.effects import Allow, Close, Peer, Revoke
from koubou_broker.records import Principal
from koubou_broker.timers import Timer
from koubou_common.errors import Code
from koubou_common.messages import (
    AgentHello,
    Cancel,
    ClientHello,
    EndBackup,
    Enrol,
    Enrolled,
    Explain,
    Failure,
    GetBackupPart,
    GetKeys,
    GetParked,
    GetResult,
    GetStats,
    GetStatus,
    GetStory,
    GetTasks,
    GetWorkers,
    Goodbye,
    Heartbeat,
    Invite,
    Invited,
    Keys,
    MakeBackup,
    Purge,
    RemoveWorker,
    Result,
    Retry,
    RevokeKey,
    SetWorkerMode,
    Submit,
    Watch,
)
from koubou_common.messages.values import KeyView, Role

_AGENT = frozenset({AgentHello, Heartbeat, Result, Failure, Goodbye})
_CLIENT = frozenset(
    {
        *(ClientHello, Submit, GetTasks, GetStory, GetResult, Watch, Cancel, Retry, Purge),
        *(GetStatus, GetWorkers, GetStats, Explain),
    }
)
_OPERATOR = _CLIENT | {
    *(SetWorkerMode, RemoveWorker, Invite, GetKeys, RevokeKey),
    *(MakeBackup, GetBackupPart, EndBackup, GetParked),
}

# Which role may say what. A removed worker's agent may speak, only to be told that it was removed.
ALLOWED: Mapping[Role, frozenset[type]] = {
    Role.WORKER: _AGENT,
    Role.CLIENT: _CLIENT,
    Role.OPERATOR: _OPERATOR,
    Role.ENROL: frozenset({Enrol}),
    Role.REMOVED: _AGENT,
}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TTL_MOST_S = 30 * 86_400.0  # an invitation left lying about is a key left lying about
_HOLDERS = (Role.WORKER, Role.CLIENT, Role.OPERATOR)
_KEYS_SHOWN = 4_000  # at most 220 bytes each


class PrincipalKeys:
    """Every change is durable before it reaches the allow-list."""

    def __init__(self, state: State, agents: Agents) -> None:
        self._state = state
        self._agents = agents

    def start(self) -> None:
        """Put every live key on the allow-list."""
        state = self._state
        for principal in list(state.principals.values()):
            if principal.revoked_ms:
                continue
            if self._is_expired(principal):
                self._revoke(principal)
                continue
            state.emit(Allow(principal.public_key, principal.name, principal.role))
            self._watch_expiry(principal)

    def invite(self, session: Session, message: Invite) -> None:
        """A one-time key that may replace itself by its holder's own."""
        state = self._state
        if message.role not in _HOLDERS:
            raise Refusal(Code.BAD_INPUT, f"nobody is invited as {message.role}: worker, client or operator")
        if not _NAME.fullmatch(message.name):
            text = f"{message.name!r} is not a name: 1 to 64 letters, digits, '.', '_', '-'"
            raise Refusal(Code.BAD_INPUT, text)
        if not 0 < message.ttl_s <= _TTL_MOST_S:
            raise Refusal(Code.BAD_INPUT, f"an invitation lasts at most {_TTL_MOST_S / 86_400:g} days, more than 0 s")
        known = state.principals.get(message.enrol_key)
        if known is not None:
            same = known.role is Role.ENROL and known.name == message.name and known.enrol_role is message.role
            if not same or known.revoked_ms or known.replaced_by:
                raise Refusal(Code.REFUSED, "this enrolment key is known already", "make a new one")
        else:
            self._check_name(message.name, message.role)
            known = Principal(
                public_key=message.enrol_key,
                name=message.name,
                role=Role.ENROL,
                enrol_role=message.role,
                created_ms=state.now.wall_ms,
                expires_ms=state.now.wall_ms + round(message.ttl_s * 1000),
                revoked_ms=0,
                replaced_by="",
            )
            self._put(known)
            state.audit(session.name, "key_invite", message.name, message.role)
            state.emit(Allow(known.public_key, known.name, Role.ENROL))
            self._watch_expiry(known)
        answer = Invited(message.request_id, known.name, message.role, known.expires_ms, state.settings.addresses)
        state.send(session.session, answer)

    def enrol(self, peer: Peer, session: int, message: Enrol) -> None:
        """The holder's own key takes the place of the enrolment key."""
        state = self._state
        invited = state.principals[peer.public_key]
        assert invited.enrol_role is not None, "an enrolment key knows its holder's role"
        if not invited.replaced_by:
            if self._is_expired(invited):
                self._revoke(invited)
                raise Refusal(Code.TOKEN_INVALID, "this token has expired", "ask the operator for a new one")
            if message.public_key in state.principals:
                raise Refusal(Code.REFUSED, "this key is bound to a name already", "make a new key pair")
            self._check_name(invited.name, invited.enrol_role)
            holders = [
                one for one in state.principals.values() if one.name == invited.name and one.role is not Role.ENROL
            ]
            self._put(replace(invited, replaced_by=message.public_key))
            self._put(
                Principal(
                    public_key=message.public_key,
                    name=invited.name,
                    role=invited.enrol_role,
                    enrol_role=None,
                    # Never before the one it follows: the clock may have been put back, and the older key ends.
                    created_ms=max([state.now.wall_ms, *(one.created_ms + 1 for one in holders)]),
                    expires_ms=0,
                    revoked_ms=0,
                    replaced_by="",
                )
            )
            state.audit(invited.name, "key_enrol", invited.name, invited.enrol_role)
            state.emit(Allow(message.public_key, invited.name, invited.enrol_role))
            state.timers.drop(Timer.ENROLMENT, invited.public_key)
            if invited.enrol_role is Role.WORKER and invited.name not in state.workers:
                state.add_worker(invited.name)
                self._agents.workers_changed()
        elif invited.replaced_by != message.public_key:
            raise Refusal(Code.TOKEN_USED, "this token was used already", "ask the operator for a new one")
        # A lost answer strands nobody: the same new key is told so again.
        state.answer(session, Enrolled(message.request_id, invited.name, invited.enrol_role, message.public_key))

    def connected(self, public_key: str) -> None:
        """A key said hello: the enrolment key it came from has done its work."""
        state = self._state
        first = public_key not in state.seen_ms
        state.seen_ms[public_key] = state.now.wall_ms
        if not first:
            return
        holder = state.principals[public_key]
        for principal in list(state.principals.values()):
            if principal.revoked_ms:
                continue
            if principal.role is Role.ENROL and principal.replaced_by == public_key:
                self._revoke(principal)
            older = principal.created_ms <= holder.created_ms and principal.public_key != public_key
            same = principal.name == holder.name and principal.role is holder.role is Role.WORKER
            if older and same:
                # A worker has one box: its new key ends the old one.
                self._revoke(principal)

    def keys(self, session: Session, message: GetKeys | RevokeKey) -> None:
        """All keys there are or were, newest last."""
        state = self._state
        views = [
            KeyView(
                name=principal.name,
                role=principal.role,
                public_key=principal.public_key,
                created_ms=principal.created_ms,
                expires_ms=principal.expires_ms,
                revoked=bool(principal.revoked_ms),
                last_seen_ms=state.seen_ms.get(principal.public_key, 0),
            )
            for principal in state.principals.values()
        ]
        state.send(session.session, Keys(message.request_id, tuple(views[-_KEYS_SHOWN:])))

    def revoke(self, session: Session, message: RevokeKey) -> None:
        """Every key under the name is refused from now on."""
        state = self._state
        named = [one for one in state.principals.values() if one.name == message.name]
        if not named:
            raise Refusal(Code.NOT_FOUND, f"no key has the name {message.name!r}", "koubou-ctl keys list")
        live = [one for one in named if not one.revoked_ms]
        others = [
            one
            for one in state.principals.values()
            if one.role is Role.OPERATOR and not one.revoked_ms and one.name != message.name
        ]
        if not others and any(one.role is Role.OPERATOR for one in live):
            text = f"{message.name} holds the last operator key: nobody could invite anyone any more"
            raise Refusal(Code.REFUSED, text, "invite another operator first")
        if live:
            state.audit(session.name, "key_revoke", message.name)
        for principal in live:
            self._revoke(principal)
        # Before sessions close: who revoked its own key is told so all the same.
        self.keys(session, message)
        if any(one.role is Role.WORKER for one in live) and message.name in state.workers:
            self._agents.retire(state.workers[message.name], "lost its key", told=False)
        revoked = {one.public_key for one in live}
        for other in list(state.sessions.values()):
            if other.public_key in revoked:
                state.close_session(other.session)
                state.emit(Close(other.session))

    def expire(self, public_key: str) -> None:
        """An enrolment key may have expired."""
        principal = self._state.principals.get(public_key)
        if principal is None or principal.revoked_ms or principal.replaced_by:
            return
        if self._is_expired(principal):
            self._revoke(principal)
        else:
            self._watch_expiry(principal)

    def _check_name(self, name: str, role: Role) -> None:
        state = self._state
        for principal in state.principals.values():
            held = principal.enrol_role or principal.role
            if principal.name == name and not principal.revoked_ms and held not in (role, Role.REMOVED):
                raise Refusal(Code.REFUSED, f"the name {name!r} has a key as {held} already", "take another name")
        if role is not Role.WORKER:
            return
        enrolled = {
            principal.name
            for principal in state.principals.values()
            if principal.role is Role.WORKER and not principal.revoked_ms
        }
        most = state.settings.max_workers
        if name not in enrolled and len(enrolled) >= most:
            text = f"{len(enrolled)} workers have joined; the limit max_workers is {most}"
            raise Refusal(Code.REFUSED, text, "remove a worker, or raise max_workers")

    def _is_expired(self, principal: Principal) -> bool:
        waits = principal.role is Role.ENROL and not principal.replaced_by
        return waits and 0 < principal.expires_ms <= self._state.now.wall_ms

    def _watch_expiry(self, principal: Principal) -> None:
        state = self._state
        if principal.role is Role.ENROL and not principal.replaced_by and principal.expires_ms:
            wait_s = max(0.0, (principal.expires_ms - state.now.wall_ms) / 1000)
            state.timers.set(Timer.ENROLMENT, principal.public_key, state.now.mono_s + wait_s)

    def _put(self, principal: Principal) -> None:
        self._state.principals[principal.public_key] = principal
        self._state.save(principal)

    def _revoke(self, principal: Principal) -> None:
        self._put(replace(principal, revoked_ms=self._state.now.wall_ms))
        self._state.timers.drop(Timer.ENROLMENT, principal.public_key)
        self._state.emit(Revoke(principal.public_key))
