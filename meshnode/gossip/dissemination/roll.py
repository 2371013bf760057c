"""Roll of the listed members: how many places are taken, and by which networks, as far as a node can tell. Sans I/O.

A member entry costs its sender nothing, nor does an address in it. So a place counts as taken by what an entry alone
cannot claim. Before a node does without a place, or gives one up, it asks a few of the members that it knows by hearsay
only for a sign of life: where less than half of them answer, only so many of the rest count. And networks (those of the
addresses in records: IPv4 /24, IPv6 /32) have equal shares: one that has less than its own may take a place though all
are taken, and it is those with most that give theirs up. Members that only relays reach cannot be asked, and are one
network.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Hashable, Iterable

from meshnode.base.fair_table import allocation_of, network_of
from meshnode.base.value import value
from meshnode.gossip.messages import Contact
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord

ASKED = 4  # members, each time
REMEMBERED = 4 * ASKED  # answers, the newest
HIDDEN = "hidden"  # the network of those that datagrams do not reach

Probe = Callable[[Contact, float, Callable[[bool, float], None]], bool]


@value
class Listed:
    """A listed member that is not believed to be gone; ``is_known``: by more than hearsay."""

    id: NodeId
    record: EndpointRecord | None
    is_known: bool


def network_in(record: EndpointRecord | None) -> Hashable:
    """Return the network of a record's first address; ``HIDDEN`` without one, or with relays."""
    if record is None or record.relays or not record.endpoints:
        return HIDDEN
    return allocation_of(network_of(record.endpoints[0].addr.host))


class Roll:
    """``listed`` returns the members, ``own`` this node's record, and ``probe`` asks one for a sign of life."""

    def __init__(
        self,
        rng: random.Random,
        listed: Callable[[], Iterable[Listed]],
        own: Callable[[], EndpointRecord | None],
        probe: Probe,
    ) -> None:
        self._rng = rng
        self._listed = listed
        self._own = own
        self._probe = probe
        self._answers: deque[bool] = deque(maxlen=REMEMBERED)

    def taken(self) -> float:
        """Return how many places are taken."""
        return sum(self._of_networks().values())

    def is_free(self, places: int) -> bool:
        """Return whether this node may take a place: one is free, or its network has less than its share of them."""
        of = self._of_networks()
        if sum(of.values()) < places:
            return True
        network = network_in(self._own())
        return of.get(network, 0.0) + 1 <= places / len({*of, network})

    def ask(self, now: float) -> bool:
        """Ask a few of those known by hearsay for a sign of life; returns False when there is none to ask."""
        found = [Contact(m.id, m.record.encoded) for m in self._listed() if m.record and not _is_certain(m)]
        for contact in self._rng.sample(found, min(ASKED, len(found))):
            self._probe(contact, now, self._answered)
        return bool(found)

    def gives_up(self, places: int, now: float) -> bool:
        """Return whether this node gives its place up, where there are too many: as many do of each network as are over
        its share. Not before some were asked."""
        untested = len(self._answers) < ASKED
        if self.ask(now) and untested:
            return False
        of = self._of_networks()
        held = of.get(network_in(self._own()), 0.0)
        return self._rng.random() * held >= _level(list(of.values()), places)

    def _answered(self, alive: bool, now: float) -> None:
        self._answers.append(alive)

    def _of_networks(self) -> dict[Hashable, float]:
        """Return how many places each network has taken."""
        alive = sum(self._answers) / len(self._answers) if len(self._answers) >= ASKED else 1.0
        trusted = alive if alive < 1 / 2 else 1.0
        of: dict[Hashable, float] = {}
        for member in self._listed():
            network = network_in(member.record)
            of[network] = of.get(network, 0.0) + (1.0 if _is_certain(member) else trusted)
        return of


def _is_certain(member: Listed) -> bool:
    """Return whether a member is not to be asked: it is known by more than hearsay, or cannot be."""
    return member.is_known or network_in(member.record) == HIDDEN


def _level(held: list[float], places: int) -> float:
    """Return how many places a network may keep for all to fit: those with less keep what they have."""
    left, networks = float(places), len(held)
    for count in sorted(held):
        if count * networks >= left:
            return left / networks
        left, networks = left - count, networks - 1
    return max(held, default=0.0)
