"""What all components of a stack share: identity, clock, randomness, settings, the peer table, the timers, the way out.

The stack's composition root fills it; ``StackEvents`` is the seam to what runs the stack.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from meshnode.base.clock import Clock, Entropy
from meshnode.base.metrics import Metrics
from meshnode.base.path import Path
from meshnode.base.timers import Timers
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from meshnode.identity.sealing import Sealer
from meshnode.nat.view import NatView
from meshnode.quic.connection import Connection
from meshnode.quic.seam import EngineFactory
from meshnode.quic.stream import Stream
from meshnode.relay.server import RelayLimits
from meshnode.stack.component import Component, Dials, Hooks, Links, Own, Probes, Records, Relays, Serving, Spread, Use
from meshnode.stack.peer_table import PeerTable
from meshnode.stack.sender import Sender, Transport

OnPath = Callable[[NodeId, Path | None, Path | None, str], None]  # peer, old, new, why


class StackEvents(Protocol):
    """What the stack tells its runtime, synchronously."""

    def on_stream(self, connection: Connection, stream: Stream) -> None: ...
    def on_connection(self, connection: Connection, up: bool) -> None: ...
    def on_path(self, peer: NodeId, old: Path | None, new: Path | None, why: str) -> None: ...
    def on_contacts(self) -> None: ...
    def on_dirty(self) -> None: ...


# capabilities that a record may name
RELAY = "relay"
TUNNEL = "wss"  # listens for WebSockets on TCP, at the ports where it listens on UDP
SYMMETRIC = "symmetric"  # its NAT gives it another port for every destination

DEFAULT_LIMITS = RelayLimits()


@dataclass(frozen=True, slots=True)
class StackSettings:
    """What a stack needs to know of its configuration."""

    idle_timeout: float = 600.0
    record_ttl: int = 7200
    seed_role: bool = False
    dht: bool = True
    capabilities: tuple[str, ...] = ()
    path_mtu: int = 1452
    relay: bool = False
    use_relays: bool = True
    relay_limits: RelayLimits = DEFAULT_LIMITS
    fresh_port: bool = False
    gossip: bool = False


@dataclass(slots=True, eq=False)
class Context:
    """Everything that components share and none of them owns."""

    identity: Identity
    sealer: Sealer
    link: Transport
    events: StackEvents
    engines: EngineFactory
    clock: Clock
    rng: random.Random
    entropy: Entropy
    next_seq: Callable[[], int]
    admit: Callable[[NodeId], bool]
    relay_allow: Callable[[NodeId], bool]
    settings: StackSettings
    metrics: Metrics

    peers: PeerTable = field(default_factory=PeerTable)
    timers: Timers = field(default_factory=Timers)
    nat: NatView = field(default_factory=NatView)
    dirty: dict[Component, None] = field(default_factory=dict)  # components to be flushed
    record: EndpointRecord | None = None  # this node's own

    # set by the composition root
    sender: Sender = field(init=False)
    hooks: Hooks = field(init=False)
    deliver: Callable[[bytes, Path, float], None] = field(init=False)  # a datagram that came inside another
    links: Links = field(init=False)
    dials: Dials = field(init=False)
    probes: Probes = field(init=False)
    records: Records = field(init=False)
    relays: Relays = field(init=False)
    serving: Serving = field(init=False)
    own: Own = field(init=False)
    gossip: Spread | None = None  # None where gossip is off
    use: Use | None = None
