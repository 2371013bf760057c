"""Roll of the listed members: how many places are taken, and by which networks, as far as a node can tell. Sans I/O.

A member entry costs its sender nothing, nor does an address in it. So a place counts as taken by what an entry alone
cannot claim. Before a node does without a place, or gives one up, it asks a few of the members that it knows by hearsay
only for a sign of life: where less than half of them answer, only so many of the rest count. And networks (those of the
addresses in records: IPv4 /24, IPv6 /32) have equal shares: one that has less than its own may take a place though all
are taken, and it is those with most that give theirs up. Members that only relays reach cannot be asked, and are one
network.

A record may name addresses at which its node is not, beside one at which it answers. So members are counted in as few
networks as their records allow: all of the network that most name, then of the rest those of the one that most of these
name, and so on. A crowd whose nodes are in one network is one network so, whatever else their records name; one in
several is at most H(n) times as many, about six for 256 members (Chvatal, Math. Oper. Res. 1979: this greedy choice).
To this node's own networks belong only members whose records name no other, for a stranger may name those, too.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache

from meshnode.base.address import ip_of
from meshnode.base.fair_table import allocation_of, network_of
from meshnode.base.value import value
from meshnode.gossip.messages import Contact
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord

ASKED = 4  # members, each time
REMEMBERED = 4 * ASKED  # answers, the newest
HIDDEN = (b"hidden",)  # the networks of those that datagrams do not reach

Networks = tuple[bytes, ...]
Probe = Callable[[Contact, float, Callable[[bool, float], None]], bool]


@value
class Listed:
    """A listed member that is not believed to be gone; ``is_known``: by more than hearsay."""

    id: NodeId
    record: EndpointRecord | None
    is_known: bool


def networks_in(record: EndpointRecord | None, *, public: bool = True) -> Networks:
    """Return the networks of a record's public addresses, or of its others; of all when it has none such.

    ``HIDDEN`` without any, or with relays.
    """
    if record is None or _is_hidden(record):
        return HIDDEN
    found = [_network(endpoint.addr.host) for endpoint in record.endpoints]
    alike = [network for network, is_public in found if is_public == public]
    return tuple(dict.fromkeys(alike or [network for network, _ in found]))


@lru_cache(maxsize=4_096)
def _network(host: str) -> tuple[bytes, bool]:
    """Return the network of an address, and whether it is a public one."""
    network = allocation_of(network_of(host))
    assert isinstance(network, bytes)
    return network, ip_of(host).is_global


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
        return sum(places for _, places in self._members())

    def is_free(self, places: int) -> bool:
        """Return whether this node may take a place: one is free, or its network has less than its share of them."""
        if self.taken() < places:
            return True
        held, others = self._of_networks()
        return held + 1 <= places / (len(others) + 1)

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
        held, others = self._of_networks()
        return self._rng.random() * held >= _level([held, *others], places)

    def _answered(self, alive: bool, now: float) -> None:
        self._answers.append(alive)

    def _members(self) -> list[tuple[Listed, float]]:
        """Return the members, and how much of a place counts as taken by each."""
        alive = sum(self._answers) / len(self._answers) if len(self._answers) >= ASKED else 1.0
        trusted = alive if alive < 1 / 2 else 1.0
        return [(member, 1.0 if _is_certain(member) else trusted) for member in self._listed()]

    def _of_networks(self) -> tuple[float, list[float]]:
        """Return how many places this node's own networks have taken together, and each other one."""
        record = self._own()
        public = record is None or any(_network(endpoint.addr.host)[1] for endpoint in record.endpoints)
        own, held = networks_in(record, public=public), 0.0
        naming: dict[bytes, dict[int, float]] = {}  # the members whose records name a network, by number
        for number, (member, places) in enumerate(self._members()):
            others = [network for network in networks_in(member.record, public=public) if network not in own]
            for network in others:
                naming.setdefault(network, {})[number] = places
            held += places if not others else 0.0
        return held, _fewest(naming)


def _fewest(naming: dict[bytes, dict[int, float]]) -> list[float]:
    """Return how much of each network there is, counting each member in the one that most of those left name."""
    found: list[float] = []
    counted: dict[int, None] = {}
    queue = [(-sum(members.values()), network) for network, members in naming.items()]
    heapq.heapify(queue)
    while queue:
        most, network = heapq.heappop(queue)
        left = {number: places for number, places in naming[network].items() if number not in counted}
        if len(left) < len(naming[network]):  # some were counted meanwhile: it may be another network's turn
            naming[network] = left
            if left:
                heapq.heappush(queue, (-sum(left.values()), network))
        else:
            counted.update(dict.fromkeys(left))
            found.append(-most)
    return found


def _is_hidden(record: EndpointRecord) -> bool:
    return bool(record.relays) or not record.endpoints


def _is_certain(member: Listed) -> bool:
    """Return whether a member is not to be asked: it is known by more than hearsay, or cannot be."""
    return member.is_known or member.record is None or _is_hidden(member.record)


def _level(held: list[float], places: int) -> float:
    """Return how many places a network may keep for all to fit: those with less keep what they have."""
    left, networks = float(places), len(held)
    for count in sorted(held):
        if count * networks >= left:
            return left / networks
        left, networks = left - count, networks - 1
    return max(held, default=0.0)
