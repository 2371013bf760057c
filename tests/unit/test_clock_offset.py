"""Clocks compared by the stamps of sealed datagrams."""

from __future__ import annotations

import os

import pytest

from meshnode.base.clock_offset import STALE_KEPT, ClockOffset
from meshnode.base.limits import MAX_CLOCKS, SEAL_WINDOW_S
from meshnode.identity.keys import Identity
from meshnode.identity.sealing import MeshKey, Sealer


class Clock:
    """A clock that is ``ahead`` of the true time."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead = ahead

    def wall(self) -> float:
        """Unix seconds."""
        return 1_700_000_000.0 + self.ahead

    def monotonic(self) -> float:
        """Any seconds."""
        return 5.0


def sealer(clock: Clock, *, born: float = 0.0) -> Sealer:
    """A member."""
    return Sealer(Identity.generate(), MeshKey.from_text("x"), clock, os.urandom, born=born)


def test_a_member_ahead_of_us_and_one_behind_us_are_told_apart() -> None:
    us = sealer(Clock())
    for ahead in (9.0, 9.5, -1.0):
        assert us.unseal(sealer(Clock(ahead)).seal(us._identity.id, b"x"))
    assert us.skew.to_json(0.0) == {"offset_s": 9.0, "peers": 3, "stale_offset_s": None}


def test_what_is_dropped_for_its_time_tells_how_far_off_the_clocks_are() -> None:
    us = sealer(Clock())
    for _ in range(3):
        assert us.unseal(sealer(Clock(-3_600.0)).seal(us._identity.id, b"x")) is None
    assert us.drops == {"seal_stale": 3}
    found = us.skew.to_json(0.0)
    assert (found["offset_s"], found["stale_offset_s"]) == (None, -3_600.0)


def test_what_was_sent_before_we_were_born_says_nothing_of_clocks() -> None:
    clock = Clock()
    us = sealer(clock, born=clock.wall() + 5.0)
    assert us.unseal(sealer(clock).seal(us._identity.id, b"x")) is None
    assert us.skew.to_json(0.0)["stale_offset_s"] is None


def test_an_outsider_moves_neither() -> None:
    us = sealer(Clock())
    outsider = Sealer(Identity.generate(), MeshKey.from_text("y"), Clock(99.0), os.urandom, born=0.0)
    assert us.unseal(outsider.seal(us._identity.id, b"x")) is None
    assert us.skew.to_json(0.0) == {"offset_s": None, "peers": 0, "stale_offset_s": None}


def test_one_liar_does_not_move_the_median_and_a_thousand_peers_fill_nothing() -> None:
    skew = ClockOffset()
    for sender in range(1000):
        skew.proven(sender, 0.1, 0.0)
    for _ in range(1000):
        skew.proven("liar", SEAL_WINDOW_S, 0.0)
        skew.stale(1e6, 0.0)
    assert skew.to_json(0.0)["offset_s"] == pytest.approx(0.1)
    assert len(skew._offsets) == MAX_CLOCKS
    assert len(skew._stale) == STALE_KEPT


def test_a_sample_that_is_old_says_nothing_more() -> None:
    skew = ClockOffset()
    skew.proven("a", 0.1, 0.0)
    skew.stale(50.0, 10.0)
    assert skew.to_json(100.0) == {"offset_s": 0.1, "peers": 1, "stale_offset_s": 50.0}
    assert skew.to_json(125.0) == {"offset_s": None, "peers": 0, "stale_offset_s": 50.0}
    assert skew.to_json(135.0)["stale_offset_s"] is None
