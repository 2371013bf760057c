"""What neighbours say to each other, byte for byte (docs/reference/wire-format.md).

A message is the canonical CBOR array ``[type, ...]`` in a GOSSIP frame of the control stream. Every field is bounded
here, so that the cores need not look again. ``decode_message`` raises WireError and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from meshnode.base.limits import (
    GOSSIP_MAX_CONTACTS,
    GOSSIP_MAX_ENTRY,
    GOSSIP_MAX_HOPS,
    GOSSIP_MAX_IDS,
    GOSSIP_MAX_TELL_IDS,
    MAX_CONTROL_FRAME,
    MAX_RECORD,
)
from meshnode.base.wire import WireError, as_bytes, as_flag, as_list, as_number, decode, encode
from meshnode.gossip.entry import ID_LENGTH
from meshnode.identity.node_id import KEY_LENGTH, NodeId, known_id

MAX_SCOPE = 32
MAX_WALK = 8
MAX_TX = 2**32 - 1
BUCKETS = 256
PRINT_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Contact:
    """A node and its encoded endpoint record (empty when it is not at hand)."""

    id: NodeId
    record: bytes = b""


# ---- partial views (HyParView)


@dataclass(frozen=True, slots=True)
class Join:
    """I am new here: take me as a neighbour and tell others of me."""

    record: bytes


@dataclass(frozen=True, slots=True)
class ForwardJoin:
    """Somebody is new: a random walk of ``ttl`` further steps that ends at another neighbour for it."""

    contact: Contact
    ttl: int


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Be my neighbour; ``high``: I have too few, so drop somebody if you must."""

    high: bool
    record: bytes


@dataclass(frozen=True, slots=True)
class NeighbourReply:
    """Whether we are neighbours now."""

    accepted: bool


@dataclass(frozen=True, slots=True)
class Disconnect:
    """We are no longer neighbours; ``leaving``: for I leave the mesh."""

    leaving: bool


@dataclass(frozen=True, slots=True)
class Shuffle:
    """Some of whom the sender of ``tx`` knows, on a random walk of ``ttl`` further steps."""

    tx: int
    ttl: int
    contacts: tuple[Contact, ...]


@dataclass(frozen=True, slots=True)
class ShuffleReply:
    """As many in return; it goes back the way that the shuffle came."""

    tx: int
    contacts: tuple[Contact, ...]


# ---- failure detection (SWIM)


@dataclass(frozen=True, slots=True)
class IndirectProbe:
    """I do not hear ``contact``: do you?"""

    tx: int
    contact: Contact


@dataclass(frozen=True, slots=True)
class IndirectReply:
    """It answered, or did not."""

    tx: int
    alive: bool


# ---- broadcast (Plumtree); scope b"" is the whole mesh, others belong to layers above


@dataclass(frozen=True, slots=True)
class Eager:
    """Payloads, each with the number of hops that it has come."""

    scope: bytes
    items: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class IHave:
    """Ids of payloads that the sender has, each with the hops that it would come over the sender."""

    scope: bytes
    items: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class Graft:
    """Send me these, and be an eager link from now on."""

    scope: bytes
    ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Prune:
    """Send me ids only from now on: I get the payloads from others."""

    scope: bytes


# ---- reconciliation


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """The fingerprints of all that I store: one for each of 1 to 256 buckets of ids."""

    prints: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SyncResponse:
    """The ids that I store in the buckets in which we differ; ``full``: there are more such buckets."""

    buckets: int
    full: bool
    ids: tuple[tuple[int, tuple[bytes, ...]], ...]


@dataclass(frozen=True, slots=True)
class Want:
    """Send me these."""

    ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Entries:
    """What was wanted, or what the other lacks; ``last``: as much of it as I send at once."""

    last: bool
    payloads: tuple[bytes, ...]


Message = (
    Join
    | ForwardJoin
    | Neighbour
    | NeighbourReply
    | Disconnect
    | Shuffle
    | ShuffleReply
    | IndirectProbe
    | IndirectReply
    | Eager
    | IHave
    | Graft
    | Prune
    | SyncRequest
    | SyncResponse
    | Want
    | Entries
)


class UnknownMessage(WireError):
    """A message of a type that a later version may have added: to be ignored."""


