"""A bounded table that attackers cannot take from others: when it is full, the group with most entries loses one.

A bound that is shared by all is taken by whichever sender is fastest, and ids are free, so a share for each id bounds
nothing. Here entries belong to groups that cost something to have, such as source networks (``network_of``): a flood
from one network pushes out its own entries, and the few of every other network stay. Groups may have groups within
them (``source_groups``): then, in the network with most, it is the host with most that loses one.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Hashable
from functools import lru_cache
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
Groups = tuple[Hashable, ...]


class _Share(Generic[K]):
    """The keys of one group: oldest first while all are in the same groups within it, else divided among those."""

    __slots__ = ("_largest", "_of_size", "keys", "parts", "size", "within")

    def __init__(self, within: Groups | None) -> None:
        self.size = 0
        self.within = within  # groups within this one that all keys are in, while it is not divided
        self.keys: OrderedDict[K, None] = OrderedDict()
        self.parts: dict[Hashable, _Share[K]] | None = None
        self._of_size: dict[int, OrderedDict[Hashable, None]] = {}  # how many keys -> the parts that have so many
        self._largest = 0
        if within is None:
            self.parts = {}

    def add(self, key: K, within: Groups) -> None:
        self.size += 1
        if self.parts is None:
            if within == self.within:
                self.keys[key] = None
                return
            self._divide()
        self._add_to_part(key, within)

    def _divide(self) -> None:
        assert self.within is not None
        part: _Share[K] = _Share(self.within[1:])
        part.keys, part.size = self.keys, len(self.keys)
        self.keys, self.parts = OrderedDict(), {self.within[0]: part}
        self._resize(self.within[0], 0, part.size)

    def _add_to_part(self, key: K, within: Groups) -> None:
        assert self.parts is not None
        part = self.parts.get(within[0])
        if part is None:
            part = self.parts[within[0]] = _Share(within[1:])
        self._resize(within[0], part.size, part.size + 1)
        part.add(key, within[1:])

    def discard(self, key: K, within: Groups) -> None:
        self.size -= 1
        if self.parts is None:
            del self.keys[key]
            return
        part = self.parts[within[0]]
        self._resize(within[0], part.size, part.size - 1)
        part.discard(key, within[1:])
        if not part.size:
            del self.parts[within[0]]

    def touch(self, key: K, within: Groups) -> None:
        if self.parts is None:
            self.keys.move_to_end(key)
        else:
            self.parts[within[0]].touch(key, within[1:])

    def first_to_go(self, newest: bool) -> K:
        if self.parts is None:
            return next(reversed(self.keys) if newest else iter(self.keys))
        largest = self._of_size[self._largest]
        return self.parts[next(reversed(largest) if newest else iter(largest))].first_to_go(newest)

    def would_lose(self, within: Groups) -> bool:
        if self.parts is None:
            return within == self.within
        part = self.parts.get(within[0])
        return part is not None and part.size == self._largest and part.would_lose(within[1:])

    def _resize(self, group: Hashable, before: int, after: int) -> None:
        if before:
            of_size = self._of_size[before]
            del of_size[group]
            if not of_size:
                del self._of_size[before]
        if after:
            self._of_size.setdefault(after, OrderedDict())[group] = None
        if after > self._largest or self._largest not in self._of_size:
            self._largest = after  # sizes change by one, so the next largest is right beside


class FairTable(Generic[K]):
    """At most ``bound`` keys, each of a group. All operations take constant time, whatever the number of groups.

    With ``newest_goes`` a group that is too large loses its newest key, so that what was there first stays.
    """

    def __init__(self, bound: int, *, newest_goes: bool = False) -> None:
        if bound < 1:
            raise ValueError("a bound below 1 holds nothing")
        self.bound = bound
        self._newest_goes = newest_goes
        self._groups_of: dict[K, Groups] = {}
        self._all: _Share[K] = _Share(None)

    def __len__(self) -> int:
        return len(self._groups_of)

    def __contains__(self, key: object) -> bool:
        return key in self._groups_of

    def add(self, key: K, *groups: Hashable) -> K | None:
        """Add a key that is not in the table as the newest of its group.

        Args:
            key: The key.
            groups: Its group, and the groups within that, the widest first; of all keys equally many.

        Returns:
            The key that had to go, which can be ``key`` itself only when the bound is 1 or the newest go: the oldest
            (or newest) of the group with most keys, and among groups of equal size of the one that has had so many for
            longest (or shortest). None when all fit.
        """
        if key in self._groups_of:
            raise ValueError("a key is added once")
        self._groups_of[key] = groups
        self._all.add(key, groups)
        return self.evict() if len(self._groups_of) > self.bound else None

    def evict(self) -> K:
        """Remove the key that is the first to go, and return it.

        Raises LookupError when the table is empty.
        """
        key = self.first()
        self.discard(key)
        return key

    def first(self) -> K:
        """Return the key that is the first to go.

        Raises LookupError when the table is empty.
        """
        if not self._groups_of:
            raise LookupError("an empty table")
        return self._all.first_to_go(self._newest_goes)

    def would_lose(self, *groups: Hashable) -> bool:
        """True when one more key of these groups, and the first to go of the table then, would leave as many of them.

        Before others in these groups there are none that have more.
        """
        return self._all.would_lose(groups)

    def discard(self, key: K) -> None:
        """Remove a key; nothing happens when it is not there."""
        groups = self._groups_of.pop(key, None)
        if groups is not None:
            self._all.discard(key, groups)

    def touch(self, key: K) -> None:
        """Make a key the newest of its group, so that it goes last of them."""
        self._all.touch(key, self._groups_of[key])


@lru_cache(maxsize=4096)
def source_groups(host: str) -> Groups:
    """Return the groups of a source: its network (``network_of``), and in that its IPv4 address or its IPv6 /64.

    A host in the same network as a flood keeps its own share of it so. Text that is no IP address is a group of its
    own.
    """
    try:
        network = network_of(host)
    except ValueError:
        return host.encode(), host.encode()
    packed = ipaddress.ip_address(host.partition("%")[0]).packed
    return network, packed[-4:] if len(network) == 3 else packed[:8]


@lru_cache(maxsize=4096)
def source_shares(host: str) -> Groups:
    """Return the groups of a source as ``source_groups`` does, and before them the allocation that its network is of.

    That is the /32 of an IPv6 address, which a provider is allocated: 65,536 networks. A flood from all of them pushes
    out what is of the same /32, of other customers too, and nothing of another one.
    """
    network, part = source_groups(host)
    return allocation_of(network), network, part


def allocation_of(network: Hashable) -> Hashable:
    """Return the /32 of an IPv6 network (``network_of``); all others are their own."""
    return network[:4] if isinstance(network, bytes) and len(network) == 6 else network


@lru_cache(maxsize=4_096)
def network_of(host: str) -> bytes:
    """Return the network that one party is likely to own: the /24 of an IPv4 address, the /48 of an IPv6 address.

    An IPv4 address in IPv6 form counts as IPv4; a scope (``%eth0``) is ignored. Raises ValueError for a host that is
    no IP address.
    """
    ip = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            return ip.packed[:6]
        ip = ip.ipv4_mapped
    return ip.packed[:3]


@lru_cache(maxsize=1024)
def host_of(host: str) -> bytes:
    """Return what counts as one host: an IPv4 address, a link-local one on its link, the /64 of any other IPv6 one.

    A name counts as it is.
    """
    text, _, scope = host.partition("%")
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return host.encode()
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.packed
    return ip.packed + scope.encode() if ip.is_link_local else ip.packed[:8]
