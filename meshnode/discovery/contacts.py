"""DHT contacts on disk, so that a node finds its mesh again when every seed is gone. CBOR, atomic."""

from __future__ import annotations

from pathlib import Path

from meshnode.address import Addr, is_dialable, pack_addr, unpack_addr
from meshnode.identity import NodeId
from meshnode.limits import MAX_SAVED_CONTACTS
from meshnode.storage import write_atomic
from meshnode.wire import decode, encode

MAX_FILE = 64 * MAX_SAVED_CONTACTS + 64


def save_contacts(path: Path, contacts: list[tuple[NodeId, Addr]]) -> None:
    """Write at most ``MAX_SAVED_CONTACTS`` contacts. Raises OSError."""
    write_atomic(path, encode([[bytes(peer), pack_addr(addr)] for peer, addr in contacts[:MAX_SAVED_CONTACTS]]))


def load_contacts(path: Path) -> list[tuple[NodeId, Addr]]:
    """Read what ``save_contacts`` wrote; a missing or damaged file means none."""
    try:
        items = decode(path.read_bytes(), MAX_FILE)
        found = [(NodeId(raw), unpack_addr(packed)) for raw, packed in items]
    except (OSError, ValueError, TypeError):
        return []
    return [(peer, addr) for peer, addr in found if is_dialable(addr)]
