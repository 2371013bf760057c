"""The two kinds of entries that gossip itself understands: who is a member, and who is accused of silence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from meshnode.base.limits import GOSSIP_MAX_OPENED, GOSSIP_MAX_STORED_ENTRY, MAX_RECORD
from meshnode.base.wire import WireError, decode, encode
from meshnode.errors import InvalidId, RecordError, RecordReject
from meshnode.gossip.entry import Entry
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import open_record

NEEDED = 2  # accusers that it takes until a node believes that a member is gone
UNTIMELY = (RecordReject.EXPIRED, RecordReject.FUTURE)


@dataclass(frozen=True, slots=True)
class Member:
    """A node lives, with this encoded endpoint record (empty: it has none yet), or leaves; seq is the incarnation."""

    left: bool
    record: bytes

    def encoded(self) -> bytes:
        """The value of the entry."""
        return encode([self.left, self.record])


@dataclass(frozen=True, slots=True)
class Accusation:
    """The entry's origin does not hear ``accused``, whose newest member entry it knows as ``incarnation``."""

    accused: NodeId
    incarnation: int

    def encoded(self) -> bytes:
        """The value of the entry; its name is the accused."""
        return encode(self.incarnation)


def parse_member(entry: Entry) -> Member | None:
    """What a MEMBER entry says; None when it is none, or its record is not its origin's."""
    if entry.name or entry.value is None:
        return None
    return _member(entry.origin, entry.value, entry.issued)


def parse_accusation(entry: Entry) -> Accusation | None:
    """What an ACCUSATION entry says; None when it is none. Nobody accuses himself, or what is still to come: its seq
    is at least the incarnation, so that whoever lives can always go above it and refute."""
    if entry.value is None:
        return None
    found = _accusation(entry.origin, entry.name, entry.value)
    return found if found is not None and found.incarnation <= entry.seq else None


@lru_cache(maxsize=GOSSIP_MAX_OPENED)
def _member(origin: NodeId, value: bytes, issued_ms: int) -> Member | None:
    try:
        fields = decode(value, GOSSIP_MAX_STORED_ENTRY)
    except WireError:
        return None
    if not isinstance(fields, list) or len(fields) != 2 or type(fields[0]) is not bool or type(fields[1]) is not bytes:
        return None
    left, record = fields
    if len(record) > MAX_RECORD or (left and record):
        return None
    if record:
        try:
            open_record(record, issued_ms / 1000, expected=origin)
        except RecordError as error:
            if error.reason not in UNTIMELY:
                return None
    return Member(left, record)


@lru_cache(maxsize=GOSSIP_MAX_OPENED)
def _accusation(origin: NodeId, name: str, value: bytes) -> Accusation | None:
    try:
        accused, incarnation = NodeId.parse(name), decode(value, 16)
    except (InvalidId, WireError):
        return None
    if type(incarnation) is not int or not 0 <= incarnation <= 2**53 or str(accused) != name or accused == origin:
        return None
    return Accusation(accused, incarnation)
