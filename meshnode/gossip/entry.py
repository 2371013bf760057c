"""Entries, which gossip carries. Each is signed and numbered by its origin, and expires.

An envelope (``identity/envelope.py``) of ``DOMAIN`` around the array
``[version, origin, kind, name, seq, issued ms, ttl s, value]``; ``value`` is bytes, or null for a tombstone. At
most 4,096 bytes in all. Of entries with the same (origin, kind, name) the one with the highest seq counts; an
origin numbers all of its entries with one counter, never below the wall clock's milliseconds. Stored kinds are limited
to 1,536 bytes, fleeting ones to 60 s.
"""

from __future__ import annotations

import hashlib
from enum import Enum, IntEnum
from functools import lru_cache

from meshnode.base.limits import (
    GOSSIP_MAX_ENTRY,
    GOSSIP_MAX_FLEETING_TTL_S,
    GOSSIP_MAX_FUTURE_S,
    GOSSIP_MAX_NAME,
    GOSSIP_MAX_OPENED,
    GOSSIP_MAX_STORED_ENTRY,
    GOSSIP_MAX_TTL_S,
)
from meshnode.base.metrics import describe
from meshnode.base.value import value
from meshnode.identity.envelope import SIGNATURE_LENGTH, EnvelopeError, open_envelope, sign_envelope, verify_envelope
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import KEY_LENGTH, NodeId, known_id

DOMAIN = b"meshnode gossip entry v1\x00"
VERSION = 1
ID_LENGTH = 8
MAX_KIND = 0xFFFF
# of version, kind, seq, issued and ttl; seq and issued are exact in any language
RANGES = (VERSION, VERSION), (0, MAX_KIND), (0, 2**53), (0, 2**53), (1, GOSSIP_MAX_TTL_S)

ORIGIN_AT = SIGNATURE_LENGTH + 4  # in the encoding: an array of 8, the version, and a byte string of 32

Key = tuple[NodeId, int, str]


class Kind(IntEnum):
    """Kinds of entries. Nodes pass on kinds that they do not know.

    Below 16 they are stored (the newest of each key) and reconciled; from 16 on they are fleeting: passed on once,
    within their ttl of at most 60 s.
    """

    MEMBER = 1  # name "": a node's record, or that it leaves
    ACCUSATION = 2  # name: the id of the accused; value: the seq of the member entry that it is about
    SERVICE = 8
    NAME = 9
    SUBSCRIPTION = 10
    REDEMPTION = 11  # name: the id of an invitation; value: the grants that prove that the origin joined by it
    GRANTS = 12  # name "": the grants of the origin
    TOPIC = 16


FIRST_FLEETING = 16


class Put(Enum):
    """Result of offering an entry to a store."""

    NEW = "new"
    KNOWN = "known"
    STALE = "stale"  # a newer one of its key is known
    FULL = "full"  # newer ones fill its kind, or its origin's share


class EntryReject(Enum):
    """Reason for dropping an entry that a peer sent; each is a counter, ``gossip_drop_<value>``."""

    OVERSIZED = "oversized"
    MALFORMED = "malformed"
    NOT_CANONICAL = "not_canonical"
    FUTURE = "future"
    EXPIRED = "expired"
    UNFIT = "unfit"
    FORGED = "forged"


REJECTED = {
    EntryReject.OVERSIZED: describe("gossip_drop_oversized", "entries dropped: longer than an entry may be"),
    EntryReject.MALFORMED: describe("gossip_drop_malformed", "entries dropped: not an entry"),
    EntryReject.NOT_CANONICAL: describe("gossip_drop_not_canonical", "entries dropped: not the canonical encoding"),
    EntryReject.FUTURE: describe("gossip_drop_future", "entries dropped: issued in the future, or numbered so"),
    EntryReject.EXPIRED: describe("gossip_drop_expired", "entries dropped: expired"),
    EntryReject.UNFIT: describe(
        "gossip_drop_unfit", "entries dropped: malformed for their kind (size, ttl, name, value)"
    ),
    EntryReject.FORGED: describe("gossip_drop_forged", "entries dropped: not signed by the origin that they name"),
}


@value
class Entry:
    """A verified (or just signed) entry. ``issued`` is Unix milliseconds, ``ttl`` seconds, ``id`` names the bytes.

    ``size`` is the length of the value, which is the end of ``encoded`` (None: there is no value): a node keeps
    thousands of entries, and each value once.
    """

    origin: NodeId
    kind: int
    name: str
    seq: int
    issued: int
    ttl: int
    size: int | None
    encoded: bytes
    id: bytes

    @property
    def value(self) -> bytes | None:
        """Return the value; None for a tombstone, which withdraws the earlier entry of the same key."""
        return None if self.size is None else self.encoded[len(self.encoded) - self.size :]

    @property
    def key(self) -> Key:
        """Return origin, kind and name: of two entries with the same key, the one with the higher seq counts.

        With equal seqs, which only an origin that lost its state makes, it is the one whose bytes are greater.
        """
        return self.origin, self.kind, self.name

    @property
    def expires(self) -> float:
        """Return the Unix seconds after which no node may use or pass on the entry."""
        return self.issued / 1000 + self.ttl

    @property
    def fleeting(self) -> bool:
        """Return whether entries of this kind are passed on once and not kept."""
        return self.kind >= FIRST_FLEETING


