"""What a late joiner of a topic collects before it gets its first message. Sans I/O."""

from __future__ import annotations

from collections.abc import Sequence

from meshnode.gossip.entry import Entry

DISORDER = 8  # the latest messages to reach a neighbour need not be the latest that were published


class Replay:
    """Up to ``count`` old messages that neighbours are asked for, and the new ones that come meanwhile.

    ``until`` is the monotonic time at which what has come is delivered.
    """

    def __init__(self, count: int, until: float) -> None:
        self.until = until
        self._count = count
        self._wanted: dict[bytes, None] = {}
        self._old: list[Entry] = []
        self._fresh: list[Entry] = []

    def choose(self, ids: Sequence[bytes]) -> tuple[bytes, ...]:
        """Return the ids that a neighbour is to be asked for: the last of its latest ids, which are oldest first.

        They are ``DISORDER`` more than will be delivered, since neighbours need not agree on the latest.
        """
        chosen = tuple(ids[-(self._count + DISORDER) :])
        self._wanted.update(dict.fromkeys(chosen))
        return chosen

    def awaits(self, item: bytes) -> bool:
        """Return whether an id was asked for and has not come."""
        return item in self._wanted

    def add(self, entry: Entry) -> None:
        """Keep a verified message until the end."""
        if entry.id in self._wanted:
            del self._wanted[entry.id]
            self._old.append(entry)
        else:
            self._fresh.append(entry)

    def entries(self) -> list[Entry]:
        """Return the latest ``count`` old messages as they were published, then the new ones as they came.

        The order of old messages is by time of publication, then number, then sender: the same at every node whose
        neighbours have the same messages.
        """
        old = sorted(self._old, key=lambda entry: (entry.issued, entry.seq, entry.origin))
        return [*old[-self._count :], *self._fresh]
