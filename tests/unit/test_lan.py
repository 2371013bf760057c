"""Announcements on the local link: when they are sent, when they are answered, and what a stranger learns of them."""

from __future__ import annotations

import random
from itertools import pairwise
from types import SimpleNamespace

import pytest

from meshnode.base.address import Addr
from meshnode.base.metrics import Metrics
from meshnode.discovery.lan import (
    ASK_AGAIN_S,
    GAP_S,
    Announcement,
    Lan,
    decode_text,
    encode_text,
    open_announcement,
    seal_announcement,
)
from meshnode.identity.keys import Identity
from meshnode.identity.record import Endpoint, EndpointRecord, sign_record
from meshnode.identity.sealing import MeshKey, Sealer

WALL = 1_700_000_000.0


def place(number: int, at: float = WALL, host: str = "192.0.2.1") -> EndpointRecord:
    """The record of a node."""
    endpoints = (Endpoint(Addr(host, 4242)),)
    return sign_record(
        Identity(bytes([number]) * 32), seq=int(at * 1000), issued_ms=int(at * 1000), ttl=7200, endpoints=endpoints
    )


class Node:
    """One node's announcements, in time that stands still."""

    def __init__(self, number: int, mesh: str = "a mesh") -> None:
        self.record = place(number)
        self.random = random.Random(number)
        clock = SimpleNamespace(wall=lambda: WALL, monotonic=lambda: 0.0)
        identity = Identity(bytes([number]) * 32)
        self.sealer = Sealer(identity, MeshKey.from_text(mesh), clock, self.random.randbytes, born=0.0)
        self.metrics = Metrics()
        self.lan = Lan(self.record.id, self.sealer, self.random, self.metrics)

    def says(self, *, asks: bool, ago: float = 0.0) -> bytes:
        """The text of an announcement of this node."""
        said = Announcement(self.record.encoded, WALL - ago, asks)
        return encode_text(seal_announcement(self.sealer, said))

    def run(self, until: float, start: float = 0.0) -> list[tuple[float, bytes]]:
        """What it sends until then, and when."""
        sent, now = [], start
        while (at := self.lan.next_deadline()) is not None and at <= until:
            now = max(now, at)
            text = self.lan.take(now, WALL + now)
            assert text is not None
            sent.append((now, text))
        return sent

    def opened(self, text: bytes) -> Announcement:
        """What a member reads in a text."""
        said = open_announcement(self.sealer, decode_text(text))
        assert said is not None
        return said


def settled(number: int = 1) -> Node:
    """A node that has announced itself, knows another one, and has nothing more to say."""
    node = Node(number)
    node.lan.publish(node.record, 0.0)
    assert node.lan.hear(Node(99).says(asks=False), 0.0, WALL) is not None
    assert len(node.run(100.0)) == 3
    assert node.lan.next_deadline() is None
    return node


def test_a_node_announces_itself_at_once_and_asks_three_times() -> None:
    node = Node(1)
    node.lan.publish(node.record, 5.0)
    node.lan.hear(Node(2).says(asks=False), 5.0, WALL)
    sent = node.run(1_000.0)
    assert [at for at, _ in sent] == [5.0, 6.0, 8.0]
    assert all(node.opened(text).asks for _, text in sent)


def test_a_node_that_hears_no_other_goes_on_asking_ever_more_rarely() -> None:
    node = Node(1)
    node.lan.publish(node.record, 0.0)
    times = [at for at, _ in node.run(86_400.0)]
    waits = [b - a for a, b in pairwise(times)]
    assert waits[:5] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert max(waits) == 3600.0


def test_a_member_that_asks_is_answered_within_120_ms_and_the_answer_asks_nothing() -> None:
    node = settled()
    node.lan.hear(Node(2).says(asks=True), 200.0, WALL)
    ((at, text),) = node.run(300.0)
    assert 200.02 <= at <= 200.12
    assert node.opened(text).record == node.record.encoded
    assert not node.opened(text).asks


def test_a_node_speaks_at_most_four_times_a_second_however_many_ask() -> None:
    node, asker = settled(), Node(2)
    sent = []
    for step in range(1_000):
        now = 200.0 + step / 100
        node.lan.hear(asker.says(asks=True), now, WALL)
        sent += node.run(now, now)
    assert 25 <= len(sent) <= 41
    assert all(b[0] - a[0] >= GAP_S for a, b in pairwise(sent))


