"""NATs for the simulator: RFC 4787's mapping, filtering, port allocation, hairpinning and time-out, nothing else.

A ``Nat`` translates addresses of one UDP packet at a time; it sends nothing, reads no clock and knows no node.
``Sites`` finds the way of a packet up and down through them. Not modelled: TCP, ICMP, fragments. The kernel's NATs
in ``tests/netns/natlab.py`` are the same models in another form; ``tests/netns/test_nat_models.py`` compares the two.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Protocol

from meshnode.base.address import Addr
from meshnode.base.bounded import BoundedDict

FIRST_PORT = 1024
LAST_PORT = 65535
# what one inside socket may be allowed to hear from: real NATs stop in the low thousands; the oldest gives way
MAX_PEERS_PER_MAPPING = 4096


class Dependence(Enum):
    """Part of the other end's address that a mapping or a filter looks at (RFC 4787, sections 4.1 and 5)."""

    ENDPOINT_INDEPENDENT = "endpoint_independent"
    ADDRESS_DEPENDENT = "address_dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address_and_port_dependent"

    def key(self, peer: Addr) -> tuple[str | int, ...]:
        """Return the part of a peer's address that counts: (), (host,) or (host, port)."""
        if self is Dependence.ENDPOINT_INDEPENDENT:
            return ()
        return (peer.host,) if self is Dependence.ADDRESS_DEPENDENT else (peer.host, peer.port)


