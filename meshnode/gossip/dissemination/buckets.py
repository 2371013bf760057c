"""Stored entries by id, in buckets with fingerprints, which two nodes compare to find what one lacks. Sans I/O."""

from __future__ import annotations

from collections.abc import Iterator

from meshnode.gossip.entry import Entry
from meshnode.gossip.messages import BUCKETS


class Buckets:
    """Entries by id. ``prints`` are the fingerprints of the 256 buckets of ids (XOR)."""

    def __init__(self) -> None:
        self.prints = [0] * BUCKETS
        self._entries: list[dict[bytes, Entry]] = [{} for _ in range(BUCKETS)]
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Entry]:
        return (entry for bucket in self._entries for entry in bucket.values())

    def get(self, item: bytes) -> Entry | None:
        """Return the entry of this id."""
        return self._entries[item[0]].get(item)

    def payload(self, item: bytes) -> bytes | None:
        """Return the bytes of the entry of this id."""
        entry = self.get(item)
        return entry.encoded if entry is not None else None

    def add(self, entry: Entry) -> None:
        """Add an entry that is not here."""
        index = entry.id[0]
        self._size += 1
        self._entries[index][entry.id] = entry
        self.prints[index] ^= int.from_bytes(entry.id, "big")

    def remove(self, entry: Entry) -> None:
        """Remove an entry that is here."""
        index = entry.id[0]
        self._size -= 1
        del self._entries[index][entry.id]
        self.prints[index] ^= int.from_bytes(entry.id, "big")

    def bucket(self, index: int, count: int) -> list[bytes]:
        """Return the ids in one of ``count`` buckets, a power of two up to ``BUCKETS``.

        An id is in the bucket of its leading bits.
        """
        step = BUCKETS // count
        return [item for part in self._entries[index * step : (index + 1) * step] for item in part]

    def folded(self, count: int) -> tuple[int, ...]:
        """Return the fingerprints of ``count`` buckets, a power of two up to ``BUCKETS``.

        A fingerprint is the XOR of the bucket's ids as big-endian integers, 0 for an empty one.
        """
        if count == BUCKETS:
            return tuple(self.prints)
        step, found = BUCKETS // count, []
        for begin in range(0, BUCKETS, step):
            together = 0
            for part in self.prints[begin : begin + step]:
                together ^= part
            found.append(together)
        return tuple(found)
