"""Who offers what, who is called what, who listens to what: the directory, the names and the topics of a node.

Three cores that know nothing of each other, wired here to gossip (which carries their entries and says who is alive),
to connections (which topics link by) and to the paths' silences (by which a dead instance is known long before the mesh
agrees that it is dead). The host sets the ``on_...`` callbacks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from meshnode.base.timers import Timers
from meshnode.directory.announcement import Instance, is_offer
from meshnode.directory.names import NameConflict, Names, PinsChanged, is_claim
from meshnode.directory.services import Announce, ServiceChanged, Services
from meshnode.errors import MeshError, RateLimited
from meshnode.gossip import Changed, Entry, Kind, MemberChanged
from meshnode.gossip.effects import Scoped, Send
from meshnode.gossip.membership.reputation import Fault
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection
from meshnode.quic.stream import Stream
from meshnode.stack.deadlines import earlier
from meshnode.stack.gossip_link import GossipLink
from meshnode.stack.topic_link import Message, TopicLink
from meshnode.topics.effects import Dial, Misbehaved
from meshnode.topics.joined import is_subscription
from meshnode.topics.topics import Topics

if TYPE_CHECKING:
    from meshnode.stack.peer_table import PeerTable

POSTPONE_S = 0.5
RELEASE_S = 20.0  # how often links that no topic needs any more are given up


def _nobody(*_: object) -> None:
    return None


class DirectoryLink:
    """Everything of a node that others find by name."""

    def __init__(self, peers: PeerTable, gossip: GossipLink) -> None:
        ports = peers.ports
        self._peers = peers
        self._ports = ports
        self._gossip = gossip
        now, wall = ports.clock.monotonic(), ports.clock.wall()
        own, rng, metrics = ports.identity.id, ports.rng, ports.metrics
        self.directory = Services(own, rng, metrics, gossip.status, now)
        self.names = Names(own, metrics, gossip.status, wall)
        self.topics = Topics(ports.identity, rng, metrics, gossip.status)
        self.on_service: Callable[[ServiceChanged], None] = _nobody
        self.on_conflict: Callable[[NameConflict], None] = _nobody
        self.on_pins: Callable[[], None] = _nobody
        self.on_name: Callable[[], None] = _nobody
        self.on_member: Callable[[MemberChanged], None] = _nobody
        self.on_peer_silent: Callable[[NodeId], None] = _nobody
        self._links = TopicLink(peers, self._on_topic_message, self._on_busy, self._on_drained)
        self._timers = Timers()
        self._timers.at(now + RELEASE_S, self._release)
        self._draining = False
        self._postponed: dict[tuple[Kind, str], Announce] = {}  # bounded: our own names are
        for kind, fits in ((Kind.SERVICE, is_offer), (Kind.NAME, is_claim), (Kind.SUBSCRIPTION, is_subscription)):
            gossip.core.check(kind, fits)
            gossip.subscribe(kind, self._on_entry)
        gossip.on_expiry(self._on_expired)
        gossip.watch(self._on_member)

    # ---- time

    def next_deadline(self) -> float | None:
        """When ``tick`` has something to do."""
        at = self._timers.next_deadline()
        for core in (self.directory, self.names, self.topics, self._links):
            at = earlier(at, core.next_deadline())
        return at

    def tick(self, now: float) -> None:
        """Let due timers fire."""
        self._timers.run(now)
        self.directory.tick(now, self._ports.clock.wall())
        self.names.tick(now)
        self.topics.tick(now)
        self._links.tick(now)
        self.drain(now)

    def drain(self, now: float) -> None:
        """Carry out what the cores want; to be called after each command to one of them."""
        if self._draining:
            return
        self._draining = True
        try:
            while effects := [
                *self.directory.take_effects(),
                *self.names.take_effects(),
                *self.topics.take_effects(),
            ]:
                for effect in effects:
                    self._carry(effect, now)
        finally:
            self._draining = False

    def _carry(
        self, effect: Announce | ServiceChanged | NameConflict | PinsChanged | Send | Dial | Misbehaved, now: float
    ) -> None:
        if isinstance(effect, Send):
            self._links.send(effect.peer, effect.message, now)
        elif isinstance(effect, Announce):
            self._announce(effect, now)
        elif isinstance(effect, Dial):
            self._dial(effect.peer, now)
        elif isinstance(effect, ServiceChanged):
            self.on_service(effect)
        elif isinstance(effect, NameConflict):
            self.on_conflict(effect)
        elif isinstance(effect, PinsChanged):
            self.on_pins()
        else:
            self._gossip.blame(effect.peer, Fault.MALFORMED, now)

    def _announce(self, effect: Announce, now: float) -> None:
        """Publish; what is over the rate that others take waits, and only the newest of each name."""
        key = effect.kind, effect.name
        self._postponed.pop(key, None)
        try:
            self._gossip.publish(*key, effect.value, effect.ttl, now)
        except RateLimited:
            if not self._postponed:
                self._timers.at(now + POSTPONE_S, self._announce_postponed)
            self._postponed[key] = effect

    def _announce_postponed(self, now: float) -> None:
        postponed, self._postponed = self._postponed, {}
        for effect in postponed.values():
            self._announce(effect, now)

    def _dial(self, peer: NodeId, now: float) -> None:
        def answer(result: Connection | MeshError) -> None:
            if isinstance(result, MeshError):
                now = self._ports.clock.monotonic()
                self.topics.on_connect_failed(peer, now)
                self.drain(now)

        self._peers.connect(peer, now, answer)

    def _release(self, now: float) -> None:
        self._timers.at(now + RELEASE_S, self._release)
        for peer in self._links.held():
            if not self.topics.uses(peer):
                self._links.release(peer)

    # ---- what the driver tells

    def on_link(self, peer: NodeId, up: bool, now: float) -> None:
        """A connection became ready, or is over."""
        self._links.on_link(peer, up)
        self.directory.on_heard(peer)  # also when it is over: it was the silent one, and a new one is none
        self.topics.on_link(peer, up, now)
        self.drain(now)

    def on_stream(self, connection: Connection, stream: Stream) -> bool:
        """A peer opened a stream; True when it is a topic's."""
        taken = self._links.on_stream(connection, stream)
        if taken:
            self.drain(self._ports.clock.monotonic())
        return taken

    def on_silence(self, peer: NodeId, silent: bool, now: float) -> None:
        """Something that was expected of ``peer`` did not come, or it answers again."""
        if silent:
            self.directory.on_silent(peer, now)
            self.on_peer_silent(peer)
        else:
            self.directory.on_heard(peer)

    def _on_topic_message(self, peer: NodeId, message: Message, now: float) -> None:
        self.topics.on_scoped(Scoped(peer, message), now, self._ports.clock.wall())
        self.drain(now)

    def _on_busy(self, peer: NodeId, busy: bool, now: float) -> None:
        self.topics.on_busy(peer, busy, now)

    def _on_drained(self, peer: NodeId, now: float) -> None:
        self.topics.on_drained(peer, now)

    # ---- what gossip tells

    def _on_entry(self, change: Changed, now: float) -> None:
        entry, wall = change.entry, self._ports.clock.wall()
        if entry.kind == Kind.SERVICE:
            self.directory.on_entry(entry, wall, now)
        elif entry.kind == Kind.NAME:
            self.names.on_entry(entry, wall)
            self.on_name()
        else:
            self.topics.on_entry(entry, now)
        self.drain(now)

    def _on_expired(self, entry: Entry, now: float) -> None:
        if entry.kind == Kind.SUBSCRIPTION:
            self.topics.on_expired(entry, now)
            self.drain(now)

    def _on_member(self, change: MemberChanged, now: float) -> None:
        self.directory.on_member(change.peer, now)
        self.names.on_member(change.peer, self._ports.clock.wall())
        self.topics.on_member(change.peer, now)
        self.on_member(change)
        self.drain(now)

    # ---- questions

    def rtt(self, peer: NodeId) -> float | None:
        """Seconds to a peer and back, while there is a connection."""
        session = self._peers.sessions.get(peer)
        connection = session.connection if session is not None else None
        return connection.engine.rtt() if connection is not None else None

    def instances(self, name: str, now: float) -> list[Instance]:
        """All instances of a service."""
        return self.directory.instances(name, now, self._ports.clock.wall(), self.rtt)

    def choose(self, name: str, now: float, *, sticky: bool = False) -> list[Instance]:
        """The instances of a service in the order in which to try them."""
        return self.directory.choose(name, now, self._ports.clock.wall(), self.rtt, sticky=sticky)
