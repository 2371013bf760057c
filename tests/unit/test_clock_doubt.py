"""A process that starts with a clock that was set back takes nothing that an earlier one may have taken."""

from __future__ import annotations

import os

import pytest

from meshnode.base.limits import CLOCK_DOUBT_S, CLOCK_MARK_S, SEAL_WINDOW_S
from meshnode.discovery.dht import ANSWERS
from meshnode.identity.clock_doubt import ClockDoubt
from meshnode.identity.keys import Identity
from meshnode.identity.sealing import MeshKey, Sealer
from meshnode.runtime.saved import SeqSource

ANSWER, REQUEST = b"\x02pong", b"\x01ping"
BEGIN = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = BEGIN

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


def doubting(newest: float = BEGIN) -> ClockDoubt:
    doubt = ClockDoubt()
    doubt.answers = (ANSWER[0],)
    doubt.begin(newest, 0.0)
    return doubt


def test_recorded_datagrams_count_no_second_time_in_a_process_that_begins_after_the_clock_was_set_back() -> None:
    clock, here, there = Clock(), Identity.generate(), Identity.generate()
    mesh = MeshKey(os.urandom(32))
    sender = Sealer(there, mesh, clock, os.urandom, born=0.0)
    first = Sealer(here, mesh, clock, os.urandom, born=0.0)
    recorded = []
    for _ in range(600):
        clock.now += 1.0
        recorded += [(sender.seal(here.id, REQUEST), b""), (sender.knock(here.id, b"12345678"), b"12345678")]
        assert first.unseal(recorded[-2][0]) is not None
    last = clock.now
    clock.now -= 500.0
    second = Sealer(here, mesh, clock, os.urandom, born=clock.now)
    second.doubt.answers = (ANSWER[0],)
    second.doubt.begin(last + CLOCK_MARK_S + SEAL_WINDOW_S, 0.0)
    for _ in range(52):
        clock.now += 10.0
        for data, odcid in recorded:
            assert (second.check_knock(data, odcid) if odcid else second.unseal(data)) is None
    assert second.drops["seal_doubt"] > 500
    assert second.drops["knock_doubt"] > 500
    assert second.unseal(sender.seal(here.id, ANSWER)) is not None, "what this process asked is answered"
    clock.now = last + CLOCK_MARK_S + SEAL_WINDOW_S + 1.0
    assert second.unseal(sender.seal(here.id, REQUEST)) is not None, "no earlier process was here"


def test_an_answer_ends_the_doubt() -> None:
    doubt = doubting()
    assert doubt.refuses(BEGIN - 1.0, REQUEST)
    assert doubt.refuses(BEGIN - 1.0, b"")
    assert not doubt.refuses(BEGIN - 1.0, ANSWER)
    assert not doubt.refuses(BEGIN + 0.1, REQUEST)
    doubt.settle()
    assert not doubt.refuses(BEGIN - 1.0, REQUEST)


@pytest.mark.parametrize("contradicted", [False, True])
def test_where_nothing_answers_the_doubt_ends_unless_members_have_another_time(contradicted: bool) -> None:
    doubt = doubting()
    doubt.look(CLOCK_DOUBT_S - 1.0, contradicted=False)
    assert doubt.is_there
    doubt.look(CLOCK_DOUBT_S, contradicted)
    assert doubt.is_there == contradicted
    doubt.look(CLOCK_DOUBT_S + 1.0, contradicted=False)
    assert doubt.is_there == contradicted, "it looks again after as long"
    doubt.look(2 * CLOCK_DOUBT_S, contradicted=False)
    assert not doubt.is_there


def test_what_answers_a_request_of_the_dht_is_known_by_its_kind() -> None:
    assert sorted(ANSWERS) == [0x11, 0x13, 0x15, 0x17, 0x19, 0x1B]


def test_the_time_is_saved_beside_the_numbers_of_records_and_takes_none() -> None:
    clock, saved = Clock(), []
    seqs = SeqSource(0, clock, saved.append)
    number = seqs.next()
    clock.now += 100.0
    seqs.mark()
    assert [int(each) for each in saved] == [number, number + 100_000]
    clock.now -= 100.0
    assert seqs.next() == number + 1
    seqs.mark()
    assert int(saved[-1]) == number + 1, "the clock stands behind: the newest is kept"