def _contact_fields(contact: Contact) -> list[object]:
    return [bytes(contact.id), contact.record]


def _pairs(items: tuple[tuple[int, bytes], ...]) -> list[object]:
    return [part for item in items for part in item]


def _contact(raw: object, record: object) -> Contact:
    return Contact(known_id(as_bytes(raw, KEY_LENGTH, KEY_LENGTH)), as_bytes(record, 0, MAX_RECORD))


def _contacts(value: object) -> tuple[Contact, ...]:
    return tuple(_contact(*_two(item)) for item in as_list(value, GOSSIP_MAX_CONTACTS))


def _two(value: object) -> tuple[object, object]:
    pair = as_list(value, 2)
    if len(pair) != 2:
        raise WireError("a pair is missing")
    return pair[0], pair[1]


def _ids(value: object, most: int, *, least: int = 0) -> tuple[bytes, ...]:
    data = as_bytes(value, 0, most * ID_LENGTH)
    if len(data) % ID_LENGTH or len(data) < least * ID_LENGTH:
        raise WireError("ids are cut short")
    return tuple(data[i : i + ID_LENGTH] for i in range(0, len(data), ID_LENGTH))


def _scope(value: object) -> bytes:
    return as_bytes(value, 0, MAX_SCOPE)


def _payloads(value: object) -> tuple[bytes, ...]:
    return tuple(as_bytes(item, 0, GOSSIP_MAX_ENTRY) for item in as_list(value, GOSSIP_MAX_IDS))


def _eager(scope: object, items: object) -> Eager:
    flat = as_list(items, 2 * GOSSIP_MAX_IDS)
    if len(flat) % 2:
        raise WireError("a payload is missing")
    found = zip(flat[::2], flat[1::2], strict=True)
    return Eager(
        _scope(scope), tuple((as_number(h, 0, GOSSIP_MAX_HOPS), as_bytes(p, 0, GOSSIP_MAX_ENTRY)) for h, p in found)
    )


def _ihave(scope: object, items: object) -> IHave:
    size = ID_LENGTH + 1
    data = as_bytes(items, 0, GOSSIP_MAX_IDS * size)
    if len(data) % size:
        raise WireError("ids are cut short")
    found = [(data[i], data[i + 1 : i + size]) for i in range(0, len(data), size)]
    return IHave(_scope(scope), tuple((min(hops, GOSSIP_MAX_HOPS), item) for hops, item in found))


def _sync_request(prints: object) -> SyncRequest:
    data = as_bytes(prints, 0, BUCKETS * PRINT_LENGTH)
    count, rest = divmod(len(data), PRINT_LENGTH)
    if rest or not _is_bucket_count(count):
        raise WireError("not a number of buckets")
    parts = range(0, len(data), PRINT_LENGTH)
    return SyncRequest(tuple(int.from_bytes(data[i : i + PRINT_LENGTH], "big") for i in parts))


def _is_bucket_count(count: int) -> bool:
    return 0 < count <= BUCKETS and count & (count - 1) == 0


def _sync_response(buckets: object, full: object, ids: object) -> SyncResponse:
    count = as_number(buckets, 1, BUCKETS)
    flat = as_list(ids, 2 * BUCKETS)
    if not _is_bucket_count(count) or len(flat) % 2:
        raise WireError("not a number of buckets")
    found = [
        (as_number(index, 0, count - 1), _ids(part, GOSSIP_MAX_TELL_IDS))
        for index, part in zip(flat[::2], flat[1::2], strict=True)
    ]
    if any(a[0] >= b[0] for a, b in pairwise(found)):
        raise WireError("buckets out of order")
    return SyncResponse(count, as_flag(full), tuple(found))


class Form(NamedTuple):
    """A message on the wire: its class, its fields behind the type in order, and how they are made and parsed."""

    kind: type[Any]
    fields: tuple[str, ...]
    fields_of: Callable[[Any], list[object]]
    parse: Callable[..., Message]


