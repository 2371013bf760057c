"""What all components of a stack share: identity, clock, randomness, settings, the peer table, the timers, the way out.

The stack's composition root fills it; ``StackEvents`` is the seam to what runs the stack.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import field
from typing import Protocol

from meshnode.base.bounded import BoundedDict
from meshnode.base.clock import Clock, Entropy
from meshnode.base.limits import MAX_HEARD_GRANTS, RECORD_TTL_S
from meshnode.base.metrics import Metrics
from meshnode.base.path import Path
from meshnode.base.timers import Timers
from meshnode.base.value import state, value
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from meshnode.identity.sealing import Sealer
from meshnode.nat.view import NatView
from meshnode.quic.connection import Connection
from meshnode.quic.seam import EngineFactory
from meshnode.quic.stream import Stream
from meshnode.relay.server import RelayLimits
from meshnode.stack.address_credit import AddressCredit
from meshnode.stack.component import (
    Admits,
    Component,
    Dials,
    Fences,
    Hooks,
    Judges,
    Links,
    Own,
    Policies,
    Probes,
    Records,
    Relays,
    Revokes,
    Secrets,
    Serving,
    Spread,
    Use,
)
from meshnode.stack.junk import Junk
from meshnode.stack.key_twins import USED_TWICE
from meshnode.stack.peer_table import PeerTable
from meshnode.stack.sender import Sender, Transport
from meshnode.trust.chain import Chain, IsRevoked, Standing, none_revoked
from meshnode.trust.decision import Decision
from meshnode.trust.guard import Guard
from meshnode.trust.policy import Act
from meshnode.trust.revocation import Revocation
from meshnode.trust.successors import Successors

OnPath = Callable[[NodeId, Path | None, Path | None, str], None]  # peer, old, new, why


class StackEvents(Protocol):
    """What the stack tells its runtime, synchronously."""

    def on_stream(self, connection: Connection, stream: Stream) -> None: ...
    def on_connection(self, connection: Connection, up: bool) -> None: ...
    def on_path(self, peer: NodeId, old: Path | None, new: Path | None, why: str) -> None: ...
    def on_refused(self, peer: NodeId, act: Act, what: str, decision: Decision) -> None: ...
    def on_cut(self, peer: NodeId, act: Act, what: str, decision: Decision) -> None: ...
    def on_key_used_twice(self, node: NodeId) -> None: ...
    def on_stood_down(self, down: bool) -> None: ...
    def on_revoked(self, revocation: Revocation) -> None: ...
    def on_clock_set(self, step: float) -> None: ...
    def on_contacts(self) -> None: ...
    def on_dirty(self) -> None: ...


# capabilities that a record may name
RELAY = "relay"
TUNNEL = "wss"  # listens for WebSockets on TCP, at the ports where it listens on UDP
SYMMETRIC = "symmetric"  # its NAT gives it another port for every destination

DEFAULT_LIMITS = RelayLimits()


def none_barred(target: NodeId | bytes) -> bool:
    """Return False: nothing is known to be revoked."""
    return False


@value
class StackSettings:
    """What a stack needs to know of its configuration."""

    idle_timeout: float = 600.0
    record_ttl: int = RECORD_TTL_S
    seed_role: bool = False
    leaf: bool = False  # it does nothing for others (gossip/membership/leaves.py, discovery/dht/core.py)
    dht: bool = True
    capabilities: tuple[str, ...] = ()
    path_mtu: int = 1452
    loopback_mtu: int = 0  # bytes of UDP payload within this host; 0 when unknown
    relay: bool = False
    use_relays: bool = True
    relay_limits: RelayLimits = DEFAULT_LIMITS
    fresh_port: bool = False
    gossip: bool = False
    authority: NodeId | None = None  # None: grants mean nothing here
    needs_grant: bool = True
    first_stays: bool = False  # of two processes with this node's key; else the newest
    was_away: bool = False  # it may have missed revocations
    revocation_wait: float = 5.0


@state
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
    guard: Guard
    settings: StackSettings
    metrics: Metrics

    peers: PeerTable = field(default_factory=PeerTable)
    credit: AddressCredit = field(default_factory=AddressCredit)
    timers: Timers = field(default_factory=Timers)
    nat: NatView = field(default_factory=NatView)
    dirty: dict[Component, None] = field(default_factory=dict)  # components to be flushed
    record: EndpointRecord | None = None  # this node's own
    grants: Chain = ()  # this node's own
    late_s: float = 0.0  # by which ticks were late so far, all together: this process did not run
    awaited: float = float("inf")  # since when the next tick is due, as far as this process could know
    late_by: float = 0.0  # by which the last tick was late; 0 as soon as one is in time
    boot: bytes = b""  # names this process, and orders it among those of its key
    is_revoked: IsRevoked = none_revoked
    heard: BoundedDict[NodeId, Standing] = field(default_factory=lambda: BoundedDict(MAX_HEARD_GRANTS))
    successors: Successors = field(default_factory=Successors)
    is_barred: Callable[[NodeId | bytes], bool] = none_barred  # keys and grants that the authority has revoked
    access_changed: list[Callable[[float], None]] = field(default_factory=list)  # the guard answers otherwise now

    def ran(self) -> float:
        """Return the time less what this process did not run of it: what is waited for cannot come meanwhile."""
        return self.clock.monotonic() - self.late_s

    def is_leaf(self, peer: NodeId) -> bool:
        """Return whether the newest record of ``peer``, or this node's own, says that it is a leaf."""
        record = self.record if peer == self.identity.id else self.records.cached(peer)
        return record is not None and record.is_leaf

    def note_twin(self, node: NodeId, now: float) -> None:
        """Note that two hosts use one key, this node's or a peer's, and tell it when it is news."""
        self.metrics.count(USED_TWICE)
        if self.peers.twins.note(node, now):
            self.events.on_key_used_twice(node)

    # set by the composition root
    junk: Junk = field(init=False)
    sender: Sender = field(init=False)
    hooks: Hooks = field(init=False)
    deliver: Callable[[bytes, Path, float], None] = field(init=False)  # a datagram that came inside another
    links: Links = field(init=False)
    dials: Dials = field(init=False)
    admission: Admits = field(init=False)
    fencing: Fences = field(init=False)
    standings: Judges = field(init=False)
    mesh_keys: Secrets = field(init=False)
    probes: Probes = field(init=False)
    records: Records = field(init=False)
    relays: Relays = field(init=False)
    serving: Serving = field(init=False)
    own: Own = field(init=False)
    policies: Policies = field(init=False)
    revoking: Revokes = field(init=False)
    gossip: Spread | None = None  # None where gossip is off
    use: Use | None = None
    uplinks: Component | None = None  # on a host that has several addresses of a family
