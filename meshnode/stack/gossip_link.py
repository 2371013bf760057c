"""Gossip in a node: its messages on the connections that there are, its links as connections that paths keep alive.

Messages travel as GOSSIP frames of the control stream. Rule when a link is slow: above ``GOSSIP_QUEUE`` unacknowledged
bytes everything but signs of life is dropped, and when the queue has drained the two ends reconcile.
"""

from __future__ import annotations

from collections.abc import Hashable

from meshnode.base.bounded import BoundedDict
from meshnode.base.fair_rate import path_shares
from meshnode.base.limits import GOSSIP_MAX_ANSWERED, GOSSIP_MAX_OFFERS, GOSSIP_QUEUE
from meshnode.base.metrics import describe
from meshnode.errors import MeshError
from meshnode.gossip import (
    Banned,
    Changed,
    Connect,
    Contact,
    Effect,
    Expired,
    Gossip,
    Kind,
    MemberChanged,
    NeedContacts,
    Probe,
    Release,
    Send,
    Status,
    encode_message,
)
from meshnode.gossip.messages import Disconnect, IndirectProbe, IndirectReply
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from meshnode.quic.connection import CONTROL_STREAM, Connection, State
from meshnode.quic.hello import CloseCode, Frame
from meshnode.stack.component import Component, tell
from meshnode.stack.context import Context
from meshnode.stack.gossip_entries import GossipEntries
from meshnode.stack.gossip_probes import GossipProbes
from meshnode.stack.link_use import LinkUse

LINGER_S = 10.0  # before a connection is said to be of no more use: the next neighbour may be the same
DRAIN_S = 0.5
SIGNS_OF_LIFE = (IndirectProbe, IndirectReply, Disconnect)

QUEUE_FULL = describe("gossip_queue_full", "gossip messages dropped: the link is slow; reconciled when it has drained")
NO_LINK = describe("gossip_no_link", "gossip messages dropped: no connection to that neighbour")


