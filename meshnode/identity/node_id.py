"""Node ids and key pairs: a node's address is its Ed25519 public key.

``NodeId`` text is lowercase base32 without padding (52 characters), so it is also a legal DNS label. The
overlay IPv6 address and the DHT key derive from it, so a record is found and verified from either.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from functools import cached_property, lru_cache

from meshnode.base.limits import MAX_KNOWN_IDS
from meshnode.errors import InvalidId

KEY_LENGTH = 32
MESH_SUFFIX = ".mesh"
MAX_LABEL = 40  # characters of a node's name: shorter than an id, so that no name looks like one
TEXT_LENGTH = 52
ID_FORM = f"an id has {TEXT_LENGTH} characters a-z and 2-7"
NAME_FORM = f"a name has 1 to {MAX_LABEL} of a-z, 0-9 and inner hyphens"
MAX_QUOTED = 60  # characters of a mistake that are shown


class NodeId:
    """The id of a node: its Ed25519 public key.

    Immutable, hashable, ordered by its bytes. ``str()`` gives 52 characters a-z and 2-7, ``bytes()`` the 32 bytes.

    Attributes:
        raw: The 32 bytes of the key.
    """

    __slots__ = ("__dict__", "_hash", "raw")
    raw: bytes

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_LENGTH:
            raise InvalidId(f"a node id has {KEY_LENGTH} bytes, not {len(raw)}")
        object.__setattr__(self, "raw", bytes(raw))
        object.__setattr__(self, "_hash", hash(raw))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a NodeId is immutable")

    def __reduce__(self) -> tuple[type[NodeId], tuple[bytes]]:
        return type(self), (self.raw,)  # of copies and pickles; another process has other hashes

    @classmethod
    def parse(cls, value: str | bytes | NodeId) -> NodeId:
        """Return the id that 32 bytes or text mean; an id is returned as it stands.

        Args:
            value: A NodeId, 32 bytes, or 52 characters, with or without ``.mesh``.

        Raises:
            InvalidId: It is none of these.
        """
        if isinstance(value, NodeId):
            return value
        if isinstance(value, bytes):
            return cls(value)
        if not isinstance(value, str):
            raise InvalidId(f"a node id is a text or 32 bytes, not {type(value).__name__}", hint=ID_FORM)
        text = value.strip().lower().removesuffix(".mesh")
        hint = f"{ID_FORM}; `meshnode id` prints a node's own"
        if len(text) != TEXT_LENGTH:
            raise InvalidId(f"{quoted(value)} is not a node id", hint=hint)
        try:
            return _of_text(text)
        except ValueError as error:
            raise InvalidId(f"{quoted(value)} is not a node id", hint=hint) from error

    def __bytes__(self) -> bytes:
        return self.raw

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        return base64.b32encode(self.raw).decode().rstrip("=").lower()

    def __repr__(self) -> str:
        return f"NodeId({self.short}…)"

    def __hash__(self) -> int:
        hashed: int = self._hash  # type: ignore[attr-defined]
        return hashed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NodeId) and self.raw == other.raw

    def __lt__(self, other: NodeId) -> bool:
        return self.raw < other.raw

    def __le__(self, other: NodeId) -> bool:
        return self.raw <= other.raw

    @cached_property
    def short(self) -> str:
        """The first 8 characters, for people; never for decisions."""
        return str(self)[:8]

    @cached_property
    def overlay(self) -> ipaddress.IPv6Address:
        """The node's overlay address: ``fd`` and 120 bits of a BLAKE2b of the key."""
        return ipaddress.IPv6Address(_overlay_bytes(self.raw))

    @cached_property
    def dht_key(self) -> bytes:
        """160 bits of a BLAKE2b of the overlay address: where the node's record is stored."""
        return _dht_key(_overlay_bytes(self.raw))


@lru_cache(maxsize=MAX_KNOWN_IDS)
def known_id(raw: bytes) -> NodeId:
    """Return the one NodeId object of these 32 bytes, for ids that come in every datagram.

    The object keeps its DHT key, and comparing it with itself is free. The ``MAX_KNOWN_IDS`` last used are shared; an
    id beyond them is another object, and equal. Raises InvalidId for any other length.
    """
    return NodeId(raw)


def dht_key_of(overlay: ipaddress.IPv6Address) -> bytes:
    """Return the 20-byte DHT key of an overlay address: BLAKE2b of its 16 bytes, personalised.

    From the address and not from the id, so that a node that knows only the address can look the record up.
    """
    return _dht_key(overlay.packed)


def _overlay_bytes(raw: bytes) -> bytes:
    return b"\xfd" + hashlib.blake2b(raw, digest_size=15, person=b"mesh-overlay").digest()


def _dht_key(overlay: bytes) -> bytes:
    return hashlib.blake2b(overlay, digest_size=20, person=b"mesh-dht-key").digest()


@lru_cache(1024)
def _of_text(text: str) -> NodeId:
    """Return the id of 52 lower-case characters; programs open stream after stream by one text. Raises ValueError."""
    node_id = NodeId(base64.b32decode(text.upper() + "===="))
    if str(node_id) != text:  # the last character carries spare bits: only one spelling counts
        raise ValueError("another spelling")
    return node_id


def is_label(text: str) -> bool:
    """Return whether a node may have this name: 1 to 40 of a-z, 0-9 and inner hyphens."""
    return (
        0 < len(text) <= MAX_LABEL
        and text.isascii()
        and all(c.islower() or c.isdigit() or c == "-" for c in text)
        and not (text.startswith("-") or text.endswith("-"))
    )


def quoted(text: object) -> str:
    """Return text that was given by mistake as messages show it: in quotes, and cut."""
    shown = str(text)
    return repr(shown if len(shown) <= MAX_QUOTED else f"{shown[: MAX_QUOTED - 1]}…")


def id_or_label(text: str) -> NodeId | str:
    """Return the id or the node's name that a text is, with or without ``.mesh``.

    Raises InvalidId.
    """
    try:
        return NodeId.parse(text.lower().removesuffix(MESH_SUFFIX))
    except InvalidId:
        label = label_of(text)
    if label is None:
        raise InvalidId(f"{quoted(text)} is neither a node id nor a name", hint=f"{ID_FORM}; {NAME_FORM}")
    return label


def is_id(text: str) -> bool:
    """Return whether a text is a node's id, with or without ``.mesh``."""
    try:
        NodeId.parse(text)
    except InvalidId:
        return False
    return True


def label_of(text: str) -> str | None:
    """Return the name in ``laptop`` or ``laptop.mesh``, in lower case; None when it is neither.

    An id is no name: it is longer.
    """
    label = text.lower().removesuffix(MESH_SUFFIX)
    return label if is_label(label) else None