class Ports(Enum):
    """Port allocation of a new mapping (RFC 4787 section 4.2)."""

    PRESERVING = "preserving"  # the inside port where it is free, else the next free one
    SEQUENTIAL = "sequential"
    RANDOM = "random"
    # Linux: each flow is mapped by itself and two inside hosts share a port as long as they use it towards different
    # peers. The port of the host's newest flow, else the inside one, else a random one; RFC 4787's REQ-3 forbids it
    OVERLOADING = "overloading"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Behaviour of a NAT. ``timeout`` in seconds; use in either direction renews a mapping if ``inbound_renews``.

    ``translates=False`` is a router with a firewall, as IPv6 sites have: inside addresses are valid outside.
    """

    mapping: Dependence = Dependence.ENDPOINT_INDEPENDENT
    filtering: Dependence = Dependence.ADDRESS_AND_PORT_DEPENDENT
    ports: Ports = Ports.PRESERVING
    hairpin: bool = False
    timeout: float = 120.0
    inbound_renews: bool = True
    translates: bool = True
    blocked_udp: bool = False

    @property
    def open(self) -> bool:
        """True when nothing is translated and nothing is kept out."""
        return not self.translates and self.filtering is Dependence.ENDPOINT_INDEPENDENT


OPEN = Behaviour(filtering=Dependence.ENDPOINT_INDEPENDENT, translates=False)
FULL_CONE = Behaviour(filtering=Dependence.ENDPOINT_INDEPENDENT)
ADDRESS_RESTRICTED = Behaviour(filtering=Dependence.ADDRESS_DEPENDENT)
PORT_RESTRICTED = Behaviour()
SYMMETRIC = Behaviour(mapping=Dependence.ADDRESS_AND_PORT_DEPENDENT, ports=Ports.RANDOM)
# nftables and iptables masquerading: port-restricted until two inside hosts use one port towards one peer, then in part
# symmetric (measured on kernel 6.18)
LINUX = Behaviour(mapping=Dependence.ADDRESS_AND_PORT_DEPENDENT, ports=Ports.OVERLOADING)
FIREWALL = Behaviour(translates=False)
BLOCKED_UDP = Behaviour(blocked_udp=True)
PRESETS: dict[str, Behaviour] = {
    "open": OPEN,
    "full_cone": FULL_CONE,
    "address_restricted": ADDRESS_RESTRICTED,
    "port_restricted": PORT_RESTRICTED,
    "symmetric": SYMMETRIC,
    "linux": LINUX,
    "firewall": FIREWALL,
    "blocked_udp": BLOCKED_UDP,
}


@lru_cache(maxsize=4096)
def _contains(network: IPv4Network | IPv6Network, host: str) -> bool:
    return ip_address(host.partition("%")[0]) in network


@dataclass(slots=True)
class _Mapping:
    key: tuple[Addr, tuple[str | int, ...]]
    slot: tuple[Addr, Addr | None]  # the outside address, and the only peer it is for if ports are overloaded
    until: float = 0.0
    # the peers that may send in, and until when; the least recently used first
    allowed: BoundedDict[tuple[str | int, ...], float] = field(
        default_factory=lambda: BoundedDict(MAX_PEERS_PER_MAPPING)
    )

    def renew(self, peer: tuple[str | int, ...], until: float) -> None:
        self.until = until
        self.allowed.put(peer, until)


class Nat:
    """One NAT: ``inside`` is its network, ``outside`` its addresses in the network before it.

    ``behind`` is the next NAT on the way out (double NAT, carrier-grade NAT), None for the open Internet. An inside
    host keeps one outside address (RFC 4787's paired pooling). ``drops`` counts what was not let through, by name.
    """

    def __init__(
        self,
        behaviour: Behaviour,
        outside: Sequence[str] = (),
        *,
        rng: random.Random,
        inside: str = "10.0.0.0/24",
        behind: Nat | None = None,
    ) -> None:
        if behaviour.translates and not outside:
            raise ValueError("a NAT needs an outside address")
        self._overloads = behaviour.ports is Ports.OVERLOADING
        if self._overloads and behaviour.mapping is not Dependence.ADDRESS_AND_PORT_DEPENDENT:
            raise ValueError("overloaded ports are mapped flow by flow")
        self.behaviour = behaviour
        self.outside = tuple(outside)
        self.inside = ip_network(inside)
        self.behind = behind
        self.block_udp = behaviour.blocked_udp
        self.drops: Counter[str] = Counter()
        self._rng = rng
        self._by_key: dict[tuple[Addr, tuple[str | int, ...]], _Mapping] = {}
        self._by_slot: dict[tuple[Addr, Addr | None], _Mapping] = {}
        self._pool: dict[str, str] = {}
        self._last_port = FIRST_PORT - 1
        self._swept = 0.0

    def __len__(self) -> int:
        """Return how many mappings it remembers, some perhaps timed out."""
        return len(self._by_key)

    def __bool__(self) -> bool:
        return True

    def has_inside(self, host: str) -> bool:
        """Return whether the address is one of the network inside."""
        return _contains(self.inside, host)

    def outbound(self, src: Addr, dst: Addr, now: float) -> Addr | None:
        """Return the source that the outside sees of a packet that leaves, None if it is dropped.

        A mapping is made or renewed, and ``dst`` may answer from now on. Dropped is what finds UDP blocked or no free
        port; ``drops`` counts which.
        """
        if self.block_udp:
            return self._drop("udp_blocked")
        if self.behaviour.open:
            return src
        key = (src, self.behaviour.mapping.key(dst))
        mapping = self._by_key.get(key)
        if mapping is None or mapping.until <= now:
            if mapping is not None:
                self._forget(mapping)
            slot = self._allocate(src, dst, now) if self.behaviour.translates else (src, None)
            if slot is None:
                return self._drop("no_free_port")
            mapping = _Mapping(key, slot)
            self._by_key[key] = self._by_slot[slot] = mapping
        mapping.renew(self.behaviour.filtering.key(dst), now + self.behaviour.timeout)
        return mapping.slot[0]

    def inbound(self, src: Addr, dst: Addr, now: float) -> Addr | None:
        """Return the inside address that a packet from outside is for, None if it is dropped.

        Dropped is what finds UDP blocked, no mapping for ``dst``, or a filter that does not know ``src``; ``drops``
        counts which. It renews the mapping if ``inbound_renews``.
        """
        if self.block_udp:
            return self._drop("udp_blocked")
        if self.behaviour.open:
            return dst
        mapping = self._by_slot.get((dst, src if self._overloads else None))
        if mapping is None or mapping.until <= now:
            return self._drop("no_mapping")
        peer = self.behaviour.filtering.key(src)
        if mapping.allowed.get(peer, now) <= now:
            return self._drop("filtered")
        if self.behaviour.inbound_renews:
            mapping.renew(peer, now + self.behaviour.timeout)
        return mapping.key[0]

    def flush(self) -> None:
        """Forget every mapping, as a NAT does that restarts.

        Ports are not counted from the start again, and inside hosts keep their outside addresses.
        """
        self._by_key.clear()
        self._by_slot.clear()

    def _drop(self, why: str) -> Addr | None:
        self.drops[why] += 1
        return None

    def _forget(self, mapping: _Mapping) -> None:
        del self._by_key[mapping.key]
        del self._by_slot[mapping.slot]

    def _allocate(self, src: Addr, dst: Addr, now: float) -> tuple[Addr, Addr | None] | None:
        if now - self._swept >= self.behaviour.timeout:
            self._swept = now
            for mapping in [m for m in self._by_key.values() if m.until <= now]:
                self._forget(mapping)
        host = self._pool.setdefault(src.host, self.outside[len(self._pool) % len(self.outside)])
        for port in self._candidates(src, now):
            slot = Addr(host, port), (dst if self._overloads else None)
            taken = self._by_slot.get(slot)
            if taken is not None and taken.until <= now:
                self._forget(taken)
                taken = None
            if taken is None:
                self._last_port = port
                return slot
        return None

    def _candidates(self, src: Addr, now: float) -> Iterator[int]:
        """Outside ports to try, in the order of the allocation, then all others."""
        first = src.port
        if self.behaviour.ports is Ports.SEQUENTIAL:
            first = self._last_port + 1
        elif self.behaviour.ports is Ports.RANDOM:
            first = self._rng.randint(FIRST_PORT, LAST_PORT)
        elif self._overloads:
            own = (m for m in reversed(self._by_key.values()) if m.key[0] == src and m.until > now)
            newest = next(own, None)
            if newest is not None:
                yield newest.slot[0].port
            yield src.port
            first = self._rng.randint(FIRST_PORT, LAST_PORT)
        span = LAST_PORT - FIRST_PORT + 1
        for step in range(span):
            yield FIRST_PORT + (first - FIRST_PORT + step) % span


class Receiver(Protocol):
    """Whatever has an address in the network."""

    def receive(self, datagram: bytes, source: Addr) -> None:
        """Take a datagram; ``source`` is the address as this network sees it."""


class Sites:
    """Places of all receivers: the inside of every NAT is a network of its own, so two may use the same addresses."""

    def __init__(self, public: MutableMapping[Addr, Receiver]) -> None:
        self._hosts: dict[Nat | None, MutableMapping[Addr, Receiver]] = {None: public}
        self._gates: dict[tuple[Nat | None, str], Nat] = {}
        self._routers: dict[Nat | None, list[Nat]] = {}

    def enter(self, nat: Nat | None, addr: Addr, receiver: Receiver) -> None:
        """Give a receiver an address inside a NAT (None: on the Internet); the one that had it loses it.

        NATs on the way out get their networks with it. Raises ValueError for an address that is not of the NAT's
        network, and when two NATs have one outside address.
        """
        if nat is not None and not nat.has_inside(addr.host):
            raise ValueError(f"{addr.host} is not in {nat.inside}")
        self._connect(nat)
        self._hosts[nat][addr] = receiver

    def leave(self, nat: Nat | None, addr: Addr) -> None:
        """Take an address away; does nothing when no receiver has it."""
        self._hosts[nat].pop(addr, None)

    def _connect(self, nat: Nat | None) -> None:
        while nat is not None and nat not in self._hosts:
            self._hosts[nat] = {}
            for host in nat.outside:
                if self._gates.setdefault((nat.behind, host), nat) is not nat:
                    raise ValueError(f"two NATs have the address {host}")
            if not nat.behaviour.translates:
                self._routers.setdefault(nat.behind, []).append(nat)
            nat = nat.behind

    def climb(self, nat: Nat | None, source: Addr, to: Addr, now: float) -> tuple[Nat | None, Addr, Addr] | None:
        """Return where a packet is after it left its NATs, None if one dropped it.

        That is the network (None: the Internet), and source and destination as this network sees them. A packet to
        an outside address of a NAT on its way turns around there, if the NAT hairpins.
        """
        while nat is not None and not nat.has_inside(to.host):
            hairpin = to.host in nat.outside
            if hairpin and not nat.behaviour.hairpin:
                nat.drops["no_hairpin"] += 1
                return None
            seen = nat.outbound(source, to, now)
            if seen is None:
                return None
            if hairpin:  # it comes back with the outside source address, RFC 4787 REQ-9
                back = nat.inbound(seen, to, now)
                return None if back is None else (nat, seen, back)
            nat, source = nat.behind, seen
        return nat, source, to

    def descend(self, nat: Nat | None, source: Addr, to: Addr, now: float) -> Receiver | None:
        """Return the receiver of a packet that is in this network, None if there is none or a NAT drops it."""
        while True:
            receiver = self._hosts[nat].get(to)
            if receiver is not None:
                return receiver
            gate = self._gates.get((nat, to.host)) or next(
                (router for router in self._routers.get(nat, ()) if router.has_inside(to.host)), None
            )
            inside = None if gate is None else gate.inbound(source, to, now)
            if inside is None:
                return None
            nat, to = gate, inside
