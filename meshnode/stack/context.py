"""What the driver is given and whom it tells: the seams between a node's protocol state and its host."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from meshnode.base.address import Addr
from meshnode.base.clock import Clock, Entropy
from meshnode.base.metrics import Metrics
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from meshnode.identity.sealing import Sealer
from meshnode.quic.connection import Connection
from meshnode.quic.seam import EngineFactory
from meshnode.quic.stream import Stream
from meshnode.relay.server import RelayLimits


class Transport(Protocol):
    """Where datagrams go; ``send`` returns False when the system refused (no route, say).

    A *side* is an extra UDP socket, named by a number: what goes to ``addr.through(side)`` leaves by it, and what
    comes in by it has such a source. ``open_sides`` returns those that could be had.
    """

    def send(self, addr: Addr, datagrams: list[bytes]) -> bool: ...
    def open_sides(self, count: int) -> list[int]: ...
    def close_side(self, side: int) -> None: ...


class StackEvents(Protocol):
    """What the mesh tells its host, synchronously."""

    def on_stream(self, connection: Connection, stream: Stream) -> None: ...
    def on_connection(self, connection: Connection, up: bool) -> None: ...
    def on_path(self, peer: NodeId, old: Addr | None, new: Addr | None, why: str) -> None: ...
    def on_record(self, record: EndpointRecord) -> None: ...
    def on_contacts(self) -> None: ...
    def on_dirty(self) -> None: ...


DEFAULT_LIMITS = RelayLimits()


@dataclass(frozen=True, slots=True)
class StackSettings:
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
    fresh_port: bool = False
    gossip: bool = False


@dataclass(frozen=True, slots=True)
class Context:
    """Everything that the parts of a driver share and none of them owns."""

    identity: Identity
    sealer: Sealer
    link: Transport
    events: StackEvents
    engines: EngineFactory
    clock: Clock
    rng: random.Random
    entropy: Entropy
    admit: Callable[[NodeId], bool]
    relay_allow: Callable[[NodeId], bool]
    settings: StackSettings
    metrics: Metrics
