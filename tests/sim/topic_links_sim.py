"""Topic cores over links that carry so many bytes a second, through the real queues of ``stack/topic_streams.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from meshnode.base.timers import Timers
from meshnode.gossip.effects import Send
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import State
from meshnode.stack.topic_streams import HEADER, TopicStreams
from tests.sim.topic_sim import DELAY_S, TopicNode, TopicWorld

BANDWIDTH = 1_000_000.0


@dataclass(eq=False)
class _Stream:
    """What a link's queue holds is what has not arrived yet; nothing is lost."""

    world: RatedWorld
    source: TopicNode
    peer: NodeId
    queued: int = 0
    free_at: float = 0.0
    error: None = None
    fin_sent: bool = False
    background: bool = False

    def write(self, data: bytes) -> None:
        world = self.world
        self.queued += len(data)
        rate = world.rates.get((self.source.id, self.peer), BANDWIDTH)
        self.free_at = max(self.free_at, world.now) + len(data) / rate
        world.at(self.free_at + DELAY_S, lambda: self._arrive(data))

    def _arrive(self, data: bytes) -> None:
        self.queued -= len(data)
        self.world.deliver(self.world.by_id[self.peer], self.source.id, data[HEADER:])


@dataclass
class RatedWorld(TopicWorld):
    """``rates`` are bytes a second of directed links that are not as fast as all others."""

    seed: int
    count: int
    rates: dict[tuple[NodeId, NodeId], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.seed, self.count)
        self.timers = {node.id: Timers() for node in self.nodes}
        self.queues = {node.id: self._links_of(node) for node in self.nodes}

    def _links_of(self, node: TopicNode) -> TopicStreams:
        def connection(peer: NodeId) -> Any:
            if peer not in node.links:
                return None
            return SimpleNamespace(state=State.READY, open=lambda service: _Stream(self, node, peer))

        peers = SimpleNamespace(connection=connection)
        context: Any = SimpleNamespace(peers=peers, metrics=node.metrics, timers=self.timers[node.id])
        return TopicStreams(context, lambda *_: None, node.topics.on_busy, node.topics.on_drained)

    def _send(self, node: TopicNode, effect: Send) -> None:
        timers = self.timers[node.id]
        before = timers.next_deadline()
        self.queues[node.id].send(effect.peer, effect.message, self.now)
        if before is None and timers.next_deadline() is not None:
            self._look(node)

    def _look(self, node: TopicNode) -> None:
        timers = self.timers[node.id]
        timers.run(self.now)
        self._drain(node)
        at = timers.next_deadline()
        if at is not None:
            self.at(at, lambda: self._look(node))

    def deliver(self, node: TopicNode, source: NodeId, data: bytes) -> None:
        """A message arrives, and is read."""
        super().deliver(node, source, data)
        node.read()

    def publish_at(self, node: TopicNode, name: str, rate: float, size: int, seconds: float) -> list[int]:
        """A node publishes as ``topic.publish`` does, waiting while there is no room; the list grows by its seqs."""
        sent: list[int] = []
        end = self.now + seconds

        def once(due: float) -> None:
            if self.now >= end:
                return
            wait = node.topics.room(name, size, self.now)
            if wait > 0:
                self.at(self.now + max(wait, 0.001), lambda: once(due))
                return
            sent.append(self.publish(node, name, b"x" * size))
            due = max(due, self.now - 1.0) + 1 / rate
            self.at(max(due, self.now), lambda: once(due))

        once(self.now)
        return sent
