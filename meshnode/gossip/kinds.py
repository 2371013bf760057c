"""The two kinds of entries that gossip itself reads: members of the mesh, and accusations of silent ones."""

from __future__ import annotations

from functools import lru_cache

from meshnode.base.limits import GOSSIP_MAX_OPENED, GOSSIP_MAX_STORED_ENTRY, MAX_RECORD
from meshnode.base.value import value
from meshnode.base.wire import WireError, decode, encode
from meshnode.errors import InvalidId, RecordError, RecordReject
from meshnode.gossip.entry import Entry
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord, open_record, read_record

NEEDED = 2  # accusers from which on a node believes that a member is gone
UNTIMELY = (RecordReject.EXPIRED, RecordReject.FUTURE)


@value
class Member:
    """Value of a MEMBER entry: the node lives, or has ``left`` the mesh.

    ``record`` is its encoded endpoint record, empty when it has none yet, or left. The entry's seq is the incarnation
    (SWIM, section 4.2).
    """

    left: bool
    record: bytes

    def encoded(self) -> bytes:
        """Return the value of the entry."""
        return encode([self.left, self.record])


GOODBYE = Member(True, b"").encoded()


@value
class Accusation:
    """Value and name of an ACCUSATION entry: its origin does not hear ``accused``.

    ``incarnation`` is the seq of the newest member entry of the accused that the origin knows.
    """

    accused: NodeId
    incarnation: int

    def encoded(self) -> bytes:
        """Return the value of the entry; its name is the accused."""
        return encode(self.incarnation)


def parse_member(entry: Entry) -> Member | None:
    """Return what a MEMBER entry says; None when it is malformed, or its record is not its origin's.

    The record need not be valid at present: it was when the entry was issued, or its clock differed.
    """
    if entry.name or entry.value is None:
        return None
    return _member(entry.origin, entry.value, entry.issued)


def record_in(entry: Entry) -> EndpointRecord | None:
    """Return the record in a MEMBER entry that was parsed and verified when it came; None when it has none."""
    fields = decode(entry.value, GOSSIP_MAX_STORED_ENTRY) if entry.value is not None else None
    return read_record(fields[1]) if isinstance(fields, list) and fields[1] else None


def parse_accusation(entry: Entry) -> Accusation | None:
    """Return what an ACCUSATION entry says; None when it is malformed.

    A node does not accuse itself, nor an incarnation above the entry's own seq: so a node that lives can always go
    above it and refute.
    """
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
    if record and (left or not _is_record(record, origin, issued_ms)):
        return None
    return Member(left, record)


def _is_record(record: bytes, origin: NodeId, issued_ms: int) -> bool:
    if len(record) > MAX_RECORD:
        return False
    try:
        open_record(record, issued_ms / 1000, expected=origin)
    except RecordError as error:
        return error.reason in UNTIMELY
    return True


@lru_cache(maxsize=GOSSIP_MAX_OPENED)
def _accusation(origin: NodeId, name: str, value: bytes) -> Accusation | None:
    try:
        accused, incarnation = NodeId.parse(name), decode(value, 16)
    except (InvalidId, WireError):
        return None
    if type(incarnation) is not int or not 0 <= incarnation <= 2**53 or str(accused) != name or accused == origin:
        return None
    return Accusation(accused, incarnation)
