"""Records by key: the newest valid one wins whatever its source, questions are answered once, all within bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import MAX_CACHED_RECORDS, MAX_PENDING_RESOLVES, RESOLVE_TIMEOUT_S
from meshnode.base.metrics import Metrics
from meshnode.discovery.resolver import Resolved, Resolver
from meshnode.errors import NotFound
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint, sign_record

WALL = 1_700_000_000.0
ME = Identity(bytes(32))


def record(seq: int, signer: Identity = ME, issued: float = WALL, ttl: int = 600, port: int = 1) -> bytes:
    """A signed record."""
    place = (Endpoint(Addr("192.0.2.1", port)),)
    return sign_record(signer, seq=seq, issued_ms=int(issued * 1000), ttl=ttl, endpoints=place).encoded


class Asked:
    """A resolver and the answers that it gave."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.resolver = Resolver(self.metrics)
        self.answers: list[Resolved | NotFound] = []

    def ask(self, now: float = 0.0, peer: NodeId = ME.id) -> bool:
        """Ask for a record."""
        return self.resolver.ask(peer, now, self.answers.append)

    def offer(self, encoded: bytes, source: str = "dht", now: float = 0.0, wall: float = WALL) -> bool:
        """Hand in a record; True when it was news."""
        return self.resolver.offer(encoded, source, now, wall) is not None

    def held(self, wall: float = WALL) -> int | None:
        """The seq of what is cached."""
        found = self.resolver.get(ME.id, wall)
        return found.seq if found is not None else None


def _fail(answer: object) -> None:
    raise RuntimeError("a fault")


@pytest.mark.parametrize("end", ["record", "nothing", "time"])
def test_a_caller_that_fails_keeps_no_other_from_its_answer(end: str) -> None:
    asked = Asked()
    resolver = asked.resolver
    resolver.ask(ME.id, 0.0, _fail)
    asked.ask()
    ends: dict[str, Callable[[], object]] = {
        "record": lambda: asked.offer(record(1)),
        "nothing": lambda: resolver.give_up(ME.id),
        "time": lambda: resolver.tick(RESOLVE_TIMEOUT_S),
    }
    with pytest.raises(RuntimeError, match="a fault"):
        ends[end]()
    assert len(asked.answers) == 1
    assert all(asked.ask(peer=NodeId(bytes([n] * 32))) for n in range(9)), "and both have left their places"
    assert resolver._pending == 9


def test_the_newest_record_wins_in_whatever_order_they_come() -> None:
    for order in ([1, 2, 3], [3, 2, 1], [2, 3, 1]):
        asked = Asked()
        news = [asked.offer(record(seq)) for seq in order]
        assert asked.held() == 3
        assert news.count(True) == sum(seq == max(order[: i + 1]) for i, seq in enumerate(order))


def test_of_two_records_with_one_seq_all_nodes_keep_the_same() -> None:
    one, other = record(5, port=1), record(5, port=2)
    kept = []
    for order in ([one, other], [other, one]):
        asked = Asked()
        for encoded in order:
            asked.offer(encoded)
        found = asked.resolver.get(ME.id, WALL)
        assert found is not None
        kept.append(found.encoded)
    assert kept[0] == kept[1]


def test_old_and_invalid_records_are_counted_by_name_and_change_nothing() -> None:
    asked = Asked()
    good = record(5)
    asked.offer(good)
    asked.offer(good)
    asked.offer(record(4))
    asked.offer(bytes([good[0] ^ 1]) + good[1:])
    asked.offer(record(9, issued=WALL - 700))
    asked.offer(record(9, issued=WALL + 3600))
    asked.offer(b"junk")
    assert asked.held() == 5
    assert asked.metrics.counters == {
        "record_old": 1,
        "record_forged": 1,
        "record_expired": 1,
        "record_future": 1,
        "record_malformed": 1,
    }


def test_a_record_of_another_node_than_expected_is_counted() -> None:
    asked = Asked()
    assert asked.resolver.offer(record(1), "ticket", 0.0, WALL, expected=Identity(bytes(range(32))).id) is None
    assert asked.metrics.counters == {"record_wrong_id": 1}


def test_all_that_wait_are_answered_once_by_the_first_source() -> None:
    asked = Asked()
    for _ in range(3):
        asked.ask(now=10.0)
    asked.offer(record(1), "mdns", now=10.2)
    asked.offer(record(2), "dht", now=10.3)
    assert [a.source for a in asked.answers if isinstance(a, Resolved)] == ["mdns"] * 3
    assert all(abs(a.ms - 200) < 1 for a in asked.answers if isinstance(a, Resolved))
    assert asked.resolver.next_deadline() is None


