"""What the driver is given and whom it tells: the seams between a node's protocol state and its host."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from meshnode.address import Addr
from meshnode.clock import Clock, Entropy
from meshnode.identity import Identity, NodeId
from meshnode.metrics import Metrics
from meshnode.quic.connection import Connection
from meshnode.quic.engine import EngineFactory
from meshnode.quic.stream import Stream
from meshnode.record import EndpointRecord
from meshnode.relay.server import RelayLimits
from meshnode.sealing import Sealer


class Link(Protocol):
    """Where datagrams go. Returns False when the system refused (no route, say)."""

    def send(self, addr: Addr, datagrams: list[bytes]) -> bool: ...


class MeshEvents(Protocol):
    """What the mesh tells its host, synchronously."""

    def on_stream(self, connection: Connection, stream: Stream) -> None: ...
    def on_connection(self, connection: Connection, up: bool) -> None: ...
    def on_path(self, peer: NodeId, old: Addr | None, new: Addr | None, why: str) -> None: ...
    def on_record(self, record: EndpointRecord) -> None: ...
    def on_contacts(self) -> None: ...
    def on_dirty(self) -> None: ...


DEFAULT_LIMITS = RelayLimits()


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """What a mesh needs to know of its configuration."""

    idle_timeout: float = 600.0
    record_ttl: int = 7200
    seed_role: bool = False
    dht: bool = True
    capabilities: tuple[str, ...] = ()
    path_mtu: int = 1452
    relay: bool = False
    use_relays: bool = True
    relay_limits: RelayLimits = DEFAULT_LIMITS
    gossip: bool = False


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything that the parts of a driver share and none of them owns."""

    identity: Identity
    sealer: Sealer
    link: Link
    events: MeshEvents
    engines: EngineFactory
    clock: Clock
    rng: random.Random
    entropy: Entropy
    admit: Callable[[NodeId], bool]
    relay_allow: Callable[[NodeId], bool]
    settings: MeshSettings
    metrics: Metrics
