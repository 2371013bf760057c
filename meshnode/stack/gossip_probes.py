"""Gossip's probes: signs of life that members are asked for by datagram.

A member with a connection is asked by a PING frame on it first, a quarter of the bytes of a sealed PING; whatever comes
from it then is an answer. Sealed PINGs follow where nothing does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from meshnode.base.path import Path
from meshnode.base.timers import Timer
from meshnode.errors import RecordError
from meshnode.gossip import Contact
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord, open_record
from meshnode.paths.candidate import NEVER
from meshnode.quic.connection import State
from meshnode.stack.context import Context

PINGS, PING_AGAIN_S = 3, 0.15
LATE_S = 0.1  # a tick that is later than this says nothing of a member
PING_PATHS = 3


class GossipProbes:
    """Sends a few PINGs to where a member may be; ``on_alive`` is called with one that answers.

    ``connect`` makes a connection to a member that only a connection reaches.
    """

    def __init__(
        self, context: Context, on_alive: Callable[[NodeId], None], connect: Callable[[Contact, float], None]
    ) -> None:
        self._context = context
        self._on_alive = on_alive
        self._connect = connect
        # members that were asked and have not answered, with what asks again; gossip's probes are few
        self._asked: dict[NodeId, Timer | None] = {}

    def probeable(self, contact: Contact) -> bool:
        """Return False for a node that only relays reach, where no unexpected datagram would arrive, and for a leaf."""
        record = self._record(contact)
        return record is not None and not record.relays and not record.is_leaf

    def heard_at(self, peer: NodeId) -> float:
        """Return when anything came by the connection with a member, in monotonic seconds."""
        session = self._context.peers.sessions.get(peer)
        return session.heard_at() if session is not None and session.connection is not None else NEVER

    def probe(self, contact: Contact, now: float) -> None:
        """Ask a member for a sign of life: ``PINGS`` rounds of PINGs, ``PING_AGAIN_S`` apart, while it does not answer.

        A member that uses relays is also connected to, unless it is already: not while this process comes late, for
        then most that are silent are not, and a handshake costs as much as fifty PINGs.
        """
        record = self._record(contact)
        self._forget(contact.id)
        if not self._ping_connection(contact.id, record, now):
            self._ping(contact.id, record, 0, now)
        late = self._context.late_by >= LATE_S
        if record is not None and record.relays and self._context.peers.connection(contact.id) is None and not late:
            self._connect(Contact(contact.id), now)

    def _ping_connection(self, peer: NodeId, record: EndpointRecord | None, now: float) -> bool:
        """Ask by the connection with a member; returns False when there is none that flows."""
        session = self._context.peers.sessions.get(peer)
        connection = session.connection if session is not None else None
        if session is None or connection is None or connection.state is not State.READY or not session.is_heard(now):
            return False
        connection.engine.ping()
        self._context.links.touch(connection)

        def heard(_: float) -> bool:
            is_heard = session.heard_at() > now
            if is_heard:
                self._answered(peer)
            return is_heard

        def look(later: float) -> None:
            if not heard(later):
                self._ping(peer, record, 1, later)

        self._asked[peer] = self._context.timers.at(now + PING_AGAIN_S, look)
        self._context.links.awaited[peer] = heard  # at once: most answers are there long before
        return True

    def _record(self, contact: Contact) -> EndpointRecord | None:
        """Return the newest record of a contact."""
        found = self._context.records.cached(contact.id)
        if contact.record:
            try:
                said = open_record(contact.record, self._context.clock.wall(), expected=contact.id)
            except RecordError:
                return found
            if found is None or said.seq > found.seq:
                return said
        return found

    def _ping(self, peer: NodeId, record: EndpointRecord | None, number: int, now: float) -> None:
        """Send a PING to where the peer is; again, and elsewhere too, while there is no answer."""
        where = self._paths(peer, record, first=number == 0)
        connection = self._context.peers.connection(peer)
        self._context.probes.ask(peer, connection, where, now, partial(self._answered, peer))
        if number < PINGS - 1:
            again = partial(self._ping, peer, record, number + 1)
            self._asked[peer] = self._context.timers.at(now + PING_AGAIN_S, again)
        else:
            self._asked.pop(peer, None)
            self._context.links.awaited.pop(peer, None)

    def _paths(self, peer: NodeId, record: EndpointRecord | None, *, first: bool) -> list[Path]:
        session = self._context.peers.sessions.get(peer)
        active = session.paths.active if session is not None and session.connection is not None else None
        paths: list[Path] = [active] if active is not None else []
        if record is not None and (active is None or not first):
            here = self._context.peers.here
            paths += [addr for endpoint in record.endpoints for addr in here.reachable(endpoint.addr)]
        return list(dict.fromkeys(paths))[:PING_PATHS]

    def _answered(self, peer: NodeId) -> None:
        self._forget(peer)
        self._on_alive(peer)

    def _forget(self, peer: NodeId) -> None:
        self._context.links.awaited.pop(peer, None)
        again = self._asked.pop(peer, None)
        if again is not None:
            again.cancel()
