"""DHT messages: bodies of sealed datagrams, one kind byte (0x10 to 0x1b) and a canonical CBOR array.

The seal proves which node sent a body, so only records are signed. It does not prove where the
sender is: requests whose answer may be long carry padding, and an answer is never longer than its request
until the sender has shown, with a token bound to its address, that it receives there.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

from meshnode.base.address import Addr, pack_addr, unpack_dialable
from meshnode.base.limits import DHT_MAX_BODY, DHT_MAX_CONTACTS, DHT_MAX_WATCH_S, MAX_RECORD
from meshnode.base.value import value
from meshnode.base.wire import WireError, as_bytes, as_number, decode, encode
from meshnode.identity.node_id import NodeId, known_id

TX_LENGTH = 8
TOKEN_LENGTH = 8
KEY_LENGTH = 20
PAD_OVERHEAD = 3  # kind byte, and what a CBOR byte string's length grows by from empty to hundreds


class ContactInfo(NamedTuple):
    """A node and an address where it answered the node that names it."""

    id: NodeId
    addr: Addr


class Status(IntEnum):
    """How a STORE or WATCH went."""

    OK = 0
    HAVE_NEWER = 1
    NEED_TOKEN = 2  # the answer carries the token to come back with
    FULL = 3
    INVALID = 4


@value
class Ping:
    """Ask whether the node receives at this address."""

    tx: bytes


@value
class Pong:
    """Answer to Ping, with a token for the asking address."""

    tx: bytes
    token: bytes


@value
class Find:
    """Ask for the nodes near ``key`` (padded)."""

    tx: bytes
    key: bytes


@value
class Nodes:
    """Answer to Find."""

    tx: bytes
    token: bytes
    contacts: tuple[ContactInfo, ...]


@value
class Get:
    """Ask as Find does, and for the record of ``key`` if it is held (padded)."""

    tx: bytes
    key: bytes


@value
class Value:
    """Answer to Get; ``record`` is empty when not held."""

    tx: bytes
    token: bytes
    contacts: tuple[ContactInfo, ...]
    record: bytes


@value
class Store:
    """Ask to hold a record. A newer one of a key that is held needs no token: it proves itself."""

    tx: bytes
    token: bytes
    record: bytes


@value
class Stored:
    """Answer to Store."""

    tx: bytes
    status: Status
    token: bytes


@value
class Watch:
    """Ask for pushes of records of ``key`` newer than ``seq`` to this address, for ``seconds``; 0 ends the watch.

    Padded when it carries no token.
    """

    tx: bytes
    token: bytes
    key: bytes
    seq: int
    seconds: int


@value
class Watched:
    """Answer to Watch, at once with a newer record when there is one."""

    tx: bytes
    status: Status
    token: bytes
    record: bytes


@value
class Push:
    """A newer record of a key that is watched."""

    tx: bytes
    record: bytes


@value
class PushAck:
    """Answer to Push."""

    tx: bytes


Message = Ping | Pong | Find | Nodes | Get | Value | Store | Stored | Watch | Watched | Push | PushAck
Request = Ping | Find | Get | Store | Watch | Push
Reply = Pong | Nodes | Value | Stored | Watched | PushAck

REPLY_TO: dict[type, type] = {Ping: Pong, Find: Nodes, Get: Value, Store: Stored, Watch: Watched, Push: PushAck}

# kind byte -> class and its fields on the wire, in order; "pad" is zeros that are not read. A kind byte stands for its
# message for ever: it is never changed and never given to another one.
MESSAGES: dict[int, tuple[type[Any], tuple[str, ...]]] = {
    0x10: (Ping, ("tx", "pad")),
    0x11: (Pong, ("tx", "token")),
    0x12: (Find, ("tx", "key", "pad")),
    0x13: (Nodes, ("tx", "token", "contacts")),
    0x14: (Get, ("tx", "key", "pad")),
    0x15: (Value, ("tx", "token", "contacts", "record")),
    0x16: (Store, ("tx", "token", "record")),
    0x17: (Stored, ("tx", "status", "token")),
    0x18: (Watch, ("tx", "token", "key", "seq", "seconds", "pad")),
    0x19: (Watched, ("tx", "status", "token", "record")),
    0x1A: (Push, ("tx", "record")),
    0x1B: (PushAck, ("tx",)),
}
ANSWERS = frozenset(kind for kind, (cls, _) in MESSAGES.items() if cls in REPLY_TO.values())
_KIND_OF = {cls: kind for kind, (cls, _) in MESSAGES.items()}
FIRST_KIND, LAST_KIND = min(MESSAGES), max(MESSAGES)


class ContactsError(WireError):
    """Too many contacts, or ones that cannot be dialled."""


def encode_message(message: Message, *, pad_to: int = 0) -> bytes:
    """Return the body; padded kinds are filled with zeros up to ``pad_to`` bytes."""
    kind = _KIND_OF[type(message)]
    fields = [_to_wire(message, name) for name in MESSAGES[kind][1]]
    body = bytes([kind]) + encode(fields)
    if pad_to and MESSAGES[kind][1][-1] == "pad" and len(body) + PAD_OVERHEAD <= pad_to:
        missing = pad_to - len(body)
        fields[-1] = bytes(missing - (0 if missing < 24 else 1 if missing < 257 else 2))
        body = bytes([kind]) + encode(fields)
    return body


def decode_message(body: bytes) -> Message:
    """Parse a body.

    Raises WireError (ContactsError for its contacts) and nothing else.
    """
    spec = MESSAGES.get(body[0]) if body else None
    if spec is None:
        raise WireError("no DHT message")
    cls, names = spec
    fields = decode(body[1:], DHT_MAX_BODY)
    if not isinstance(fields, list) or len(fields) != len(names):
        raise WireError("wrong number of fields")
    values = [_FROM_WIRE[name](field) for name, field in zip(names, fields, strict=True)]
    if names[-1] == "pad":
        values.pop()
    message: Message = cls(*values)
    return message


def _to_wire(message: Message, name: str) -> object:
    if name == "pad":
        return b""
    value = getattr(message, name)
    if name == "contacts":
        return b"".join([pack_contact(c) for c in value])
    return int(value) if isinstance(value, int) else value


@lru_cache(maxsize=4096)
def pack_contact(contact: ContactInfo) -> bytes:
    """Length of the packed address, the address, the id."""
    packed = pack_addr(contact.addr)
    return bytes([len(packed)]) + packed + contact.id.raw


def _contacts(value: object) -> tuple[ContactInfo, ...]:
    data = as_bytes(value, 0, DHT_MAX_BODY)
    contacts: list[ContactInfo] = []
    i = 0
    while i < len(data):
        end = i + 1 + data[i]
        raw = data[end : end + 32]
        if len(raw) != 32 or len(contacts) == DHT_MAX_CONTACTS:
            raise ContactsError("too many contacts, or half a one")
        contacts.append(_contact(raw, data[i + 1 : end]))
        i = end + 32
    return tuple(contacts)


@lru_cache(maxsize=4096)  # the same few contacts come in most answers; parsing one costs 20 us
def _contact(raw: bytes, packed: bytes) -> ContactInfo:
    try:
        return ContactInfo(known_id(raw), unpack_dialable(packed))
    except ValueError as error:
        raise ContactsError("an address of no known length, or one that cannot be dialled") from error


def _status(value: object) -> Status:
    return Status(as_number(value, 0, len(Status) - 1))


_FROM_WIRE: dict[str, Callable[[object], object]] = {
    "tx": lambda v: as_bytes(v, TX_LENGTH, TX_LENGTH),
    "token": lambda v: as_bytes(v, 0, TOKEN_LENGTH),
    "key": lambda v: as_bytes(v, KEY_LENGTH, KEY_LENGTH),
    "contacts": _contacts,
    "record": lambda v: as_bytes(v, 0, MAX_RECORD),
    "status": _status,
    "seq": lambda v: as_number(v, 0, 2**63 - 1),
    "seconds": lambda v: as_number(v, 0, DHT_MAX_WATCH_S),
    "pad": lambda v: as_bytes(v, 0, DHT_MAX_BODY),
}
