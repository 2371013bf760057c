"""One topic that this node has joined: links, tree, back-pressure, publishing and delivery. Sans I/O.

This class owns the parts and joins them. A message goes to the handler that its row in messages.py names.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshnode.base.limits import GOSSIP_FRAME
from meshnode.directory.services import Announce
from meshnode.gossip.entry import Kind
from meshnode.identity.node_id import NodeId
from meshnode.topics.back_pressure import REPEAT_S, BackPressure
from meshnode.topics.context import TopicContext
from meshnode.topics.delivery import Delivery
from meshnode.topics.effects import SLOW, STRANGER
from meshnode.topics.inbox import Inbox
from meshnode.topics.messages import MESSAGES, TABLE, Hold, Latest, MemberMessage, Release
from meshnode.topics.neighbours import Neighbours
from meshnode.topics.overlay import LatestMessages, scope_of
from meshnode.topics.publisher import Publisher
from meshnode.topics.topic_plumtree import TopicPlumtree

SUBSCRIPTION_TTL_S = 3600
WITHDRAWN_TTL_S = SUBSCRIPTION_TTL_S + 600  # the end of a subscription outlives it
COALESCE_S = 0.05  # payloads for one link wait this long for others, unless the last ones went longer ago than this

NEIGHBOURS_ONLY = {row.kind: row.neighbours_only for row in MESSAGES.values()}


class JoinedTopic:
    """State of one joined topic. ``now`` is monotonic seconds, ``wall`` Unix seconds."""

    def __init__(self, context: TopicContext, name: str, replay: int, now: float, wall: float) -> None:
        self.scope = scope_of(name)
        self._context = context
        self._latest = LatestMessages()
        self.tree = TopicPlumtree(
            context.rng, context.timers, now, self.scope, busy=context.links.busy, find=self._latest.get
        )
        self._pressure = BackPressure(self.tree.plumtree.eager)
        self.publisher = Publisher(context.identity, name, self._pressure, now, wall)
        self.delivery = Delivery(context, name, self.scope, self.tree, self._latest, replay=replay, now=now)
        self.neighbours = Neighbours(context, self.scope, self._on_neighbour_up, self._on_neighbour_down)
        self._flushed = float("-inf")
        self._flushing = context.timers.timer(self.flush)
        self._holding = context.timers.timer(self._pass_pressure)
        self._subscribing = context.timers.timer(self._subscribe)
        self._subscribe(now)
        self.neighbours.start(now)

    @property
    def inbox(self) -> Inbox:
        """Messages for the application."""
        return self.delivery.inbox

    def leave(self) -> None:
        """Withdraw the subscription, send what waits, part from the neighbours and close the inbox."""
        self._subscribing.cancel()
        self._holding.cancel()
        self._context.effects.append(Announce(Kind.SUBSCRIPTION, self.scope.hex(), None, WITHDRAWN_TTL_S))
        self._context.effects += self.tree.take_effects()
        self.neighbours.leave()
        self.inbox.close()

    def publish(self, data: bytes, now: float, wall: float) -> int:
        """Send a message to all members; returns its number, from 1 on.

        Raises ValueError when it has over ``TOPIC_MAX_DATA`` bytes. ``wall`` becomes its time of issue.
        """
        entry = self.publisher.sign(data, now, wall)
        self._latest.add(entry.id, entry.encoded)
        self.tree.publish(entry.id, entry.encoded, now)
        self.flush(now)
        return self.publisher.count

    def uses(self, peer: NodeId) -> bool:
        """Return whether the topic needs the connection to ``peer``."""
        return peer in self.neighbours.greeted or peer in self.neighbours.wanted

    # ---- links

    def on_progress(self, peer: NodeId, now: float) -> None:
        """Send more to a neighbour whose link takes something again.

        A full link that makes progress is not slow: it goes on holding publishers back.
        """
        self._pressure.on_progress(peer, now)
        if peer in self.tree.queues.waiting:
            self._flushed = float("-inf")
            self.flush(now)

    def on_drained(self, peer: NodeId) -> None:
        """Tell a neighbour the recent ids: messages for it were dropped, and will be no longer."""
        if peer in self.neighbours.greeted:
            self._tell(peer, self.tree.recent())

    def _on_neighbour_up(self, peer: NodeId, now: float) -> None:
        self.tree.plumtree.add(peer)
        self._tell(peer, self._latest.ids())
        self.delivery.on_linked(now)

    def _on_neighbour_down(self, peer: NodeId) -> None:
        self.tree.remove(peer)
        self._pressure.forget(peer)

    # ---- what members say

    def on_message(self, peer: NodeId, message: MemberMessage, now: float) -> None:
        """Take a message of this topic.

        Dropped when only neighbours may send it and ``peer`` is none.
        """
        if NEIGHBOURS_ONLY[type(message)] and peer not in self.neighbours.greeted:
            self._context.metrics.count(STRANGER)
        else:
            TABLE.handler(self, message)(peer, message, now)
        self.flush(now)

    def on_hold(self, peer: NodeId, message: Hold, now: float) -> None:
        """Hold publishers back: a link behind ``peer`` is full."""
        self._pressure.on_hold(peer, message.hops, now)
        self._pass_pressure(now)

    def on_release(self, peer: NodeId, message: Release, now: float) -> None:
        """Hold publishers back no longer on account of ``peer``."""
        self._pressure.on_release(peer)
        self._pass_pressure(now)

    # ---- inside

    def _subscribe(self, now: float) -> None:
        self._context.effects.append(Announce(Kind.SUBSCRIPTION, self.scope.hex(), b"", SUBSCRIPTION_TTL_S))
        self._subscribing.set(now + SUBSCRIPTION_TTL_S / 3 * self._context.rng.uniform(0.8, 1.2))

    def _tell(self, peer: NodeId, ids: Sequence[bytes]) -> None:
        if ids:
            self._context.send(peer, Latest(self.scope, tuple(ids)))

    def _pass_pressure(self, now: float) -> None:
        """Tell neighbours that bring payloads when other links can take no more."""
        if self.inbox.closed:
            return
        if self._pressure.pressing(now):
            self.tree.held_until = now + 2 * REPEAT_S
        for peer, hops in self._pressure.tell(now):
            self._context.send(peer, Release(self.scope) if hops is None else Hold(self.scope, hops))
        if self._pressure.tells and not self._holding.live:
            self._holding.set(now + REPEAT_S)

    def flush(self, now: float) -> None:
        """Hand out what the tree wants to send.

        Payloads within ``COALESCE_S`` of each other share messages: what comes sooner after the last ones waits, unless
        it fills a message. What busy links leave in the queues is tried again with ``on_progress``.
        """
        queues = self.tree.queues
        early = now < self._flushed + COALESCE_S and max(queues.waiting.values(), default=0) < GOSSIP_FRAME
        if not early:
            self._send_queued(now)
        again = early or any(peer not in self._context.links.busy for peer in queues.waiting)
        if again and not self._flushing.live:
            self._flushing.set((self._flushed if early else now) + COALESCE_S)
        if self._pressure.weigh(queues.waiting, now):
            self._pass_pressure(now)
        if queues.dropped:
            self._context.metrics.count(SLOW, queues.dropped)
            queues.dropped = 0

    def _send_queued(self, now: float) -> None:
        effects = self.tree.take_effects()
        if effects:
            self._flushed = now
            self._context.effects += effects
        for peer in self.tree.queues.take_behind():
            self._tell(peer, self.tree.recent())
