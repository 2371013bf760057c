"""Topics in a node: their core, the streams on which it talks, the connections that its links need."""

from __future__ import annotations

from meshnode.base.fair_table import Groups
from meshnode.directory.services import Announce
from meshnode.errors import MeshError
from meshnode.gossip import Changed, Entry, Kind, MemberChanged
from meshnode.gossip.effects import Send
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection
from meshnode.quic.stream import Stream
from meshnode.stack.component import Component, Spread, tell
from meshnode.stack.context import Context
from meshnode.stack.topic_streams import TopicStreams
from meshnode.topics.context import Access
from meshnode.topics.effects import Dial, Misbehaved
from meshnode.topics.entries import is_subscription
from meshnode.topics.inbox import Inbox
from meshnode.topics.messages import MemberMessage
from meshnode.topics.topics import Topics
from meshnode.trust.policy import Act

RELEASE_S = 20.0  # how often links that no topic needs any more are given up


class TopicLink(Component):
    """Drives the core of topics; subscriptions are gossip's entries."""

    def __init__(self, context: Context, gossip: Spread) -> None:
        self._context = context
        self._gossip = gossip
        guard = context.guard
        access = Access(guard.joins, lambda peer, name: guard.ask(Act.PUBLISH, peer, name).allowed)
        self.topics = Topics(
            context.identity, context.rng, context.metrics, gossip.status, self._groups_of, access, context.is_leaf
        )
        self._streams = TopicStreams(context, self._on_message, self.topics.on_busy, self.topics.on_drained)
        self._timer = context.timers.timer(self._tick)
        self._release_timer = context.timers.at(context.clock.monotonic() + RELEASE_S, self._release)
        self._draining = False
        gossip.check(Kind.SUBSCRIPTION, is_subscription)
        gossip.subscribe(Kind.SUBSCRIPTION, self._on_entry)
        gossip.on_expiry(self._on_expired)
        gossip.watch(self._on_member)
        context.access_changed.append(self._on_access_changed)

    def _groups_of(self, peer: NodeId) -> Groups:
        connection = self._context.peers.connection(peer)
        return self._context.links.source_of(connection) if connection is not None else (peer,) * 3

    def join(self, name: str, now: float, replay: int = 0) -> Inbox:
        """Take part in a topic (``Topics.join``), numbered above all that was published before, whatever the clock."""
        return self.topics.join(name, now, self._context.next_seq() / 1000, replay)

    def drain(self, now: float) -> None:
        """Carry out what the core wants done; to be called after each command to it."""
        if self._draining:
            return
        self._draining = True
        try:
            while effects := self.topics.take_effects():
                for effect in effects:
                    tell((self._carry,), self._context.timers.on_error, effect, now)
        finally:
            self._draining = False
        self._timer.set(self.topics.next_deadline())

    def _carry(self, effect: Announce | Send | Dial | Misbehaved, now: float) -> None:
        if isinstance(effect, Send):
            self._streams.send(effect.peer, effect.message, now)
        elif isinstance(effect, Announce):
            self._gossip.publish_soon(effect.kind, effect.name, effect.value, effect.ttl, now)
        elif isinstance(effect, Dial):
            self._dial(effect.peer, now)
        else:
            self._gossip.blame(effect.peer, now)

    def _dial(self, peer: NodeId, now: float) -> None:
        def answer(result: Connection | MeshError) -> None:
            if isinstance(result, MeshError):
                now = self._context.clock.monotonic()
                self.topics.on_connect_failed(peer, now)
                self.drain(now)

        self._context.dials.connect_member(peer, now, answer)

    def _tick(self, now: float) -> None:
        self.topics.tick(now)
        self.drain(now)

    def _release(self, now: float) -> None:
        self._release_timer.set(now + RELEASE_S)
        for peer in self._streams.held():
            if not self.topics.uses(peer):
                self._streams.release(peer)

    # ---- what happens

    def on_link(self, connection: Connection, up: bool, now: float) -> None:
        """Tell the core of a connection: a link of topics may begin, or is over."""
        self._streams.on_link(connection.peer, up)
        self.topics.on_link(connection.peer, up, now)
        self.drain(now)

    def takes_stream(self, connection: Connection, stream: Stream) -> bool:
        """Take the streams of topics."""
        taken = self._streams.on_stream(connection, stream)
        if taken:
            self.drain(self._context.clock.monotonic())
        return taken

    def _on_message(self, peer: NodeId, message: MemberMessage, now: float) -> None:
        self.topics.on_message(peer, message, now, self._context.clock.wall())
        self.drain(now)

    def _on_access_changed(self, now: float) -> None:
        self.topics.on_access_changed(now)
        self.drain(now)

    def _on_entry(self, change: Changed, now: float) -> None:
        self.topics.on_entry(change.entry, now)
        self.drain(now)

    def _on_expired(self, entry: Entry, now: float) -> None:
        if entry.kind == Kind.SUBSCRIPTION:
            self.topics.on_expired(entry, now)
            self.drain(now)

    def _on_member(self, change: MemberChanged, now: float) -> None:
        self.topics.on_member(change.peer, now)
        self.drain(now)