# type -> form. A number stands for its message for ever: it is never changed and never given to another one.
MESSAGES: dict[int, Form] = {
    1: Form(Join, ("record",), lambda m: [m.record], lambda record: Join(as_bytes(record, 0, MAX_RECORD))),
    2: Form(
        ForwardJoin,
        ("id", "record", "ttl"),
        lambda m: [*_contact_fields(m.contact), m.ttl],
        lambda raw, record, ttl: ForwardJoin(_contact(raw, record), as_number(ttl, 0, MAX_WALK)),
    ),
    3: Form(
        Neighbour,
        ("high", "record"),
        lambda m: [m.high, m.record],
        lambda high, record: Neighbour(as_flag(high), as_bytes(record, 0, MAX_RECORD)),
    ),
    4: Form(NeighbourReply, ("accepted",), lambda m: [m.accepted], lambda accepted: NeighbourReply(as_flag(accepted))),
    5: Form(Disconnect, ("leaving",), lambda m: [m.leaving], lambda leaving: Disconnect(as_flag(leaving))),
    6: Form(
        Shuffle,
        ("tx", "ttl", "contacts"),
        lambda m: [m.tx, m.ttl, [_contact_fields(c) for c in m.contacts]],
        lambda tx, ttl, contacts: Shuffle(as_number(tx, 0, MAX_TX), as_number(ttl, 0, MAX_WALK), _contacts(contacts)),
    ),
    7: Form(
        ShuffleReply,
        ("tx", "contacts"),
        lambda m: [m.tx, [_contact_fields(c) for c in m.contacts]],
        lambda tx, contacts: ShuffleReply(as_number(tx, 0, MAX_TX), _contacts(contacts)),
    ),
    8: Form(
        IndirectProbe,
        ("tx", "id", "record"),
        lambda m: [m.tx, *_contact_fields(m.contact)],
        lambda tx, raw, record: IndirectProbe(as_number(tx, 0, MAX_TX), _contact(raw, record)),
    ),
    9: Form(
        IndirectReply,
        ("tx", "alive"),
        lambda m: [m.tx, m.alive],
        lambda tx, alive: IndirectReply(as_number(tx, 0, MAX_TX), as_flag(alive)),
    ),
    10: Form(Eager, ("scope", "items"), lambda m: [m.scope, _pairs(m.items)], _eager),
    11: Form(
        IHave,
        ("scope", "items"),
        lambda m: [m.scope, b"".join(bytes([hops]) + item for hops, item in m.items)],
        _ihave,
    ),
    12: Form(
        Graft,
        ("scope", "ids"),
        lambda m: [m.scope, b"".join(m.ids)],
        lambda scope, ids: Graft(_scope(scope), _ids(ids, GOSSIP_MAX_IDS)),
    ),
    13: Form(Prune, ("scope",), lambda m: [m.scope], lambda scope: Prune(_scope(scope))),
    14: Form(
        SyncRequest, ("prints",), lambda m: [b"".join(p.to_bytes(PRINT_LENGTH, "big") for p in m.prints)], _sync_request
    ),
    15: Form(
        SyncResponse,
        ("buckets", "full", "ids"),
        lambda m: [m.buckets, m.full, [part for index, ids in m.ids for part in (index, b"".join(ids))]],
        _sync_response,
    ),
    16: Form(Want, ("ids",), lambda m: [b"".join(m.ids)], lambda ids: Want(_ids(ids, GOSSIP_MAX_IDS, least=1))),
    17: Form(
        Entries,
        ("last", "payloads"),
        lambda m: [m.last, list(m.payloads)],
        lambda last, payloads: Entries(as_flag(last), _payloads(payloads)),
    ),
}
TYPES = {form.kind: number for number, form in MESSAGES.items()}


def encode_message(message: Message) -> bytes:
    """Return the canonical bytes of a message."""
    number = TYPES[type(message)]
    return encode([number, *MESSAGES[number].fields_of(message)])


def decode_message(data: bytes) -> Message:
    """Parse one message. Raises WireError."""
    fields = decode(data, MAX_CONTROL_FRAME)
    if not isinstance(fields, list) or not fields or type(fields[0]) is not int:
        raise WireError("not an array with a type")
    form = MESSAGES.get(fields[0])
    if form is None:
        raise UnknownMessage("an unknown type")
    if len(fields) != len(form.fields) + 1:
        raise WireError("wrong number of fields")
    return form.parse(*fields[1:])
