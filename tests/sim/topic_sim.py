"""Many topic cores in virtual time, over links as QUIC gives them; a join is told to all after a moment."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from meshnode.base.metrics import Metrics
from meshnode.directory.services import Announce
from meshnode.gossip.effects import Send, Status
from meshnode.gossip.entry import Entry, sign_entry
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.topics.effects import Dial, Effect, Misbehaved
from meshnode.topics.inbox import Inbox, TopicMessage
from meshnode.topics.messages import decode_message, encode_message
from meshnode.topics.topics import Topics

EPOCH = 1_800_000_000.0
DELAY_S = 0.02
GOSSIP_S = 0.3


@dataclass(eq=False)
class TopicNode:
    """One node: its core, and the nodes that are dead or alive to it."""

    identity: Identity
    topics: Topics
    metrics: Metrics
    alive: bool = True
    links: dict[NodeId, None] = field(default_factory=dict)
    lied: list[NodeId] = field(default_factory=list)
    got: list[TopicMessage] = field(default_factory=list)
    boxes: list[Inbox] = field(default_factory=list)

    @property
    def id(self) -> NodeId:
        """The node's id."""
        return self.identity.id

    def read(self) -> list[TopicMessage]:
        """Everything that came, in order."""
        for box in self.boxes:
            while (message := box.pop()) is not None:
                self.got.append(message)
        return self.got


class TopicWorld:
    """All nodes; ``drop`` says which messages are lost on their way (a QUIC link loses none)."""

    def __init__(self, seed: int, count: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.statuses: dict[NodeId, Status] = {}
        self.nodes: list[TopicNode] = []
        self.by_id: dict[NodeId, TopicNode] = {}
        self.sent = 0
        self.payload_bytes = 0
        self.drop: Callable[[NodeId, NodeId, bytes], bool] = lambda a, b, data: False
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._seq = int(EPOCH * 1000)
        for i in range(count):
            identity = Identity(hashlib.blake2b(f"{seed}/{i}".encode(), digest_size=32).digest())
            metrics = Metrics()
            topics = Topics(identity, random.Random(self.rng.random()), metrics, self.status)
            node = TopicNode(identity, topics, metrics)
            self.nodes.append(node)
            self.by_id[node.id] = node

    @property
    def wall(self) -> float:
        """Unix seconds."""
        return EPOCH + self.now

    def status(self, peer: NodeId) -> Status:
        """What all nodes believe."""
        return self.statuses.get(peer, Status.ALIVE)

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do something later."""
        self._count += 1
        heapq.heappush(self._queue, (when, self._count, action))

    def join(self, node: TopicNode, name: str, replay: int = 0) -> Inbox:
        """A node joins."""
        box = node.topics.join(name, self.now, self.wall, replay)
        node.boxes.append(box)
        self._drain(node)
        return box

    def publish(self, node: TopicNode, name: str, data: bytes) -> int:
        """A node publishes."""
        seq = node.topics.publish(name, data, self.now, self.wall)
        self._drain(node)
        return seq

    def kill(self, node: TopicNode, gone_after: float) -> None:
        """A node dies; its links break, and after a while all know."""
        node.alive = False

        def gone() -> None:
            self.statuses[node.id] = Status.GONE
            for other in self.nodes:
                if other.alive:
                    other.topics.on_member(node.id, self.now)
                    if other.links.pop(node.id, 0) is None:
                        other.topics.on_link(node.id, False, self.now)
                    self._drain(other)

        self.at(self.now + gone_after, gone)

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            when, _, action = heapq.heappop(self._queue)
            self.now = max(self.now, when)
            action()
        self.now = end

    def spread(self, entry: Entry) -> None:
        """Gossip of a stored entry."""
        for other in self.nodes:

            def tell(other: TopicNode = other) -> None:
                if other.alive:
                    other.topics.on_entry(entry, self.now)
                    self._drain(other)

            self.at(self.now + self.rng.uniform(0.0, GOSSIP_S), tell)

    def _drain(self, node: TopicNode) -> None:
        while effects := node.topics.take_effects():
            for effect in effects:
                self._carry(node, effect)
        at = node.topics.next_deadline()
        if at is not None:
            self.at(at, lambda: self._tick(node))

    def _carry(self, node: TopicNode, effect: Effect) -> None:
        if isinstance(effect, Send):
            self._send(node, effect)
        elif isinstance(effect, Dial):
            self._dial(node, effect.peer)
        elif isinstance(effect, Announce):
            self._seq += 1
            entry = sign_entry(
                node.identity,
                kind=effect.kind,
                name=effect.name,
                seq=self._seq,
                issued_ms=int(self.wall * 1000),
                ttl=effect.ttl,
                value=effect.value,
            )
            self.spread(entry)
        elif isinstance(effect, Misbehaved):
            node.lied.append(effect.peer)

    def _tick(self, node: TopicNode) -> None:
        at = node.topics.next_deadline()
        if node.alive and at is not None and at <= self.now:
            node.topics.tick(self.now)
            self._drain(node)

    def _dial(self, node: TopicNode, peer: NodeId) -> None:
        other = self.by_id[peer]

        def answer() -> None:
            if not node.alive:
                return
            if not other.alive:
                node.topics.on_connect_failed(peer, self.now)
                self._drain(node)
            elif peer not in node.links:
                for a, b in ((node, other), (other, node)):
                    a.links[b.id] = None
                    a.topics.on_link(b.id, True, self.now)
                    self._drain(a)

        self.at(self.now + (3 * DELAY_S if other.alive else 2.0), answer)

    def _send(self, node: TopicNode, effect: Send) -> None:
        if effect.peer not in node.links:
            return
        data = encode_message(effect.message)
        self.sent += 1
        self.payload_bytes += len(data)
        if self.drop(node.id, effect.peer, data):
            return
        other = self.by_id[effect.peer]
        self.at(self.now + DELAY_S, lambda: self.deliver(other, node.id, data))

    def deliver(self, node: TopicNode, source: NodeId, data: bytes) -> None:
        """A message arrives."""
        if node.alive:
            message = decode_message(data)
            node.topics.on_message(source, message, self.now, self.wall)
            self._drain(node)
