"""What a node keeps over restarts: the number of its record, and the DHT contacts that find the mesh without a seed."""

from __future__ import annotations

import logging
from collections.abc import Callable

from meshnode.base.address import Addr, is_dialable, pack_addr, unpack_addr
from meshnode.base.clock import Clock
from meshnode.base.limits import MAX_RECORD_FUTURE_S, MAX_SAVED_CONTACTS
from meshnode.base.wire import decode, encode
from meshnode.identity.node_id import NodeId

log = logging.getLogger("meshnode.node")

SEQ_FILE, CONTACTS_FILE = "seq", "contacts"
LAST_SEQ = 2**63 - 1  # the most that a record may have
MAX_CONTACTS_FILE = 64 * MAX_SAVED_CONTACTS + 64


class SeqSource:
    """Numbers for our own records: increasing over restarts and steps of the clock, and never far ahead of it.

    A number is the wall clock in milliseconds, or one more than the last where the clock stands behind that. ``save``
    takes each: it need not be on the disk before it is used, since after a crash the clock is ahead of it. ``last`` is
    the saved one, 0 when there is none.

    Others refuse what is numbered more than ``MAX_RECORD_FUTURE_S`` ahead of their clocks, so a higher number is left,
    with a warning: this clock was ahead once, or is behind now.
    """

    def __init__(self, last: int, clock: Clock, save: Callable[[bytes], None]) -> None:
        self._last = last
        self._clock = clock
        self._save = save

    @property
    def last(self) -> int:
        """Return the last number, in milliseconds as a rule."""
        return self._last

    def next(self) -> int:
        """Return the next number."""
        wall = int(self._clock.wall() * 1000)
        if self._last > wall + MAX_RECORD_FUTURE_S * 1000:
            log.warning(
                "the record's last number is %.0f s ahead of the clock: the clock was ahead once, or is behind now; "
                "numbers begin at the clock again",
                self._last / 1000 - wall / 1000,
            )
            self._last = 0
        self._last = max(self._last + 1, wall)
        self._save(str(self._last).encode())
        return self._last

    def mark(self) -> None:
        """Save the time: a process that starts with an earlier one knows that the clock was set back."""
        self._save(str(max(self._last, int(self._clock.wall() * 1000))).encode())


def parse_seq(data: bytes) -> int:
    """Return the number in a saved file.

    Raises ValueError.
    """
    seq = int(data)
    if not 0 <= seq <= LAST_SEQ:
        raise ValueError("no number of a record")
    return seq


def pack_contacts(contacts: list[tuple[NodeId, Addr]]) -> bytes:
    """Return at most ``MAX_SAVED_CONTACTS`` contacts as they are saved."""
    return encode([[bytes(peer), pack_addr(addr)] for peer, addr in contacts[:MAX_SAVED_CONTACTS]])


def parse_contacts(data: bytes) -> list[tuple[NodeId, Addr]]:
    """Return the contacts in a saved file, those that can be dialled.

    Raises ValueError, TypeError.
    """
    items = decode(data, MAX_CONTACTS_FILE)
    if not isinstance(items, list):
        raise TypeError("no list")
    found = [(NodeId(raw), unpack_addr(packed)) for raw, packed in items]
    return [(peer, addr) for peer, addr in found if is_dialable(addr)]
