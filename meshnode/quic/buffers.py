"""Both ends of a stream's buffers: what was received and not taken, and the marks of what was written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from meshnode.base.limits import STREAM_HIGH_WATER, STREAM_LOW_WATER

PIECES = 64  # that one system call writes
WRITTEN = 1024  # streams whose bytes are counted before those that are over are looked for


class Marks(NamedTuple):
    """At how many unacknowledged bytes a writer that waits goes on, and above how many it waits."""

    low: int = STREAM_LOW_WATER
    high: int = STREAM_HIGH_WATER


class Unread(deque[bytes]):
    """Received pieces that the application has not taken; ``size`` is all of them in bytes."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def take(self, limit: int) -> bytes:
        """Take up to ``limit`` bytes, all when negative, of one piece or all pieces; there is one at least."""
        if limit < 0 or limit >= self.size:
            data = self[0] if len(self) == 1 else b"".join(self)
            self.clear()
        elif len(self[0]) <= limit:
            data = self.popleft()
        else:
            first = self[0]
            data = first[:limit]
            self[0] = first[limit:]
        self.size -= len(data)
        return data

    def first(self, limit: int) -> tuple[list[bytes | memoryview], int]:
        """Return the first pieces, ``PIECES`` at most and ``limit`` bytes, and their size; they stay."""
        found: list[bytes | memoryview] = []
        size = 0
        for piece in islice(self, PIECES):
            if size + len(piece) > limit:
                if not found:
                    return [memoryview(piece)[:limit]], limit
                break
            found.append(piece)
            size += len(piece)
        return found, size

    def drop(self, count: int) -> None:
        """Take ``count`` bytes and forget them; there are as many."""
        self.size -= count
        while count:
            first = self[0]
            if len(first) > count:
                self[0] = first[count:]
                return
            count -= len(first)
            self.popleft()


DEFAULT_MARKS = Marks()


class Written(dict[int, int]):
    """Bytes written by stream; ``most`` is how many streams there are before those that are over are looked for."""

    most = WRITTEN
    now = 0.0
    has_all: Callable[[int, int, float], bool] | None = None  # tells by stream, bytes and time whether all has arrived
    _sent: frozenset[int] = frozenset()

    def drop_sent(self, is_sent: Callable[[int], bool]) -> None:
        """Forget the streams that were sent to their ends at the last look already: that is to have arrived since.

        ``most`` is then twice what is left, so that it is rare however many streams there are.
        """
        sent = frozenset(key for key in self if is_sent(key))
        for key in sent & self._sent:
            del self[key]
        self._sent = sent - self._sent
        self.most = max(WRITTEN, 2 * len(self))
