"""What the topics of one node share. Sans I/O."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.gossip.effects import Send, Status
from meshnode.gossip.messages import Message
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.topics.effects import Effect
from meshnode.topics.links import Links
from meshnode.topics.subscribers import Subscribers


@dataclass(slots=True)
class TopicContext:
    """Identity, membership, connections and effects of the node; ``status`` asks the membership."""

    identity: Identity
    rng: random.Random
    metrics: Metrics
    status: Callable[[NodeId], Status]
    timers: Timers = field(default_factory=Timers)
    links: Links = field(default_factory=Links)
    subscribers: Subscribers = field(default_factory=Subscribers)
    effects: list[Effect] = field(default_factory=list)
    wall_offset: float = 0.0  # seconds from monotonic to Unix time

    def send(self, peer: NodeId, message: Message) -> None:
        """Send a message over the link to a peer."""
        self.effects.append(Send(peer, message))

    def members(self, scope: bytes) -> list[NodeId]:
        """Return the other members of a topic, without those that left the mesh or are believed gone."""
        members = self.subscribers.of(scope)
        return [peer for peer in members if self.status(peer) not in (Status.GONE, Status.LEFT)]