@pytest.mark.parametrize(
    "text",
    [
        Node(2, mesh="another").says(asks=True),
        b"",
        bytes(1_056),
        random.Random(5).randbytes(1_056),
        Node(2).says(asks=True)[:-1],
        Node(2).says(asks=True)[:-1] + b"x",
        Node(2).says(asks=True) + bytes(50),
    ],
)
def test_nothing_is_sent_for_a_text_without_the_mesh_key(text: bytes) -> None:
    node = settled()
    assert node.lan.hear(text, 200.0, WALL) is None
    assert node.lan.next_deadline() is None
    assert sum(node.metrics.counters.values()) == 1


@pytest.mark.parametrize("ago", [31.0, -31.0, 86_400.0])
def test_a_recorded_announcement_is_not_answered_elsewhere_or_later(ago: float) -> None:
    node = settled()
    assert node.lan.hear(Node(2).says(asks=True, ago=ago), 200.0, WALL) is not None, "the record itself is signed"
    assert node.lan.next_deadline() is None
    assert node.metrics.counters == {"mdns_stale": 1}


def test_what_was_recorded_before_a_node_came_to_the_link_is_not_answered() -> None:
    node, asker = settled(), Node(2)
    recorded = [asker.says(asks=True, ago=ago) for ago in (3.0, 0.5)]
    node.lan.moved(200.0)
    sent = node.run(400.0)
    for text in recorded:
        node.lan.hear(text, 200.4, WALL)
    assert node.run(400.0) == []
    assert len(sent) > 3
    node.lan.hear(asker.says(asks=True, ago=0.3), 200.4, WALL)
    assert len(node.run(400.0)) == 1


def test_a_replay_on_the_same_link_is_not_answered_however_its_strings_are_cut() -> None:
    node, text = settled(), Node(2).says(asks=True)
    node.lan.hear(text, 200.0, WALL)
    assert len(node.run(250.0)) == 1
    sealed = decode_text(text)
    first = (sealed[:7], sealed[7:200], sealed[200:400])
    cut_again = b"".join(bytes([len(part)]) + part for part in first) + encode_text(sealed[400:])
    assert decode_text(cut_again) == sealed
    for again in (text, cut_again):
        assert node.lan.hear(again, 251.0, WALL) is None
        assert node.lan.next_deadline() is None


def test_an_invalid_record_and_its_own_are_not_answered() -> None:
    node = settled()
    forged = Announcement(node.record.encoded[:-1] + b"x", WALL, asks=True)
    node.lan.hear(encode_text(seal_announcement(Node(2).sealer, forged)), 200.0, WALL)
    node.lan.hear(Node(1).says(asks=True), 200.0, WALL)
    assert node.lan.next_deadline() is None


def test_announcements_of_all_nodes_are_equally_long_and_have_nothing_in_common() -> None:
    node = Node(1)
    node.lan.publish(node.record, 0.0)
    texts = [text for _, text in node.run(10.0)]
    many = sign_record(
        Identity(bytes([1]) * 32),
        seq=1,
        issued_ms=int(WALL * 1000),
        ttl=7200,
        endpoints=tuple(Endpoint(Addr(f"2001:db8::{n}", 4242)) for n in range(1, 17)),
    )
    node.lan.publish(many, 20.0)
    texts += [text for _, text in node.run(30.0)]
    assert len(texts) >= 6
    assert {len(text) for text in texts} == {1_056}
    sealed = [decode_text(text) for text in texts]
    pieces = [piece[at : at + 8] for piece in sealed for at in range(len(piece) - 8)]
    assert len(set(pieces)) == len(pieces)


def test_a_move_begins_anew_at_once() -> None:
    node = settled()
    node.lan.hear(Node(2).says(asks=True), 200.0, WALL)
    node.run(200.5)
    node.lan.moved(200.6)
    assert [at for at, _ in node.run(300.0)][:3] == [200.6, 201.6, 203.6]


def test_a_refreshed_record_is_announced_once_and_asks_nothing() -> None:
    node = settled()
    node.lan.publish(place(1, WALL + 1), 200.0)
    ((at, text),) = node.run(300.0)
    assert at == 200.0
    assert not node.opened(text).asks


def test_callers_that_look_for_a_peer_make_it_ask_within_a_rate() -> None:
    node = settled()
    sent = []
    for step in range(300):
        now = 200.0 + step / 10
        node.lan.ask(now)
        sent += node.run(now, now)
    assert len(sent) <= 30 / ASK_AGAIN_S + 1
    assert all(node.opened(text).asks for _, text in sent)


def test_nothing_is_due_before_there_is_a_record() -> None:
    node = Node(1)
    node.lan.ask(0.0)
    node.lan.hear(Node(2).says(asks=True), 0.0, WALL)
    assert node.lan.next_deadline() is None
    assert node.lan.take(10.0, WALL) is None
