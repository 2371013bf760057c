"""A rate that a flood cannot take from others: tokens for all, for one source network and for one source address.

Ids are free, so a rate for each id limits nothing, and one rate for all is used up by whichever sender is fastest. An
address has one node behind it, so a flood from one socket uses up its own few tokens; from many ports of one host, or
many hosts of one network, those of that network; and nothing takes more than all have together. Of that a part is kept
for networks that take little, so that a few networks which take all they may leave others their turn (``KeptRate``);
there all IPv6 networks of one allocation (a /32) count as one, for one party may have them all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import lru_cache
from typing import TypeVar

from meshnode.base.bounded import BoundedDict
from meshnode.base.fair_table import Groups, allocation_of, source_groups
from meshnode.base.path import Path, ViaTunnel, udp_address
from meshnode.base.token_bucket import ROUNDING_S, TokenBucket
from meshnode.base.value import value

MAX_NETWORKS = 1_024  # with a bucket; one that is forgotten had not been used for longest, and begins with a burst
MAX_ADDRESSES = 4_096
KEPT = 0.2  # of a total's burst: for groups that take little

K = TypeVar("K")


@value
class Rate:
    """``each_s`` tokens a second, at most ``burst`` of them saved."""

    each_s: float
    burst: float

    def bucket(self, now: float) -> TokenBucket:
        """Return a full bucket."""
        return TokenBucket(self.each_s, self.burst, now)


class KeptRate:
    """A rate of all groups together, of which a part is kept for those that take little.

    A group within ``little`` may take the last token. The others leave ``KEPT`` of the burst. So they can not take what
    ``total.each_s / little.each_s`` groups want that want little, however much they take.
    """

    def __init__(self, total: Rate, little: Rate) -> None:
        self._total = total.bucket(0.0)
        self._kept = KEPT * total.burst
        self._little = little
        self._groups: BoundedDict[Hashable, TokenBucket] = BoundedDict(MAX_NETWORKS)

    def has(self, group: Hashable, now: float, amount: float = 1) -> bool:
        """True when ``take`` would be granted."""
        kept = 0.0 if self._is_little(group, amount, now) else self._kept
        return self._total.wait(amount + kept, now) <= ROUNDING_S

    def take(self, group: Hashable, now: float, amount: float = 1) -> bool:
        """Take so many tokens; False, taking none, when there are too few for this group."""
        if not self.has(group, now, amount):
            return False
        _bucket(self._groups, group, self._little, now).take(amount, now)
        return self._total.take(amount, now)

    def _is_little(self, group: Hashable, amount: float, now: float) -> bool:
        return _bucket(self._groups, group, self._little, now).wait(amount, now) <= ROUNDING_S


class FairRate:
    """Tokens for events that come from elsewhere; each takes some of its address, its network and all.

    A relay, and a tunnel, is a network without addresses. Without a source an event counts only against the rate of
    all. ``spare`` is asked when all have too few: True lets the event through, for there is nothing else to do.
    """

    def __init__(self, *, total: Rate, network: Rate, address: Rate, little: Rate) -> None:
        self._total = KeptRate(total, little)
        self._network = network
        self._address = address
        self._networks: BoundedDict[Hashable, TokenBucket] = BoundedDict(MAX_NETWORKS)
        self._addresses: BoundedDict[Hashable, TokenBucket] = BoundedDict(MAX_ADDRESSES)
        self.spare: Callable[[float], bool] = lambda now: False

    def has(self, source: Path | None, now: float, amount: float = 1) -> bool:
        """True when ``take`` would be granted."""
        address, network = _shares(source)
        if any(bucket.wait(amount, now) > ROUNDING_S for bucket in self._buckets(address, network, now)):
            return False
        return self._total.has(allocation_of(network), now, amount) or self.spare(now)

    def take(self, source: Path | None, now: float, amount: float = 1) -> bool:
        """Take so many tokens; False, taking none, when the address, the network or all have too few."""
        return self.take_of(*_shares(source), now, amount)

    def take_of(self, address: Hashable | None, network: Hashable | None, now: float, amount: float = 1) -> bool:
        """Take tokens of what shares as an address and a network do; None has no rate of its own."""
        found = []
        for bucket in self._buckets(address, network, now):  # the address first: one socket's flood is refused there
            if bucket.wait(amount, now) > ROUNDING_S:
                return False
            found.append(bucket)
        if not (self._total.take(allocation_of(network), now, amount) or self.spare(now)):
            return False
        for bucket in found:
            bucket.take(amount, now)
        return True

    def _buckets(self, address: Hashable | None, network: Hashable | None, now: float) -> Iterator[TokenBucket]:
        if address is not None:
            yield _bucket(self._addresses, address, self._address, now)
        if network is not None:
            yield _bucket(self._networks, network, self._network, now)


def _shares(source: Path | None) -> tuple[Path | None, Hashable | None]:
    """Return the address and the network of a source, as far as it has them."""
    if source is None:
        return None, None
    return source if udp_address(source) is not None else None, source_network(source)


def _bucket(buckets: BoundedDict[K, TokenBucket], key: K, rate: Rate, now: float) -> TokenBucket:
    bucket = buckets.get(key)
    if bucket is None:
        bucket = rate.bucket(now)
    buckets.put(key, bucket)
    return bucket


def source_network(source: Path) -> Hashable:
    """Return the network that a datagram came from: of its UDP or TCP source, else its relay or tunnel."""
    return path_groups(source)[0]


def path_groups(source: Path) -> tuple[Hashable, Hashable]:
    """Return the network that a datagram came from, and in that the host (``source_groups``).

    A relay and a tunnel that this node opened are a network with one host.
    """
    addr = udp_address(source)
    if addr is not None:
        network, host = source_groups(addr.host)
    elif isinstance(source, ViaTunnel) and not source.peer:
        network, host = source_groups(source.host)  # of a WebSocket that the peer opened: of the peer, or of its proxy
    else:
        network = host = str(source)
    return network, host


@lru_cache(4096)
def path_shares(source: Path) -> Groups:
    """Return the groups of ``path_groups``, and before them the allocation that the network is of."""
    network, host = path_groups(source)
    return allocation_of(network), network, host
