"""What the topics of one node share. Sans I/O."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import field

from meshnode.base.fair_table import Groups
from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.base.value import state, value
from meshnode.gossip.effects import Send, Status
from meshnode.gossip.messages import Message
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.topics.effects import Effect
from meshnode.topics.links import Links
from meshnode.topics.subscribers import Subscribers


@value
class Access:
    """What a node may do with a topic: ``joins`` it (take part in its links), ``publishes`` to it."""

    joins: Callable[[NodeId, str], bool]
    publishes: Callable[[NodeId, str], bool]


FREE = Access(lambda peer, name: True, lambda peer, name: True)


@state
class TopicContext:
    """Identity, membership, connections and effects of the node.

    ``status`` asks the membership, ``groups_of`` those of the source of a linked peer, ``access`` what members
    may do with a topic. ``is_leaf`` tells which nodes carry nothing for others.
    """

    identity: Identity
    rng: random.Random
    metrics: Metrics
    status: Callable[[NodeId], Status]
    groups_of: Callable[[NodeId], Groups]
    access: Access = FREE
    is_leaf: Callable[[NodeId], bool] = lambda peer: False
    timers: Timers = field(default_factory=Timers)
    links: Links = field(default_factory=Links)
    subscribers: Subscribers = field(default_factory=Subscribers)
    effects: list[Effect] = field(default_factory=list)
    names: dict[bytes, str] = field(default_factory=dict)  # of the topics that are joined here, by scope
    wall_offset: float = 0.0  # seconds from monotonic to Unix time

    def carriers(self, members: list[NodeId]) -> list[NodeId]:
        """Return the members to link to: those that carry messages on, and for a leaf one, connected if one is.

        Where all others are leaves they carry for each other.
        """
        found = [peer for peer in members if not self.is_leaf(peer)]
        if not found or not self.is_leaf(self.identity.id):
            return found or members
        return sorted(found, key=lambda peer: (peer not in self.links.up, peer.raw))[:1]

    def send(self, peer: NodeId, message: Message) -> None:
        """Send a message over the link to a peer."""
        self.effects.append(Send(peer, message))

    def members(self, scope: bytes) -> list[NodeId]:
        """Return the other members of a topic, without those that left the mesh, are believed gone, or may not join."""
        members, name = self.subscribers.of(scope), self.names.get(scope)
        found = [peer for peer in members if self.status(peer) not in (Status.GONE, Status.LEFT)]
        return found if name is None else [peer for peer in found if self.access.joins(peer, name)]
