"""What neighbours say to each other: one table from numbers to classes, fields and handlers.

A message is the canonical CBOR array ``[number, field, ...]`` in a GOSSIP frame of the control stream
(docs/reference/wire-format.md). A new one is a class and its row here, its handler, and its vector in tests/vectors.
"""

from __future__ import annotations

from itertools import pairwise

from meshnode.base.limits import (
    GOSSIP_MAX_CONTACTS,
    GOSSIP_MAX_ENTRY,
    GOSSIP_MAX_HOPS,
    GOSSIP_MAX_IDS,
    GOSSIP_MAX_TELL_IDS,
    MAX_RECORD,
)
from meshnode.base.value import value
from meshnode.base.wire import WireError, as_bytes, as_list, as_number
from meshnode.gossip.entry import ID_LENGTH
from meshnode.gossip.message_table import (
    Codec,
    MessageTable,
    Row,
    cut,
    flag,
    ids,
    number,
    octets,
    pairs_of,
)
from meshnode.identity.node_id import KEY_LENGTH, NodeId, known_id

MAX_SCOPE = 32
MAX_WALK = 8
MAX_TX = 2**32 - 1
BUCKETS = 256
PRINT_LENGTH = 8


class Message:
    """A message of gossip."""

    __slots__ = ()


@value
class Contact:
    """A node and its encoded endpoint record (empty when the sender has none)."""

    id: NodeId
    record: bytes = b""


# ---- partial views (HyParView)


@value
class Join(Message):
    """Joins the mesh: the receiver becomes a neighbour, and starts random walks that find the sender others."""

    record: bytes


@value
class ForwardJoin(Message):
    """A random walk for a node that joins, of ``ttl`` further steps; its last node becomes a neighbour."""

    contact: Contact
    ttl: int


@value
class Neighbour(Message):
    """Requests a place in the receiver's active view; ``high`` priority may not be refused."""

    high: bool
    record: bytes


@value
class NeighbourReply(Message):
    """Answers Neighbour and Join."""

    accepted: bool


@value
class Disconnect(Message):
    """Ends being neighbours; ``leaving``: because the sender leaves the mesh."""

    leaving: bool


@value
class Shuffle(Message):
    """A sample of the views of the node that drew ``tx``, on a random walk of ``ttl`` further steps."""

    tx: int
    ttl: int
    contacts: tuple[Contact, ...]


@value
class ShuffleReply(Message):
    """A sample in return; goes back the way of the shuffle."""

    tx: int
    contacts: tuple[Contact, ...]


# ---- failure detection (SWIM)


@value
class IndirectProbe(Message):
    """Requests a probe of ``contact``, which does not answer the sender (ping-req of the paper)."""

    tx: int
    contact: Contact


@value
class IndirectReply(Message):
    """Result of an indirect probe."""

    tx: int
    alive: bool


# ---- broadcast (Plumtree). An empty scope is the whole mesh; topics use other scopes, on streams of their own.


@value
class Eager(Message):
    """Payloads, each with the number of hops that it has come (GOSSIP of the paper)."""

    scope: bytes
    items: tuple[tuple[int, bytes], ...]


@value
class IHave(Message):
    """Ids of payloads that the sender has, each with the hops that it would come over the sender."""

    scope: bytes
    items: tuple[tuple[int, bytes], ...]


@value
class Graft(Message):
    """Requests these payloads, and makes the link eager."""

    scope: bytes
    ids: tuple[bytes, ...]


@value
class Prune(Message):
    """Makes the link lazy: ids only from now on."""

    scope: bytes


# ---- anti-entropy


@value
class SyncRequest(Message):
    """Fingerprints of all stored entries: one for each of 1 to 256 buckets of ids."""

    prints: tuple[int, ...]


@value
class SyncResponse(Message):
    """Ids stored in the buckets that differ; ``full``: there are more such buckets."""

    buckets: int
    full: bool
    ids: tuple[tuple[int, tuple[bytes, ...]], ...]


@value
class Want(Message):
    """Requests entries by id."""

    ids: tuple[bytes, ...]


@value
class Entries(Message):
    """Entries that were wanted, or that the receiver lacks; ``last``: no more of them come now."""

    last: bool
    payloads: tuple[bytes, ...]


# ---- codecs of compound fields


def _contact(raw: object, record: object) -> Contact:
    return Contact(known_id(as_bytes(raw, KEY_LENGTH, KEY_LENGTH)), as_bytes(record, 0, MAX_RECORD))


def _contact_in(value: object) -> Contact:
    pair = as_list(value, 2)
    if len(pair) != 2:
        raise WireError("a pair is missing")
    return _contact(*pair)


def _pair(contact: Contact) -> list[object]:
    return [bytes(contact.id), contact.record]


def _counted(hops: object, payload: object) -> tuple[int, bytes]:
    return as_number(hops, 0, GOSSIP_MAX_HOPS), as_bytes(payload, 0, GOSSIP_MAX_ENTRY)


def _offers(value: object) -> tuple[tuple[int, bytes], ...]:
    found = cut(as_bytes(value, 0, GOSSIP_MAX_IDS * (ID_LENGTH + 1)), ID_LENGTH + 1)
    return tuple((min(part[0], GOSSIP_MAX_HOPS), part[1:]) for part in found)


