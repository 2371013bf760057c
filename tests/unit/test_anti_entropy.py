"""Two neighbours that exchange what either lacks, and what was here a while ago."""

from __future__ import annotations

import hashlib
import random

import pytest

from meshnode.base.limits import (
    GOSSIP_MAX_RECENT,
    GOSSIP_MAX_SEEN,
    GOSSIP_MAX_SYNC,
    GOSSIP_MAX_TELL_IDS,
    GOSSIP_SEEN_S,
    GOSSIP_SYNC_BURST,
    GOSSIP_SYNC_RATE,
)
from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.gossip.dissemination.anti_entropy import TOO_OFTEN, AntiEntropy
from meshnode.gossip.dissemination.payloads import KEEP_PAYLOAD_S, Payload, RecentPayloads, Seen
from meshnode.gossip.effects import Send
from meshnode.gossip.messages import Entries, SyncRequest, SyncResponse, Want
from meshnode.identity.node_id import NodeId

ONE, OTHER = NodeId(bytes(31) + b"\x01"), NodeId(bytes(31) + b"\x02")


class Items:
    """Payloads by id; an id's first byte says in which of 256 buckets it is, as in the store."""

    def __init__(self, *ids: bytes, size: int = 100) -> None:
        self.ids = dict.fromkeys(ids)
        self.size = size
        self.given_up: dict[bytes, None] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def lacks(self, item: bytes) -> bool:
        return item not in self.ids and item not in self.given_up

    def payload(self, item: bytes) -> bytes | None:
        return item.ljust(self.size, b".") if item in self.ids else None

    def bucket(self, index: int, count: int) -> list[bytes]:
        return [item for item in self.ids if item[0] * count // 256 == index]

    def folded(self, count: int) -> tuple[int, ...]:
        prints = [0] * count
        for item in self.ids:
            prints[item[0] * count // 256] ^= int.from_bytes(item, "big")
        return tuple(prints)


class Node:
    """One end: what it has, and its exchanges with a neighbour."""

    def __init__(self, items: Items, peer: NodeId, seed: int) -> None:
        self.items, self.peer, self.timers = items, peer, Timers()
        self.core = AntiEntropy(random.Random(seed), self.timers, Metrics(), items, items.lacks, 0.0)

    def take(self, message: object, now: float) -> int:
        """Take a message of the neighbour; the number of bytes of entries in it."""
        match message:
            case SyncRequest():
                self.core.on_request(self.peer, message, now)
            case SyncResponse():
                self.core.on_response(self.peer, message, now)
            case Want():
                self.core.on_want(self.peer, message, now)
            case Entries():
                ids = [entry[:8] for entry in message.payloads]
                self.items.ids.update(dict.fromkeys(ids))
                self.core.on_entries(self.peer, message, ids, now)
                return sum(map(len, message.payloads))
        return 0


def exchanged(a: Items, b: Items, seconds: float, *, both_ask: bool = True) -> tuple[int, int]:
    """Two neighbours with these items, for a time; how many messages went between them, and bytes of entries."""
    nodes = [Node(a, OTHER, 1), Node(b, ONE, 2)]
    nodes[0].core.add(OTHER, 0.0)
    nodes[1].core.add(ONE, 0.0 if both_ask else 1_000.0)
    now, sent, size = 0.0, 0, 0
    while now < seconds:
        for this, that in (nodes, nodes[::-1]):
            this.timers.run(now)
            for effect in this.core.take_effects():
                if not isinstance(effect, Send):
                    continue
                size += that.take(effect.message, now)
                sent += 1
        now += 0.01
    return sent, size


def _id(bucket: int, number: int) -> bytes:
    return bytes([bucket]) + hashlib.blake2b(b"%d" % number, digest_size=7).digest()


def test_two_neighbours_end_with_all_that_either_had() -> None:
    common = [_id(n % 256, n) for n in range(300)]
    a = Items(*common, *(_id(n % 256, 1_000 + n) for n in range(150)))
    b = Items(*common, *(_id(n % 256, 2_000 + n) for n in range(150)))
    _, size = exchanged(a, b, 0.5, both_ask=False)
    assert set(a.ids) == set(b.ids)
    assert len(a) == 600
    assert size == 300 * a.size, "and nothing is sent twice"


def test_neighbours_that_have_the_same_say_so_in_one_round_trip() -> None:
    ids = [_id(n % 256, n) for n in range(300)]
    assert exchanged(Items(*ids), Items(*ids), 0.5) == (4, 0), "a request and a response of each"


def test_more_than_may_be_sent_at_once_comes_in_further_exchanges() -> None:
    ids = [_id(n % 256, n) for n in range(200)]
    a, b = Items(*ids, size=1_000), Items(size=1_000)
    assert len(a) * 1_000 > 3 * GOSSIP_MAX_SYNC
    _, size = exchanged(a, b, 0.5, both_ask=False)
    assert GOSSIP_MAX_SYNC / 2 < size <= GOSSIP_MAX_SYNC
    exchanged(a, b, 8.0, both_ask=False)
    assert len(b) == 200, "a second between them"


def test_ids_that_an_answer_left_out_are_asked_for_a_second_later() -> None:
    common = [_id(n % 256, n) for n in range(100)]
    more = [_id(n % 256, 1_000 + n) for n in range(GOSSIP_MAX_TELL_IDS + 500)]
    first, later = Items(*common), Items(*common)
    exchanged(first, Items(*common, *more), 0.9, both_ask=False)
    assert 0 < len(first) - len(common) <= GOSSIP_MAX_TELL_IDS
    exchanged(later, Items(*common, *more), 3.0, both_ask=False)
    assert len(later) == len(common) + len(more)


def test_what_one_of_them_has_given_up_is_sent_once_at_most_and_never_asked_for() -> None:
    ids = [_id(n % 256, n) for n in range(40)]
    a, b = Items(*ids), Items(*ids[20:])
    b.given_up = dict.fromkeys(ids[:20])
    take, given = Node.take, 0

    def refuse(node: Node, message: object, now: float) -> int:
        size = take(node, message, now)
        for item in b.given_up:
            b.ids.pop(item, None)
        return size

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Node, "take", refuse)
        sent, given = exchanged(a, b, 60.0)
    assert given <= 20 * a.size
    assert sent < 60, "a few messages in 10 s, no loop"


def answer(items: Items, prints: tuple[int, ...]) -> SyncResponse:
    """What a node with these items answers to a neighbour with those fingerprints."""
    node = Node(items, OTHER, 1)
    node.core.add(OTHER, 100.0)
    node.take(SyncRequest(prints), 0.0)
    (effect,) = node.core.take_effects()
    assert effect.peer == OTHER
    assert isinstance(effect.message, SyncResponse)
    return effect.message


def test_ids_are_told_up_to_a_bound_and_what_is_left_out_is_said_to_be() -> None:
    fits = answer(Items(*(_id(0, n) for n in range(GOSSIP_MAX_TELL_IDS))), (1,))
    assert (len(fits.ids[0][1]), fits.full) == (GOSSIP_MAX_TELL_IDS, False)
    above = answer(Items(*(_id(0, n) for n in range(GOSSIP_MAX_TELL_IDS + 1)), _id(255, 1)), (1, 1))
    assert above.full
    assert [(index, len(ids)) for index, ids in above.ids] == [(1, 1)], "the other buckets still get their turn"


def test_only_buckets_that_differ_are_told() -> None:
    items = Items(_id(0, 5), _id(255, 6))
    mine = items.folded(2)
    assert answer(items, mine) == SyncResponse(2, False, ())
    assert answer(items, (mine[0], 0)) == SyncResponse(2, False, ((1, (_id(255, 6),)),))


# ---- what was here


def test_an_id_is_remembered_for_as_long_as_promised_and_not_for_ever() -> None:
    seen = Seen(0.0)
    assert not seen
    seen.add(b"first", 1.0)
    for second in range(2, int(GOSSIP_SEEN_S)):
        seen.add(b"%d" % second, float(second))
    assert b"first" in seen
    assert seen
    seen.add(b"late", GOSSIP_SEEN_S + 1.0)
    assert b"first" in seen, "one to two generations"
    seen.add(b"later", 2 * GOSSIP_SEEN_S + 2.0)
    assert b"first" not in seen
    assert b"late" in seen


def test_as_many_ids_as_a_generation_holds_are_remembered_however_fast_they_come() -> None:
    seen = Seen(0.0)
    for number in range(3 * GOSSIP_MAX_SEEN):
        seen.add(b"%d" % number, 0.0)
    remembered = [number for number in range(3 * GOSSIP_MAX_SEEN) if b"%d" % number in seen]
    assert remembered[-GOSSIP_MAX_SEEN:] == list(range(2 * GOSSIP_MAX_SEEN, 3 * GOSSIP_MAX_SEEN))
    assert len(remembered) <= 2 * GOSSIP_MAX_SEEN


def test_recent_payloads_fill_their_bytes_and_the_oldest_go_first() -> None:
    recent = RecentPayloads()
    half = bytes(GOSSIP_MAX_RECENT // 2)
    recent.add(b"one", Payload(half, 0), 0.0)
    recent.add(b"two", Payload(half, 0), 1.0)
    assert (recent.ids(), recent.size) == ([b"one", b"two"], GOSSIP_MAX_RECENT)
    recent.add(b"three", Payload(b"x", 0), 2.0)
    assert (recent.ids(), recent.size) == ([b"two", b"three"], GOSSIP_MAX_RECENT // 2 + 1)
    recent.add(b"three", Payload(b"y", 9), 3.0)
    assert recent.get(b"three") == Payload(b"x", 0), "the first that came stays"
    recent.add(b"four", Payload(b"z", 0), 2.0 + KEEP_PAYLOAD_S)
    assert recent.ids() == [b"three", b"four"]
    assert recent.get(b"two") is None


def test_rounds_grow_rare_while_nothing_changes_here_and_come_soon_after_a_change() -> None:
    timers, items = Timers(), Items(_id(1, 1))
    core = AntiEntropy(random.Random(1), timers, Metrics(), items, lambda item: False, 0.0)
    core.add(OTHER, 0.0)

    def rounds(until: float) -> int:
        found = 0
        while (at := timers.next_deadline()) is not None and at <= until:
            timers.run(at)
            found += len(core.take_effects())
        return found

    assert rounds(60.0) >= 3
    assert rounds(60.0 + 3_600.0) <= 3_600 / 80 / 0.8 + 1
    items.ids[_id(2, 2)] = None
    rounds(3_660.0 + 96.0)  # the round that finds the change
    assert rounds(3_756.0 + 25.0) >= 1


def test_a_neighbour_that_goes_on_answering_without_an_entry_keeps_none_from_being_asked_of_others() -> None:
    items = Items()
    core = AntiEntropy(random.Random(1), Timers(), Metrics(), items, items.lacks, 0.0)
    told = SyncResponse(1, False, ((0, (_id(1, 1), _id(2, 2))),))
    for peer in (OTHER, ONE):
        core.add(peer, 1_000.0)

    def asks(peer: NodeId, now: float) -> bool:
        core.ask(peer, now)
        core.on_response(peer, told, now)
        return Send(peer, Want((_id(1, 1), _id(2, 2)))) in core.take_effects()

    assert asks(OTHER, 0.0)
    assert not asks(ONE, 0.5), "they are on their way"
    for half_seconds in range(1, 30):
        core.on_entries(OTHER, Entries(False, ()), [], half_seconds / 2)
    assert core.expects(OTHER)
    assert asks(ONE, 14.6)


def test_a_neighbour_has_its_reconciliations_answered_at_a_rate_and_takes_none_of_anothers() -> None:
    metrics = Metrics()
    core = AntiEntropy(random.Random(1), Timers(), metrics, Items(), lambda item: True, 0.0)
    for peer in (ONE, OTHER):
        core.add(peer, 0.0)

    def answers(peer: NodeId, now: float) -> int:
        core.on_request(peer, SyncRequest((7,)), now)
        return sum(isinstance(e, Send) and isinstance(e.message, SyncResponse) for e in core.take_effects())

    flood = [answers(ONE, at / 100) for at in range(1_000)]  # ten seconds
    assert GOSSIP_SYNC_BURST <= sum(flood) <= GOSSIP_SYNC_BURST + 10 * GOSSIP_SYNC_RATE
    assert metrics.counters[TOO_OFTEN] == 1_000 - sum(flood)
    assert answers(OTHER, 10.0) == 1
    assert not answers(NodeId(bytes(31) + b"\x03"), 10.0), "no neighbour"
