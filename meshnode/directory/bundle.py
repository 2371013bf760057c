"""Offers in the DHT: the entries of services and names, found by their kind and name, several in one value.

The value of such a key is a *bundle*: up to six entries as gossip carries them, each signed by its own node. It is the
signature of the first entry, then the canonical CBOR array ``[its body, entry, entry, ...]``; so the byte behind the
first 64 tells it from a record (``0x88``) and from a revocation (``0x87``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from meshnode.base.limits import MAX_RECORD
from meshnode.base.wire import WireError, as_bytes, as_list, decode, encode
from meshnode.gossip.entry import Entry, Kind
from meshnode.identity.envelope import SIGNATURE_LENGTH

KEY_LENGTH = 20
MOST = 6  # entries of a bundle: an array of 7 items is a revocation, one of 8 a record
HEADS = range(0x81, 0x81 + MOST)
OVERHEAD = 4  # bytes of a bundle of one entry beside it
KINDS = (Kind.SERVICE, Kind.NAME)


def dht_key_of(kind: int, name: str) -> bytes:
    """Return the key under which the DHT has what nodes offer of a kind and a name."""
    data = bytes([kind]) + name.encode()
    return hashlib.blake2b(data, digest_size=KEY_LENGTH, person=b"mesh-offer-dht").digest()


def fits(entry: Entry) -> bool:
    """Return whether an entry is short enough for the DHT."""
    return len(entry.encoded) + OVERHEAD <= MAX_RECORD


def make_bundle(entries: Sequence[bytes]) -> bytes:
    """Return a bundle of one to ``MOST`` entries. Raises ValueError for none or more."""
    if not 1 <= len(entries) <= MOST:
        raise ValueError(f"a bundle has 1 to {MOST} entries")
    first, *rest = entries
    return first[:SIGNATURE_LENGTH] + encode([first[SIGNATURE_LENGTH:], *rest])


def open_bundle(data: bytes) -> list[bytes]:
    """Return the entries of a bundle, none of them looked at; none when bytes are no bundle."""
    if len(data) > MAX_RECORD:
        return []
    try:
        body, *rest = as_list(decode(data[SIGNATURE_LENGTH:], MAX_RECORD), MOST) or [None]
        first = data[:SIGNATURE_LENGTH] + as_bytes(body, 1, MAX_RECORD)
        return [first, *(as_bytes(entry, SIGNATURE_LENGTH + 1, MAX_RECORD) for entry in rest)]
    except WireError:
        return []


def is_bundle(data: bytes) -> bool:
    """Return whether bytes are laid out like a bundle, and not like a record; nothing is verified."""
    return len(data) > SIGNATURE_LENGTH and data[SIGNATURE_LENGTH] in HEADS