def _prints(value: object) -> tuple[int, ...]:
    data = as_bytes(value, 0, BUCKETS * PRINT_LENGTH)
    count, rest = divmod(len(data), PRINT_LENGTH)
    if rest or not _is_bucket_count(count):
        raise WireError("not a number of buckets")
    return tuple(int.from_bytes(part, "big") for part in cut(data, PRINT_LENGTH))


def _is_bucket_count(count: int) -> bool:
    return 0 < count <= BUCKETS and count & (count - 1) == 0


def _bucket(index: object, joined: object) -> tuple[int, tuple[bytes, ...]]:
    ids = cut(as_bytes(joined, 0, GOSSIP_MAX_TELL_IDS * ID_LENGTH), ID_LENGTH)
    return as_number(index, 0, BUCKETS - 1), ids


def _check_buckets(message: SyncResponse) -> None:
    if not _is_bucket_count(message.buckets):
        raise WireError("not a number of buckets")
    if any(index >= message.buckets for index, _ in message.ids):
        raise WireError("a bucket's number is missing or out of range")
    if any(a[0] >= b[0] for a, b in pairwise(message.ids)):
        raise WireError("buckets out of order")


RECORD = octets("record", MAX_RECORD)
CONTACT = Codec(("id", "record"), _pair, _contact)
CONTACTS = Codec(
    ("contacts",),
    lambda contacts: [[_pair(contact) for contact in contacts]],
    lambda value: tuple(_contact_in(item) for item in as_list(value, GOSSIP_MAX_CONTACTS)),
)
TX, TTL, SCOPE = number("tx", MAX_TX), number("ttl", MAX_WALK), octets("scope", MAX_SCOPE)
IDS = ids("ids", ID_LENGTH, GOSSIP_MAX_IDS)
PAYLOADS = Codec(
    ("payloads",),
    lambda payloads: [list(payloads)],
    lambda value: tuple(as_bytes(item, 0, GOSSIP_MAX_ENTRY) for item in as_list(value, GOSSIP_MAX_IDS)),
)
COUNTED_PAYLOADS = Codec(
    ("items",),
    lambda items: [[part for item in items for part in item]],
    lambda value: tuple(
        (as_number(h, 0, GOSSIP_MAX_HOPS), as_bytes(p, 0, GOSSIP_MAX_ENTRY)) for h, p in pairs_of(value, GOSSIP_MAX_IDS)
    ),
)
COUNTED_IDS = Codec(("items",), lambda items: [b"".join(bytes([hops]) + item for hops, item in items)], _offers)
PRINTS = Codec(("prints",), lambda prints: [b"".join(p.to_bytes(PRINT_LENGTH, "big") for p in prints)], _prints)
BUCKET_IDS = Codec(
    ("ids",),
    lambda found: [[part for index, items in found for part in (index, b"".join(items))]],
    lambda value: tuple(_bucket(index, joined) for index, joined in pairs_of(value, BUCKETS)),
)

MESSAGES: dict[int, Row] = {
    1: Row(Join, {"record": RECORD}, "hyparview.on_join"),
    2: Row(ForwardJoin, {"contact": CONTACT, "ttl": TTL}, "hyparview.on_forward_join", True),
    3: Row(Neighbour, {"high": flag("high"), "record": RECORD}, "hyparview.on_neighbour"),
    4: Row(NeighbourReply, {"accepted": flag("accepted")}, "hyparview.on_neighbour_reply"),
    5: Row(Disconnect, {"leaving": flag("leaving")}, "hyparview.on_disconnect"),
    6: Row(Shuffle, {"tx": TX, "ttl": TTL, "contacts": CONTACTS}, "hyparview.shuffles.on_shuffle", True),
    7: Row(ShuffleReply, {"tx": TX, "contacts": CONTACTS}, "hyparview.shuffles.on_shuffle_reply"),
    8: Row(IndirectProbe, {"tx": TX, "contact": CONTACT}, "swim.on_indirect_probe", True),
    9: Row(IndirectReply, {"tx": TX, "alive": flag("alive")}, "swim.on_indirect_reply"),
    10: Row(Eager, {"scope": SCOPE, "items": COUNTED_PAYLOADS}, "arrivals.on_eager", True),
    11: Row(IHave, {"scope": SCOPE, "items": COUNTED_IDS}, "plumtree.on_ihave", True),
    12: Row(Graft, {"scope": SCOPE, "ids": IDS}, "plumtree.on_graft", True),
    13: Row(Prune, {"scope": SCOPE}, "plumtree.on_prune", True),
    14: Row(SyncRequest, {"prints": PRINTS}, "anti_entropy.on_request", True),
    15: Row(
        SyncResponse,
        {"buckets": number("buckets", BUCKETS, 1), "full": flag("full"), "ids": BUCKET_IDS},
        "anti_entropy.on_response",
        True,
        _check_buckets,
    ),
    16: Row(Want, {"ids": ids("ids", ID_LENGTH, GOSSIP_MAX_IDS, least=1)}, "anti_entropy.on_want", True),
    17: Row(Entries, {"last": flag("last"), "payloads": PAYLOADS}, "arrivals.on_entries", True),
}
TABLE: MessageTable[Message] = MessageTable(MESSAGES)
encode_message, decode_message = TABLE.encode, TABLE.decode
