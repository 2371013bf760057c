"""The tables of messages of gossip and topics: what each row names exists, and handles the message of that row."""

from __future__ import annotations

import inspect
import random
import typing

import pytest

from meshnode.base.metrics import Metrics
from meshnode.base.wire import WireError, encode
from meshnode.gossip import Gossip, Status
from meshnode.gossip.message_table import MessageTable, Row, UnknownMessage
from meshnode.gossip.messages import MESSAGES, TABLE, Join, Prune, decode_message
from meshnode.identity.keys import Identity
from meshnode.topics import messages as topics
from meshnode.topics.context import TopicContext
from meshnode.topics.joined_topic import JoinedTopic


@pytest.mark.parametrize("row", MESSAGES.values(), ids=lambda row: row.kind.__name__)
def test_the_handler_of_a_row_takes_its_message(row: Row) -> None:
    gossip = Gossip(Identity(bytes(32)), rng=random.Random(1), metrics=Metrics(), now=0.0, wall=0.0)
    handler = TABLE.handler(gossip, row.kind.__new__(row.kind))
    assert typing.get_type_hints(handler)["message"] is row.kind
    assert list(inspect.signature(handler).parameters) == ["peer", "message", "now"]


@pytest.mark.parametrize("row", topics.MESSAGES.values(), ids=lambda row: row.kind.__name__)
def test_the_handler_of_a_topic_message_takes_it(row: Row) -> None:
    context = TopicContext(
        Identity(bytes(32)), random.Random(1), Metrics(), lambda peer: Status.ALIVE, lambda peer: (peer, peer)
    )
    topic = JoinedTopic(context, "news", 0, 0.0, 1.0)
    handler = topics.TABLE.handler(topic, row.kind.__new__(row.kind))
    assert typing.get_type_hints(handler)["message"] is row.kind
    assert list(inspect.signature(handler).parameters) == ["peer", "message", "now"]


def test_the_codecs_of_a_row_are_the_fields_of_its_class() -> None:
    for row in (*MESSAGES.values(), *topics.MESSAGES.values()):
        assert list(row.codecs) == list(row.kind.__dataclass_fields__)


def test_no_class_has_two_numbers() -> None:
    assert len({row.kind for row in MESSAGES.values()}) == len(MESSAGES)


def test_an_unknown_number_is_told_apart_from_a_malformed_message() -> None:
    with pytest.raises(UnknownMessage):
        decode_message(encode([99, b""]))
    with pytest.raises(WireError) as found:
        decode_message(encode([1, b"", b""]))
    assert not isinstance(found.value, UnknownMessage)


def test_a_check_of_the_whole_message_may_refuse_it() -> None:
    def refuse(message: object) -> None:
        raise WireError("never")

    table: MessageTable[Prune] = MessageTable({1: Row(Prune, MESSAGES[13].codecs, "", check=refuse)})
    with pytest.raises(WireError, match="never"):
        table.decode(encode([1, b""]))
    assert isinstance(decode_message(encode([1, b""])), Join)