class GossipLink(Component):
    """Drives the gossip core. ``entries`` is for components that publish, subscribe to kinds, and watch members."""

    frames = (Frame.GOSSIP, Frame.GOSSIP_IDLE)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._peers = context.peers
        self._probes = GossipProbes(context, self._on_alive, self._connect)
        self._answered: BoundedDict[NodeId, None] = BoundedDict(GOSSIP_MAX_ANSWERED)
        self.core = Gossip(
            context.identity,
            rng=context.rng,
            metrics=context.metrics,
            now=context.clock.monotonic(),
            wall=context.clock.wall(),
            first_seq=context.next_seq(),
            probeable=self._probes.probeable,
            answered=self._has_answered,
            network_of=self._network_of,
            heard_at=self._probes.heard_at,
            listed=context.settings.seed_role or not (context.settings.dht or context.settings.leaf),
            is_leaf=context.is_leaf,
            leaf=context.settings.leaf,
        )
        self.core.arrivals.ingest.is_barred = lambda origin: context.is_barred(origin)
        self.entries = GossipEntries(context, self.core, self._carry_out)
        self.use = LinkUse(context, self.core.hyparview.wants)
        self._timer = context.timers.timer(self._tick)
        self._behind: dict[NodeId, None] = {}  # neighbours whose queue was full
        self._carrying = False
        self._arm()

    def status(self, peer: NodeId) -> Status:
        """Return the believed state of a member."""
        return self.core.status(peer)

    def members(self) -> list[NodeId]:
        """Return the nodes of which a member entry is stored, without those that have left.

        Gone ones are included.
        """
        return [e.origin for e in self.core.store.entries(Kind.MEMBER) if self.core.status(e.origin) is not Status.LEFT]

    def summary(self) -> dict[str, object]:
        """Return gossip's state for status pages, as plain JSON."""
        core = self.core
        return {
            "neighbours": [str(peer) for peer in core.hyparview.active],
            "known": len(core.hyparview.passive),
            "lost": len(core.hyparview.views.lost),
            "entries": len(core.store),
            "health": core.swim.health,
            "suspects": {str(peer): core.status(peer).value for peer in core.members.suspects()},
        }

    # ---- what happens

    def on_own_record(self, record: EndpointRecord, now: float) -> None:
        """Tell every member this node's new record."""
        self.core.announce(record.encoded, now)
        self._carry_out(now)

    def on_clock_set(self, now: float) -> None:
        """Publish again what this node had published."""
        self.core.on_clock_set(now, self._context.clock.wall())
        self._carry_out(now)

    def on_seed(self, peer: NodeId, now: float) -> None:
        """Begin with a configured node."""
        self.core.add_seed(self._contact(peer), now)
        self._carry_out(now)

    def on_link(self, connection: Connection, up: bool, now: float) -> None:
        """Tell the core of a connection; it may become a link, or a link is over."""
        peer = connection.peer
        self._behind.pop(peer, None)
        self._answered.put(peer, None)
        self.use.on_link(peer, up)
        self.core.on_link(peer, up, now)
        self._carry_out(now)

    def on_control(self, connection: Connection, fields: list[object], now: float) -> None:
        """Handle a gossip message, or a peer's note that it does not need the connection."""
        if fields[0] == Frame.GOSSIP:
            data = fields[1] if len(fields) == 2 else None
            self.core.receive(connection.peer, data if isinstance(data, bytes) else b"", now)
        else:
            self.use.on_idle(connection.peer, len(fields) == 2 and fields[1] is True)
        self._carry_out(now)

    def _on_alive(self, peer: NodeId) -> None:
        """Take note that a member has answered a PING of gossip."""
        now = self._context.clock.monotonic()
        self._answered.put(peer, None)
        self.core.on_alive(peer, now)
        self._carry_out(now)

    def on_probed(self, sender: NodeId, now: float) -> None:
        """Note that a member lives, as its PING shows."""
        self.core.on_heard(sender, now)
        self._carry_out(now)

    def _arm(self) -> None:
        self._timer.set(self.core.next_deadline())

    def _tick(self, now: float) -> None:
        self.core.tick(now, self._context.clock.wall())
        self._carry_out(now)

    def close(self, now: float) -> None:
        """Say goodbye to the mesh; the goodbyes still have to be flushed."""
        self.core.leave(now)
        self._carry_out(now)

    # ---- what the core wants

    def _carry_out(self, now: float) -> None:
        if self._carrying:  # an effect's consequence came back to us: the loop below takes its effects too
            return
        self._carrying = True
        try:
            while effects := self.core.take_effects():
                for effect in effects:
                    tell((self._carry,), self._context.timers.on_error, effect, now)
        finally:
            self._carrying = False
        self._arm()

    def _carry(self, effect: Effect, now: float) -> None:
        if isinstance(effect, Send):
            self._send(effect, now)
        elif isinstance(effect, Changed):
            self.entries.on_changed(effect, now)
        elif isinstance(effect, MemberChanged):
            self.entries.on_member(effect, now)
        elif isinstance(effect, Expired):
            self.entries.on_expired(effect.entry, now)
        else:
            self._carry_link(effect, now)

    def _carry_link(self, effect: Connect | Probe | Release | NeedContacts | Banned, now: float) -> None:
        if isinstance(effect, Connect):
            self._connect(effect.contact, now)
        elif isinstance(effect, Probe):
            self._probes.probe(effect.contact, now)
        elif isinstance(effect, Release):
            self._context.timers.at(now + LINGER_S, lambda now: self.use.close_if_idle(effect.peer))
        elif isinstance(effect, NeedContacts):
            self._offer_contacts(now)
        else:
            connection = self._connection(effect.peer)
            if connection is not None:
                connection.close(CloseCode.PROTOCOL, "gossip that no honest node sends")

    def _send(self, effect: Send, now: float) -> None:
        connection = self._connection(effect.peer)
        if connection is None:
            self._context.metrics.count(NO_LINK)
            return
        queued = connection.streams.queued(CONTROL_STREAM)
        if queued > GOSSIP_QUEUE and (queued > 2 * GOSSIP_QUEUE or not isinstance(effect.message, SIGNS_OF_LIFE)):
            self._context.metrics.count(QUEUE_FULL)
            if not self._behind:
                self._context.timers.at(now + DRAIN_S, self._look_at_queues)
            self._behind[effect.peer] = None
            return
        connection.send_frame(Frame.GOSSIP, encode_message(effect.message))

    def _look_at_queues(self, now: float) -> None:
        for peer in list(self._behind):
            connection = self._connection(peer)
            if connection is None or connection.streams.queued(CONTROL_STREAM) < GOSSIP_QUEUE // 2:
                del self._behind[peer]
                if connection is not None:
                    self.core.on_drained(peer, now)
        if self._behind:
            self._context.timers.at(now + DRAIN_S, self._look_at_queues)
        self._carry_out(now)

    # ---- connections

    def _has_answered(self, peer: NodeId) -> bool:
        return peer in self._answered or peer in self._context.records.hints or self._connection(peer) is not None

    def _network_of(self, peer: NodeId) -> Hashable:
        """Return the source network of a linked peer, or its relay or tunnel."""
        session = self._peers.sessions.get(peer)
        path = session.paths.active if session is not None else None
        return path_shares(path)[0] if path is not None else None

    def _connection(self, peer: NodeId) -> Connection | None:
        connection = self._peers.connection(peer)
        return connection if connection is not None and connection.state is State.READY else None

    def _connect(self, contact: Contact, now: float) -> None:
        peer = contact.id
        if contact.record:
            self._context.records.offer(contact.record, "gossip", now)

        def answer(result: Connection | MeshError) -> None:
            now = self._context.clock.monotonic()
            if isinstance(result, MeshError):
                self.core.on_connect_failed(peer, now)
            else:
                self.core.on_link(peer, True, now)
            self._carry_out(now)

        self._context.dials.connect_member(peer, now, answer)

    def _contact(self, peer: NodeId) -> Contact:
        record = self._context.records.cached(peer)
        return Contact(peer, record.encoded if record is not None else b"")

    def _offer_contacts(self, now: float) -> None:
        """Offer the core the nodes that other sources know: seeds, live peers, the DHT's contacts."""
        records = self._context.records
        live = [peer for peer, session in self._peers.sessions.items() if session.connection is not None]
        known = records.contacts()[:GOSSIP_MAX_OFFERS]
        for peer in dict.fromkeys([*records.hints, *live, *known]):
            self.core.add_contact(self._contact(peer), now)