def test_an_invalid_record_answers_no_question() -> None:
    asked = Asked()
    asked.ask()
    asked.offer(record(1, issued=WALL - 700))
    assert not asked.answers
    assert asked.resolver.asked(ME.id)


def test_a_question_without_an_answer_ends_in_not_found_in_time() -> None:
    asked = Asked()
    asked.ask(now=1.0)
    asked.ask(now=2.0)
    assert asked.resolver.next_deadline() == 1.0 + RESOLVE_TIMEOUT_S
    asked.resolver.tick(1.0 + RESOLVE_TIMEOUT_S)
    assert len(asked.answers) == 1
    due = asked.resolver.next_deadline()
    assert due is not None
    assert due > 1.0 + RESOLVE_TIMEOUT_S
    asked.resolver.tick(due)
    assert [isinstance(a, NotFound) and bool(a.hint) for a in asked.answers] == [True, True]
    assert asked.resolver.next_deadline() is None


def test_giving_up_answers_everyone() -> None:
    asked = Asked()
    asked.ask()
    asked.ask()
    asked.resolver.give_up(ME.id)
    assert len(asked.answers) == 2
    assert not asked.resolver.asked(ME.id)


def test_an_expired_record_is_not_handed_out() -> None:
    asked = Asked()
    asked.offer(record(1, ttl=600))
    assert asked.held(WALL + 599) == 1
    assert asked.held(WALL + 601) is None
    assert asked.resolver.source(ME.id) == ""


def test_an_expired_record_does_not_answer_a_question() -> None:
    """The cache holds a record that has expired; an older one arrives late: neither is where the peer is."""
    asked = Asked()
    asked.offer(record(5, ttl=60))
    asked.ask(now=100.0)
    asked.offer(record(4, ttl=6000), now=100.0, wall=WALL + 100)
    assert not any(isinstance(a, Resolved) and a.record.expires_ms < (WALL + 100) * 1000 for a in asked.answers)


def test_too_many_questions_are_refused_at_once_and_room_comes_back() -> None:
    asked = Asked()
    for number in range(MAX_PENDING_RESOLVES):
        assert asked.ask(peer=NodeId(number.to_bytes(32, "big")))
    assert not asked.ask()
    assert [type(a) for a in asked.answers] == [NotFound]
    asked.resolver.tick(RESOLVE_TIMEOUT_S)
    assert len(asked.answers) == 1 + MAX_PENDING_RESOLVES
    assert asked.ask()


def test_a_question_from_within_an_answer_waits_its_turn() -> None:
    asked = Asked()
    asked.resolver.ask(ME.id, 0.0, lambda result: asked.ask(now=0.0) and None)
    asked.resolver.give_up(ME.id)
    assert asked.resolver.asked(ME.id)
    assert not asked.answers


@pytest.mark.parametrize("extra", [50])
def test_the_cache_keeps_what_is_used_within_its_bound(extra: int) -> None:
    asked = Asked()
    asked.resolver._cache.clear()
    first = Identity.generate(lambda n: b"\x01" * n)
    asked.offer(record(1, first))
    for number in range(MAX_CACHED_RECORDS + extra):
        asked.offer(record(1, Identity((number + 2).to_bytes(32, "big"))))
        if number % 1000 == 0:
            assert asked.resolver.get(first.id, WALL) is not None, "what is asked for again and again is kept"
    assert len(asked.resolver._cache) <= MAX_CACHED_RECORDS
    assert asked.resolver.get(first.id, WALL) is not None


@pytest.mark.parametrize("ahead", [11 * 86_400, 3_600, 301])
def test_a_node_whose_number_was_ahead_is_known_again_by_its_first_right_record(ahead: int) -> None:
    asked = Asked()
    numbered = int((WALL + ahead) * 1000)
    assert not asked.offer(record(numbered)), "this clock is right: the number is refused"
    assert asked.offer(record(numbered, issued=WALL + ahead), wall=WALL + ahead), "this clock was ahead too"
    assert asked.held(WALL + ahead) == numbered
    assert asked.held() is None, "nothing is known once it has been set back"
    asked.offer(record(numbered, issued=WALL + ahead), wall=WALL + ahead)
    assert asked.offer(record(int(WALL * 1000)))
    assert asked.held() == int(WALL * 1000)
