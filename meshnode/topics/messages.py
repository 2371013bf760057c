"""Messages between members of a topic: one table from numbers to classes, fields and handlers.

A message is the canonical CBOR array ``[number, scope, field, ...]`` behind a 2-byte length on streams of the service
``SERVICE`` (docs/reference/wire-format.md); the scope names the topic. The four of Plumtree are gossip's, under numbers
of topics. Handlers are paths from JoinedTopic.
"""

from __future__ import annotations

from typing import cast

from meshnode.base.limits import GOSSIP_MAX_IDS
from meshnode.base.value import value
from meshnode.gossip.entry import ID_LENGTH
from meshnode.gossip.message_table import MessageTable, Row, ids, number
from meshnode.gossip.messages import COUNTED_IDS, COUNTED_PAYLOADS, IDS, SCOPE, Eager, Graft, IHave, Message, Prune

SERVICE = "\x00topics/2"  # no service of an application begins with a zero; version 1 had other numbers
MAX_HOPS = 20  # a full link farther away holds no publisher back


@value
class Greet(Message):
    """Asks for a link of this topic, or renews it."""

    scope: bytes


@value
class Part(Message):
    """Ends a link of this topic: the sender is no member, or has no room."""

    scope: bytes


@value
class Latest(Message):
    """Ids of the latest messages that the sender has, oldest first."""

    scope: bytes
    ids: tuple[bytes, ...]


@value
class Pull(Message):
    """Requests these payloads; the link stays lazy or eager."""

    scope: bytes
    ids: tuple[bytes, ...]


@value
class Hold(Message):
    """Asks publishers to wait: a link ``hops`` beyond the sender is full."""

    scope: bytes
    hops: int


@value
class Release(Message):
    """Ends Hold."""

    scope: bytes


MESSAGES: dict[int, Row] = {
    1: Row(Greet, {"scope": SCOPE}, "neighbours.on_greet"),
    2: Row(Part, {"scope": SCOPE}, "neighbours.on_part", True),
    3: Row(Latest, {"scope": SCOPE, "ids": IDS}, "delivery.on_latest", True),
    4: Row(Eager, {"scope": SCOPE, "items": COUNTED_PAYLOADS}, "delivery.on_eager", True),
    5: Row(IHave, {"scope": SCOPE, "items": COUNTED_IDS}, "delivery.on_ihave", True),
    6: Row(Graft, {"scope": SCOPE, "ids": IDS}, "tree.on_graft", True),
    7: Row(Prune, {"scope": SCOPE}, "tree.on_prune", True),
    8: Row(Pull, {"scope": SCOPE, "ids": ids("ids", ID_LENGTH, GOSSIP_MAX_IDS, least=1)}, "tree.on_pull", True),
    9: Row(Hold, {"scope": SCOPE, "hops": number("hops", MAX_HOPS - 1)}, "on_hold", True),
    10: Row(Release, {"scope": SCOPE}, "on_release", True),
}
MemberMessage = Greet | Part | Latest | Eager | IHave | Graft | Prune | Pull | Hold | Release
TABLE: MessageTable[MemberMessage] = MessageTable(MESSAGES)
decode_message = TABLE.decode


def encode_message(message: Message) -> bytes:
    """Return the canonical bytes of a message of topics.

    The type is of gossip's messages too, since effects may hold either; any other than topics' raises KeyError.
    """
    return TABLE.encode(cast(MemberMessage, message))
