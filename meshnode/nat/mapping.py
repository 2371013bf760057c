"""What this node's NAT does, as far as others' view of us tells (RFC 4787 terms, RFC 5780 method). Sans-IO.

Every PONG says as which address our probe was seen. One peer may lie or be mistaken, so only observers that we chose
(configured seeds, live connections) count, and what they say moves nothing: it is a hint to others where to probe.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import Enum

from meshnode.base.address import Addr, is_dialable
from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_OBSERVERS, OBSERVATION_S
from meshnode.identity.node_id import NodeId
from meshnode.nat.filtering import FilterView


class Mapping(Enum):
    """How outside ports are given out."""

    UNKNOWN = "unknown"
    NONE = "none"  # no NAT: we are seen as one of our own addresses
    INDEPENDENT = "endpoint-independent"
    DEPENDENT = "endpoint-dependent"  # "symmetric": another port for every destination


@dataclass(frozen=True, slots=True)
class Observation:
    """Somebody at ``observer`` saw us as ``seen``."""

    observer: Addr
    seen: Addr
    at: float


class NatView:
    """Observations by family (4 and 6) and peer."""

    def __init__(self) -> None:
        self._own: frozenset[Addr] = frozenset()
        self._seen: dict[int, BoundedDict[NodeId, Observation]] = {f: BoundedDict(MAX_OBSERVERS) for f in (4, 6)}
        self.filters = FilterView()

    def moved(self, own: frozenset[Addr]) -> None:
        """Our own addresses are these now: what was seen before says nothing any more."""
        if own != self._own:
            self._own = own
            for seen in self._seen.values():
                seen.clear()

    def observed(self, peer: NodeId, observer: Addr, seen: Addr, now: float) -> bool:
        """A peer at ``observer``, not on our own network, saw us as ``seen``; True when that changes the picture."""
        if not observer.is_udp or not is_dialable(seen):
            return False
        family = ipaddress.ip_address(seen.host.partition("%")[0]).version
        book = self._seen[family]
        before = (self.reflexive(now), self.mapping(family, now))
        last = book.get(peer)
        if last is not None and last.observer == observer and last.seen != seen:
            book.clear()  # the mapping itself has changed: what others saw earlier is history
            if last.seen.host != seen.host:
                self.filters.changed(family, now)
        self.filters.seen(seen)
        book.put(peer, Observation(observer, seen, now))
        return before != (self.reflexive(now), self.mapping(family, now))

    def _fresh(self, family: int, now: float) -> list[Observation]:
        return [o for o in self._seen[family].values() if now - o.at < OBSERVATION_S]

    def mapping(self, family: int, now: float) -> Mapping:
        """How our NAT maps, for IPv4 (4) or IPv6 (6)."""
        fresh = self._fresh(family, now)
        if not fresh:
            return Mapping.UNKNOWN
        if all(o.seen in self._own for o in fresh):
            return Mapping.NONE
        if len({o.seen for o in fresh}) > 1:
            return Mapping.DEPENDENT
        return Mapping.INDEPENDENT if len({o.observer for o in fresh}) > 1 else Mapping.UNKNOWN

    def reflexive(self, now: float) -> tuple[Addr, ...]:
        """The newest outside address of each family, when it is not one of our own."""
        found = []
        for family in (4, 6):
            fresh = self._fresh(family, now)
            newest = max(fresh, key=lambda o: o.at, default=None)
            if newest is not None and newest.seen not in self._own:
                if self.mapping(family, now) is Mapping.DEPENDENT:  # any will do to say "behind a NAT": a steady one
                    newest = min(fresh, key=lambda o: o.observer)
                found.append(newest.seen)
        return tuple(found)

    def symmetric(self, now: float) -> bool:
        """True when a peer cannot know our port in advance, as far as we know.

        Of a NAT that a single observer has seen, one that keeps the inside port is taken for endpoint-independent.
        """
        for family in (4, 6):
            mapping = self.mapping(family, now)
            if mapping is Mapping.DEPENDENT:
                return True
            ports = {addr.port for addr in self._own}
            if mapping is Mapping.UNKNOWN and any(o.seen.port not in ports for o in self._fresh(family, now)):
                return True
        return False

    def to_json(self, now: float) -> dict[str, object]:
        """Return the picture for people and scripts."""
        return {
            "mapping": self.mapping(4, now).value,
            "mapping_ipv6": self.mapping(6, now).value,
            "filtering": self.filters.filtering(4).value,
            "filtering_ipv6": self.filters.filtering(6).value,
            "reflexive": [str(addr) for addr in self.reflexive(now)],
            "observed": {str(peer): str(o.seen) for book in self._seen.values() for peer, o in list(book.items())[:8]},
        }
