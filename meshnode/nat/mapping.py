"""NAT mapping behaviour (RFC 4787 section 4), from the addresses as which peers see this node. Sans-IO.

Every PONG says as which address its probe was seen; several observers are compared, as RFC 5780 section 4.3 does with
servers. One peer may lie or be mistaken, so only observers that this node chose (configured seeds, live connections)
count, and what they say moves nothing: it is a hint to others where to probe.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from enum import Enum

from meshnode.base.address import Addr
from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_OBSERVERS, OBSERVATION_S
from meshnode.base.value import value
from meshnode.identity.node_id import NodeId


class Mapping(Enum):
    """How a NAT assigns outside ports."""

    UNKNOWN = "unknown"
    NONE = "none"  # no NAT: this node is seen as one of its own addresses
    INDEPENDENT = "endpoint-independent"
    DEPENDENT = "endpoint-dependent"  # "symmetric": another port for every destination


@value
class Observation:
    """The peer at ``observer`` saw this node as ``seen``, at a monotonic time in seconds."""

    observer: Addr
    seen: Addr
    at: float


class MappingView:
    """Observations by family (4 and 6) and peer, and what follows from them.

    ``on_other_host`` is called with the family and the time when the NAT itself shows another outside host.
    """

    def __init__(self, on_other_host: Callable[[int, float], None]) -> None:
        self._on_other_host = on_other_host
        self._own: frozenset[Addr] = frozenset()
        self._seen: dict[int, BoundedDict[NodeId, Observation]] = {f: BoundedDict(MAX_OBSERVERS) for f in (4, 6)}

    def moved(self, own: frozenset[Addr]) -> None:
        """Set this node's own addresses; a change of them voids the observations so far.

        They are the local addresses with the bound port: an observation of one of them means that there is no NAT.
        """
        if own != self._own:
            self._own = own
            for seen in self._seen.values():
                seen.clear()

    def observed(self, peer: NodeId, observer: Addr, seen: Addr, now: float) -> bool:
        """Take an observation; True when it changes the reflexive addresses or the behaviour.

        When one observer sees another address than before, the mapping itself has changed: older ones of its family are
        dropped. An observation counts for ``OBSERVATION_S``.
        """
        family = ipaddress.ip_address(seen.host.partition("%")[0]).version
        book = self._seen[family]
        before = (self.reflexive(now), self.behaviour(family, now))
        last = book.get(peer)
        if last is not None and last.observer == observer and last.seen != seen:
            book.clear()  # the mapping itself has changed: what others saw earlier is history
            if last.seen.host != seen.host:
                self._on_other_host(family, now)
        book.put(peer, Observation(observer, seen, now))
        return before != (self.reflexive(now), self.behaviour(family, now))

    def _fresh(self, family: int, now: float) -> list[Observation]:
        return [o for o in self._seen[family].values() if now - o.at < OBSERVATION_S]

    def behaviour(self, family: int, now: float) -> Mapping:
        """Return the mapping behaviour for IPv4 (4) or IPv6 (6).

        One outside address for two observers at different addresses shows endpoint-independent mapping (RFC 4787
        REQ-1), two of them endpoint-dependent; one observer alone shows neither.
        """
        fresh = self._fresh(family, now)
        if not fresh:
            return Mapping.UNKNOWN
        if all(o.seen in self._own for o in fresh):
            return Mapping.NONE
        if len({o.seen for o in fresh}) > 1:
            return Mapping.DEPENDENT
        return Mapping.INDEPENDENT if len({o.observer for o in fresh}) > 1 else Mapping.UNKNOWN

    def reflexive(self, now: float) -> tuple[Addr, ...]:
        """Return the newest outside address of each family, where it is not one of this node's own.

        Behind an endpoint-dependent NAT any of them serves to say "behind a NAT"; it is a steady one.
        """
        found = []
        for family in (4, 6):
            fresh = self._fresh(family, now)
            newest = max(fresh, key=lambda o: o.at, default=None)
            if newest is not None and newest.seen not in self._own:
                if self.behaviour(family, now) is Mapping.DEPENDENT:
                    newest = min(fresh, key=lambda o: o.observer)
                found.append(newest.seen)
        return tuple(found)

    def symmetric(self, now: float) -> bool:
        """Return whether a peer cannot know this node's outside port in advance.

        With a single observer, a NAT that keeps the inside port is taken for endpoint-independent, any other is not.
        """
        for family in (4, 6):
            mapping = self.behaviour(family, now)
            if mapping is Mapping.DEPENDENT:
                return True
            ports = {addr.port for addr in self._own}
            if mapping is Mapping.UNKNOWN and any(o.seen.port not in ports for o in self._fresh(family, now)):
                return True
        return False

    def observations(self) -> dict[str, str]:
        """Return up to 8 observations of each family as plain JSON: the observer's id, and the address it saw."""
        return {str(peer): str(o.seen) for book in self._seen.values() for peer, o in list(book.items())[:8]}
