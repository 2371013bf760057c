"""A bounded table that attackers cannot take from others: when it is full, the group with most entries loses one.

A bound that is shared by all is taken by whichever sender is fastest, and ids are free, so a share for each id bounds
nothing. Here entries belong to groups that cost something to have, such as source networks (``network_of``): a flood
from one network pushes out its own entries, and the few of every other network stay.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class FairTable(Generic[K]):
    """At most ``bound`` keys, each of a group. All operations take constant time, whatever the number of groups."""

    def __init__(self, bound: int) -> None:
        if bound < 1:
            raise ValueError("a bound below 1 holds nothing")
        self.bound = bound
        self._group_of: dict[K, Hashable] = {}
        self._groups: dict[Hashable, OrderedDict[K, None]] = {}
        self._of_size: dict[int, OrderedDict[Hashable, None]] = {}  # how many keys -> the groups that have so many
        self._largest = 0

    def __len__(self) -> int:
        return len(self._group_of)

    def __contains__(self, key: object) -> bool:
        return key in self._group_of

    def add(self, key: K, group: Hashable) -> K | None:
        """Add a key that is not in the table as the newest of its group.

        Returns:
            The key that had to go, which can be ``key`` itself only when the bound is 1: the oldest of the group with
            most keys, and among groups of equal size of the one that has had so many for longest. None when all fit.
        """
        if key in self._group_of:
            raise ValueError("a key is added once")
        self._group_of[key] = group
        keys = self._groups.setdefault(group, OrderedDict())
        self._resize(group, len(keys), len(keys) + 1)
        keys[key] = None
        if len(self._group_of) <= self.bound:
            return None
        most = next(iter(self._of_size[self._largest]))
        oldest = next(iter(self._groups[most]))
        self.discard(oldest)
        return oldest

    def discard(self, key: K) -> None:
        """Remove a key; nothing happens when it is not there."""
        if key not in self._group_of:
            return
        group = self._group_of.pop(key)
        keys = self._groups[group]
        self._resize(group, len(keys), len(keys) - 1)
        del keys[key]
        if not keys:
            del self._groups[group]

    def touch(self, key: K) -> None:
        """Make a key the newest of its group, so that it goes last of them."""
        self._groups[self._group_of[key]].move_to_end(key)

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
