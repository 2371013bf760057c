"""Gossip in a node: its messages on the connections that there are, its links as connections that paths keep alive.

Messages travel as GOSSIP frames of the control stream. Rule when a link is slow: above ``GOSSIP_QUEUE`` unacknowledged
bytes everything but signs of life is dropped, and when the queue has drained the two ends reconcile. A connection that
only gossip wanted is closed when both ends say that they need it no longer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import GOSSIP_MAX_OFFERS, GOSSIP_QUEUE, MAX_SESSIONS
from meshnode.base.metrics import describe
from meshnode.errors import MeshError, RateLimited, RecordError
from meshnode.gossip import (
    Changed,
    Connect,
    Contact,
    Effect,
    Entry,
    Expired,
    Fault,
    Gossip,
    Kind,
    MemberChanged,
    NeedContacts,
    Probe,
    Release,
    Send,
    Status,
    encode_message,
    parse_member,
)
from meshnode.gossip.messages import Disconnect, IndirectProbe, IndirectReply
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord, open_record
from meshnode.quic.connection import CONTROL_STREAM, Connection, State
from meshnode.quic.hello import CloseCode, Frame
from meshnode.stack.component import Component
from meshnode.stack.context import Context

LINGER_S = 10.0  # before a connection is said to be of no more use: the next neighbour may be the same
DRAIN_S = 0.5
POSTPONE_S = 0.5
PINGS, PING_AGAIN_S = 3, 0.15
PING_ADDRESSES = 3
SIGNS_OF_LIFE = (IndirectProbe, IndirectReply, Disconnect)

QUEUE_FULL = describe("gossip_queue_full", "gossip messages dropped: the link is slow; reconciled when it has drained")
NO_LINK = describe("gossip_no_link", "gossip messages dropped: no connection to that neighbour")
RELEASED = describe("gossip_released", "connections closed that neither end needed any longer")

OnEntry = Callable[[Changed, float], None]
OnMember = Callable[[MemberChanged, float], None]


class GossipLink(Component):
    """Drives the gossip core. Layers above ``publish``, ``subscribe`` to kinds, and ``watch`` members."""

    frames = (Frame.GOSSIP, Frame.GOSSIP_IDLE)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._peers = context.peers
        self.core = Gossip(
            context.identity,
            rng=context.rng,
            metrics=context.metrics,
            now=context.clock.monotonic(),
            wall=context.clock.wall(),
            first_seq=context.next_seq(),
            probeable=self._probeable,
        )
        self._timer = context.timers.timer(self._tick)
        self._subscribers: dict[int, list[OnEntry]] = {}
        self._expiries: list[Callable[[Entry, float], None]] = []
        self._watchers: list[OnMember] = []
        self._asked: dict[NodeId, None] = {}  # who is being pinged, and has not answered
        self._used: BoundedDict[NodeId, None] = BoundedDict(MAX_SESSIONS)  # peers that the application asked for
        self._said: dict[NodeId, None] = {}  # whom we told that we do not need the connection
        self._heard: dict[NodeId, None] = {}  # who told us so
        self._behind: dict[NodeId, None] = {}
        self._carrying = False
        self._postponed: dict[tuple[Kind, str], tuple[bytes | None, int]] = {}  # bounded: our own names are
        self._arm()

    # ---- for layers above

    def check(self, kind: int, fits: Callable[[Entry], bool]) -> None:
        """Refuse entries of that kind that do not fit."""
        self.core.ingest.checks[kind] = fits

    def publish(self, kind: int, name: str, value: bytes | None, ttl: int, now: float) -> Entry:
        """Sign and spread an entry; None withdraws it. Raises ValueError (too large), RateLimited (too many)."""
        entry = self.core.publish(kind, name, value, ttl, now)
        self._carry_out(now)
        return entry

    def publish_soon(self, kind: Kind, name: str, value: bytes | None, ttl: int, now: float) -> None:
        """Publish; what is over the rate that others take waits, and only the newest of each name."""
        self._postponed.pop((kind, name), None)
        try:
            self.publish(kind, name, value, ttl, now)
        except RateLimited:
            if not self._postponed:
                self._context.timers.at(now + POSTPONE_S, self._publish_postponed)
            self._postponed[kind, name] = value, ttl

    def _publish_postponed(self, now: float) -> None:
        postponed, self._postponed = self._postponed, {}
        for (kind, name), (value, ttl) in postponed.items():
            self.publish_soon(kind, name, value, ttl, now)

    def subscribe(self, kind: int, callback: OnEntry) -> None:
        """``callback`` hears of every new entry of that kind, our own included."""
        self._subscribers.setdefault(kind, []).append(callback)

    def on_expiry(self, callback: Callable[[Entry, float], None]) -> None:
        """``callback`` hears of stored entries that were not renewed."""
        self._expiries.append(callback)

    def watch(self, callback: OnMember) -> None:
        """``callback`` hears when we believe something else of a member."""
        self._watchers.append(callback)

    def blame(self, peer: NodeId, fault: Fault, now: float) -> None:
        """A layer above was handed what no honest node passes on."""
        self.core.blame(peer, fault, now)
        self._carry_out(now)

    def status(self, peer: NodeId) -> Status:
        """What we believe of a member."""
        return self.core.status(peer)

    def members(self) -> list[NodeId]:
        """Everybody of whom a member entry is stored, and who has not left."""
        return [e.origin for e in self.core.store.entries(Kind.MEMBER) if self.core.status(e.origin) is not Status.LEFT]

    def summary(self) -> dict[str, object]:
        """For status pages; plain JSON."""
        core = self.core
        return {
            "neighbours": [str(peer) for peer in core.hyparview.active],
            "known": len(core.hyparview.passive),
            "lost": len(core.hyparview.views.lost),
            "entries": len(core.store),
            "health": core.swim.health,
            "suspects": {str(peer): core.status(peer).value for peer in core.members.suspects()},
        }

    # ---- what the driver tells

    def on_own_record(self, record: EndpointRecord, now: float) -> None:
        """Tell every member this node's new record."""
        self.core.announce(record.encoded, now)
        self._carry_out(now)

    def on_seed(self, peer: NodeId, now: float) -> None:
        """Begin with a configured node."""
        self.core.add_seed(self._contact(peer), now)
        self._carry_out(now)

    def add_record(self, record: EndpointRecord, now: float) -> None:
        """Another source (mDNS) has seen a node."""
        self.core.add_contact(Contact(record.id, record.encoded), now)
        self._carry_out(now)

    def on_link(self, connection: Connection, up: bool, now: float) -> None:
        """A neighbour is reached, or no longer."""
        peer = connection.peer
        for marks in (self._said, self._heard, self._behind):
            marks.pop(peer, None)
        if not up:
            self._used.pop(peer, None)
        self.core.on_link(peer, up, now)
        self._carry_out(now)

    def is_used(self, peer: NodeId) -> bool:
        """True when somebody besides gossip itself has use for a connection to ``peer``."""
        return peer in self._used or peer in self._context.records.hints or self._context.relays.uses(peer)

    def used(self, peer: NodeId) -> None:
        """The application wants a connection to ``peer``: it stays, whatever gossip thinks."""
        self._used[peer] = None
        connection = self._connection(peer)
        if connection is not None and self._said.pop(peer, 0) is None:
            connection.send_frame(Frame.GOSSIP_IDLE, False)

    def on_control(self, connection: Connection, fields: list[object], now: float) -> None:
        """Handle a message, or a neighbour's word that it needs the connection no longer."""
        if fields[0] == Frame.GOSSIP:
            data = fields[1] if len(fields) == 2 else None
            self.core.receive(connection.peer, data if isinstance(data, bytes) else b"", now)
        elif len(fields) == 2 and fields[1] is True:
            self._heard[connection.peer] = None
            self._close_if_idle(connection.peer, now)
        else:
            self._heard.pop(connection.peer, None)
        self._carry_out(now)

    def _on_alive(self, peer: NodeId) -> None:
        """A member has answered a PING of gossip."""
        now = self._context.clock.monotonic()
        self._asked.pop(peer, None)
        self.core.on_alive(peer, now)
        self._carry_out(now)

    def on_probed(self, sender: NodeId, now: float) -> None:
        """A member probes this node, for whatever reason."""
        self.core.swim.on_heard(sender, now)
        self._arm()

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
                    self._carry(effect, now)
        finally:
            self._carrying = False
        self._arm()

    def _carry(self, effect: Effect, now: float) -> None:
        if isinstance(effect, Send):
            self._send(effect, now)
        elif isinstance(effect, Changed):
            self._changed(effect, now)
        elif isinstance(effect, MemberChanged):
            for watcher in self._watchers:
                watcher(effect, now)
        elif isinstance(effect, Connect):
            self._connect(effect.contact, now)
        elif isinstance(effect, Probe):
            self._probe(effect.contact, now)
        elif isinstance(effect, Release):
            self._context.timers.at(now + LINGER_S, lambda now: self._close_if_idle(effect.peer, now))
        elif isinstance(effect, NeedContacts):
            self._offer_contacts(now)
        elif isinstance(effect, Expired):
            for expired in self._expiries:
                expired(effect.entry, now)
        else:
            connection = self._connection(effect.peer)
            if connection is not None:
                connection.close(CloseCode.PROTOCOL, "gossip that no honest node sends")

    def _send(self, effect: Send, now: float) -> None:
        connection = self._connection(effect.peer)
        if connection is None:
            self._context.metrics.count(NO_LINK)
            return
        queued = connection.stream_queued(CONTROL_STREAM)
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
            if connection is None or connection.stream_queued(CONTROL_STREAM) < GOSSIP_QUEUE // 2:
                del self._behind[peer]
                if connection is not None:
                    self.core.on_drained(peer, now)
        if self._behind:
            self._context.timers.at(now + DRAIN_S, self._look_at_queues)
        self._carry_out(now)

    def _changed(self, effect: Changed, now: float) -> None:
        entry = effect.entry
        if entry.kind == Kind.MEMBER and effect.via is not None:
            member = parse_member(entry)
            if member is not None and member.record:
                self._context.records.offer(member.record, "gossip", now)
        for callback in self._subscribers.get(entry.kind, ()):
            callback(effect, now)

    # ---- connections

    def _connection(self, peer: NodeId) -> Connection | None:
        session = self._peers.sessions.get(peer)
        connection = session.connection if session is not None else None
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

        self._context.dials.connect(peer, now, answer)

    def _close_if_idle(self, peer: NodeId, now: float) -> None:
        """Nobody here needs this connection: say so, and close it when the other end said so too."""
        connection = self._connection(peer)
        views = self.core.hyparview
        if connection is None or connection.streams or peer in self._used or views.wants(peer):
            return
        if self._context.relays.uses(peer):
            return
        if peer not in self._said:
            self._said[peer] = None
            connection.send_frame(Frame.GOSSIP_IDLE, True)
        if peer in self._heard and connection.dialler:
            self._context.metrics.count(RELEASED)
            connection.close(CloseCode.NORMAL, "no longer neighbours")

    def _contact(self, peer: NodeId) -> Contact:
        record = self._context.records.cached(peer)
        return Contact(peer, record.encoded if record is not None else b"")

    def _offer_contacts(self, now: float) -> None:
        """Everybody of whom other sources know: seeds, live peers, the DHT's contacts."""
        records = self._context.records
        live = [peer for peer, session in self._peers.sessions.items() if session.connection is not None]
        known = records.contacts()[:GOSSIP_MAX_OFFERS]
        for peer in dict.fromkeys([*records.hints, *live, *known]):
            self.core.add_contact(self._contact(peer), now)

    # ---- signs of life by datagram

    def _record(self, contact: Contact) -> EndpointRecord | None:
        """The newest record that we have of a contact."""
        found = self._context.records.cached(contact.id)
        if contact.record:
            try:
                said = open_record(contact.record, self._context.clock.wall(), expected=contact.id)
            except RecordError:
                return found
            if found is None or said.seq > found.seq:
                return said
        return found

    def _probeable(self, contact: Contact) -> bool:
        """False for who is reached by relays only: datagrams that nobody expects would not reach it."""
        record = self._record(contact)
        return record is not None and not record.relays

    def _probe(self, contact: Contact, now: float) -> None:
        peer = contact.id
        record = self._record(contact)
        self._ping(contact, record, 0, now)
        if record is not None and record.relays and self._connection(peer) is None:
            self._connect(Contact(peer), now)  # only a connection reaches it

    def _ping(self, contact: Contact, record: EndpointRecord | None, number: int, now: float) -> None:
        """A PING to where the peer is; again, and elsewhere too, while there is no answer."""
        peer = contact.id
        if number == 0:
            self._asked[peer] = None
        elif peer not in self._asked:
            return  # it has answered
        session = self._peers.sessions.get(peer)
        connection = session.connection if session is not None else None
        active = session.paths.active if session is not None and connection is not None else None
        addrs = [active] if active is not None else []
        if record is not None and (active is None or number):
            addrs += [endpoint.addr for endpoint in record.endpoints]
        where = list(dict.fromkeys(addrs))[:PING_ADDRESSES]
        self._context.probes.ask(peer, connection, where, now, partial(self._on_alive, peer))
        if number < PINGS - 1:
            self._context.timers.at(now + PING_AGAIN_S, lambda now: self._ping(contact, record, number + 1, now))
        else:
            self._asked.pop(peer, None)