def id_of(encoded: bytes) -> bytes:
    """Return the 8 bytes that stand for an entry on the wire: BLAKE2b-64 of its encoding.

    Two entries with one id can be found with about 2**32 hashes, but only among entries that the finder signs: they
    hide each other, and no other node's.
    """
    return hashlib.blake2b(encoded, digest_size=ID_LENGTH, person=b"mesh-entry").digest()


def sign_entry(
    identity: Identity, *, kind: int, name: str, seq: int, issued_ms: int, ttl: int, value: bytes | None
) -> Entry:
    """Return a signed entry; ``issued_ms`` is Unix milliseconds, ``ttl`` seconds, None as ``value`` a tombstone.

    Raises ValueError for what every receiver would drop: a kind, name or ttl out of range, or more than 1,536 bytes
    (of a fleeting kind 4,096) in all.
    """
    if not 0 <= kind <= MAX_KIND or len(name) > GOSSIP_MAX_NAME or not 0 < ttl <= GOSSIP_MAX_TTL_S:
        raise ValueError("kind, name or ttl out of range")
    if kind >= FIRST_FLEETING and ttl > GOSSIP_MAX_FLEETING_TTL_S:
        raise ValueError(f"a fleeting entry lives at most {GOSSIP_MAX_FLEETING_TTL_S} s")
    most = GOSSIP_MAX_ENTRY if kind >= FIRST_FLEETING else GOSSIP_MAX_STORED_ENTRY
    fields = [VERSION, bytes(identity.id), kind, name, seq, issued_ms, ttl, value]
    try:
        encoded = sign_envelope(identity, DOMAIN, fields, most)
    except EnvelopeError as error:
        raise ValueError(f"an entry of this kind has {error}") from error
    size = None if value is None else len(value)
    return Entry(identity.id, kind, name, seq, issued_ms, ttl, size, encoded, id_of(encoded))


def claimed_origin(encoded: bytes) -> NodeId | None:
    """Return the origin that bytes name, if they are an entry, which is not looked at; None when they are too short."""
    raw = encoded[ORIGIN_AT : ORIGIN_AT + KEY_LENGTH]
    return known_id(raw) if len(raw) == KEY_LENGTH else None


def latest_ms(wall: float) -> float:
    """Return the latest date and number, in Unix milliseconds, that an entry may have now."""
    return (wall + GOSSIP_MAX_FUTURE_S) * 1000


def open_entry(encoded: bytes, wall: float) -> Entry | EntryReject:
    """Verify an entry that a peer sent, with the cheapest checks first; never raises.

    Returns the reason when it is dropped. ``wall`` is Unix seconds: the entry may be issued, and numbered, up to
    ``GOSSIP_MAX_FUTURE_S`` later than that. The signature comes last, since it costs the most.
    """
    entry = read_entry(encoded, wall)
    return entry if isinstance(entry, EntryReject) or is_signed(entry) else EntryReject.FORGED


def read_entry(encoded: bytes, wall: float) -> Entry | EntryReject:
    """Do what ``open_entry`` does, without the signature: the entry counts only when ``is_signed`` too."""
    if len(encoded) > GOSSIP_MAX_ENTRY:
        return EntryReject.OVERSIZED  # and is not kept in the cache
    entry = _parsed(encoded)
    if isinstance(entry, EntryReject):
        return entry
    if entry.fleeting:
        if entry.ttl > GOSSIP_MAX_FLEETING_TTL_S:
            return EntryReject.UNFIT
    elif len(encoded) > GOSSIP_MAX_STORED_ENTRY:
        return EntryReject.UNFIT
    latest = latest_ms(wall)
    if entry.issued > latest or entry.seq > latest:
        return EntryReject.FUTURE
    return EntryReject.EXPIRED if entry.expires < wall else entry


def is_signed(entry: Entry) -> bool:
    """Return whether the origin signed an entry."""
    return _signed(entry.encoded, entry.origin)


# An entry that is dropped may come again over other links; a stored one is known by its id, and not opened again.
@lru_cache(maxsize=GOSSIP_MAX_OPENED)
def _parsed(encoded: bytes) -> Entry | EntryReject:
    try:
        return _parse(open_envelope(encoded, GOSSIP_MAX_ENTRY), encoded)
    except EnvelopeError as error:
        return EntryReject(error.reason.value)
    except (ValueError, TypeError):
        return EntryReject.MALFORMED


@lru_cache(maxsize=GOSSIP_MAX_OPENED)
def _signed(encoded: bytes, origin: NodeId) -> bool:
    return verify_envelope(origin, DOMAIN, encoded)


def _parse(fields: object, encoded: bytes) -> Entry:
    """Return the entry of an envelope's fields, its signature unchecked. Raises ValueError."""
    if not isinstance(fields, list) or len(fields) != 8:
        raise ValueError("wrong fields")
    version, raw, kind, name, seq, issued, ttl, value = fields
    if not all(map(_is_between, (version, kind, seq, issued, ttl), RANGES)):
        raise ValueError("number out of range")
    if not isinstance(raw, bytes) or len(raw) != KEY_LENGTH:
        raise ValueError("wrong origin")
    if not isinstance(name, str) or len(name) > GOSSIP_MAX_NAME:
        raise ValueError("wrong name")
    if not isinstance(value, bytes | None):
        raise ValueError("wrong value")
    size = None if value is None else len(value)
    return Entry(known_id(raw), kind, name, seq, issued, ttl, size, encoded, id_of(encoded))


def _is_between(number: object, bounds: tuple[int, int]) -> bool:
    return type(number) is int and bounds[0] <= number <= bounds[1]
