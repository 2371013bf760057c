"""Ranges of stream bytes beyond a hole, for aioquic: found by bisection, and few of one connection.

aioquic's own set is searched from its beginning for every range, so that frames of one byte, each beyond a hole of one,
cost the square of their number: 0.1 s for one datagram of them (measured), and up to 130 MB of memory a stream.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from operator import attrgetter
from typing import Any, Protocol

from aioquic.quic.rangeset import RangeSet

from meshnode.base.limits import MAX_HOLES

SORTED = "_RangeSet__ranges"  # the list of aioquic's set, which its other methods go on to use
STOP = attrgetter("stop")


class HasReceiver(Protocol):
    """A stream of aioquic's."""

    receiver: Any


class Holes:
    """How many ranges all streams of a connection may have, and the streams in which they are."""

    def __init__(self) -> None:
        self.streams: Iterable[HasReceiver] = ()
        self._count = 0  # never less than there are: those of streams that are over are still in it

    def grown(self) -> None:
        """Count another range.

        Raises ValueError when there are ``MAX_HOLES``.
        """
        self._count += 1
        if self._count > MAX_HOLES:
            self._count = 1 + sum(len(stream.receiver._ranges) for stream in self.streams)
            if self._count > MAX_HOLES:
                raise ValueError("too many holes in streams")

    def shrunk(self, count: int) -> None:
        """Count so many less."""
        self._count = max(0, self._count - count)


class Ranges(RangeSet):
    """The ranges of one stream."""

    def __init__(self, holes: Holes) -> None:
        super().__init__()
        self._holes = holes
        self._sorted: list[range] = getattr(self, SORTED)

    def add(self, start: int, stop: int | None = None) -> None:
        """Add a range, merged with those that it touches.

        Raises ValueError when the connection has too many.
        """
        stop = start + 1 if stop is None else stop
        found = self._sorted
        at = bisect_left(found, start, key=STOP)  # the first that ends at or behind the beginning of the new one
        if at == len(found) or stop < found[at].start:
            self._holes.grown()
            found.insert(at, range(start, stop))
            return
        end = at + 1
        while end < len(found) and found[end].start <= stop:
            end += 1
        found[at:end] = [range(min(start, found[at].start), max(stop, found[end - 1].stop))]
        self._holes.shrunk(end - at - 1)

    def shift(self) -> range:
        """Take the first range away and return it."""
        self._holes.shrunk(1)
        return self._sorted.pop(0)


class StreamsOf(dict[int, Any]):
    """The streams of one connection, whose ranges are counted together."""

    def __init__(self, holes: Holes) -> None:
        super().__init__()
        self._holes = holes
        holes.streams = self.values()

    def show(self, streams: list[Any] | None) -> None:
        """Have ``values`` return these streams alone; None ends it.

        An attribute of this object, not a method of the class: that would be one call more for every packet.
        """
        if streams is not None:
            self.values = lambda: streams  # type: ignore[method-assign, assignment, return-value]
        else:
            vars(self).pop("values", None)

    def __setitem__(self, stream_id: int, stream: Any) -> None:
        stream.receiver._ranges = Ranges(self._holes)
        super().__setitem__(stream_id, stream)
