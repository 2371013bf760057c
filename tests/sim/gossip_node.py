"""A node of the gossip simulator: its core, its links, what it told, and how entries came to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from meshnode.base.metrics import Metrics
from meshnode.gossip import (
    Gossip,
    Message,
    Status,
    kinds,
)
from meshnode.gossip import entry as entry_module
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId

# The nodes of one process would each parse, verify and keep a copy of the same entries: here they share them.
for module, names in ((entry_module, ("_parsed", "_signed")), (kinds, ("_member", "_accusation"))):
    for function in names:
        setattr(module, function, lru_cache(maxsize=65_536)(getattr(module, function).__wrapped__))


@dataclass(eq=False)
class GossipNode:
    """One node: its core, its links, and what it told."""

    number: int
    identity: Identity
    gossip: Gossip
    metrics: Metrics
    alive: bool = True
    born: float = 0.0
    stalled_until: float = 0.0
    skew: float = 0.0
    links: dict[NodeId, int] = field(default_factory=dict)
    contacts: list[GossipNode] = field(default_factory=list)
    statuses: list[tuple[float, NodeId, Status]] = field(default_factory=list)
    scheduled: float = math.inf
    liar: Callable[[GossipNode, Message], Iterable[Message | bytes]] | None = None

    @property
    def id(self) -> NodeId:
        """The node's id."""
        return self.identity.id


@dataclass(frozen=True, slots=True)
class Hop:
    """How a followed entry came to a node."""

    source: int
    sent: float
    arrived: float
    losses: int
    repaired: bool
