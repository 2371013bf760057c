"""Gossip's probes: signs of life that members are asked for by datagram, over no connection."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from meshnode.base.path import Path
from meshnode.errors import RecordError
from meshnode.gossip import Contact
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord, open_record
from meshnode.stack.context import Context

PINGS, PING_AGAIN_S = 3, 0.15
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
        self._asked: dict[NodeId, None] = {}  # members that were asked and have not answered; gossip's probes are few

    def probeable(self, contact: Contact) -> bool:
        """Return False for a node that only relays reach: an unexpected datagram would not arrive."""
        record = self._record(contact)
        return record is not None and not record.relays

    def probe(self, contact: Contact, now: float) -> None:
        """Ask a member for a sign of life: ``PINGS`` rounds of PINGs, ``PING_AGAIN_S`` apart, while it does not answer.

        A member that uses relays is also connected to, unless it is already.
        """
        record = self._record(contact)
        self._asked[contact.id] = None
        self._ping(contact.id, record, 0, now)
        if record is not None and record.relays and self._context.peers.connection(contact.id) is None:
            self._connect(Contact(contact.id), now)

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
        if peer not in self._asked:
            return
        where = self._paths(peer, record, first=number == 0)
        connection = self._context.peers.connection(peer)
        self._context.probes.ask(peer, connection, where, now, partial(self._answered, peer))
        if number < PINGS - 1:
            again = partial(self._ping, peer, record, number + 1)
            self._context.timers.at(now + PING_AGAIN_S, again)
        else:
            self._asked.pop(peer, None)

    def _paths(self, peer: NodeId, record: EndpointRecord | None, *, first: bool) -> list[Path]:
        session = self._context.peers.sessions.get(peer)
        active = session.paths.active if session is not None and session.connection is not None else None
        paths: list[Path] = [active] if active is not None else []
        if record is not None and (active is None or not first):
            paths += [endpoint.addr for endpoint in record.endpoints]
        return list(dict.fromkeys(paths))[:PING_PATHS]

    def _answered(self, peer: NodeId) -> None:
        self._asked.pop(peer, None)
        self._on_alive(peer)
