"""Room for one more session: which client's is forgotten. A ROUTER is not told who left, so silence decides."""

from collections.abc import Sequence

from koubou_broker.core.state import Refusal, Session, State
from koubou_broker.effects import Close
from koubou_common.errors import Code
from koubou_common.messages import Error
from koubou_common.messages.values import Role

SILENT_S = 30.0  # who watches and said something since is not forgotten: two could push each other out for ever


def make_room(state: State, name: str, role: Role) -> None:
    """Forget as many sessions as there are too many; Refusal where none of a client's own may go."""
    limits = state.settings.limits
    clients = [one for one in state.sessions.values() if one.role is not Role.WORKER]
    own = [one for one in clients if one.name == name]
    if role is not Role.WORKER and len(own) >= limits.sessions_per_client:
        most = limits.sessions_per_client
        silent = _silent(own)
        if silent.watches and state.now.mono_s - silent.heard_s < SILENT_S:
            text = f"{len(own):,} connections of {name} are in use; the limit sessions_per_client is {most:,}"
            raise Refusal(Code.BUSY, text, "end some, or use one for more", SILENT_S)
        _forget(state, silent)
    elif clients and len(state.sessions) >= limits.sessions_max:
        _forget(state, _silent(clients))


def _silent(sessions: Sequence[Session]) -> Session:
    """Who was silent for longest, of those that wait for no news if there are any."""
    return min(sessions, key=lambda one: (bool(one.watches), one.heard_s, one.session))


def _forget(state: State, session: Session) -> None:
    if session.watches:
        # It may be there and wait for news that would never come: it says hello, and asks for them again.
        state.send(session.session, Error(Code.HELLO_REQUIRED, "too many connections: this one was forgotten"))
    state.close_session(session.session)
    state.emit(Close(session.session))
