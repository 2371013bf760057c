"""The size of datagrams on a path: searched, raised, and lowered when large ones are lost."""

from __future__ import annotations

import random

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import BASE_MTU, LOOPBACK_MTU
from meshnode.paths.effects import (
    MOVED,
    MtuChanged,
    SendProbe,
)
from meshnode.paths.peer import PeerPaths
from meshnode.paths.seeking import Connectivity
from tests.unit.path_wire import PEER, VIA_RELAY, A, B, Wire, connected


def test_the_path_mtu_is_raised_when_a_large_probe_comes_back() -> None:
    wire = Wire(A)
    wire.paths.accept(A, wire.now)
    wire.run(1.0)
    assert wire.seen(MtuChanged) == [MtuChanged(1452)]


def test_a_narrow_path_is_searched_to_within_a_few_bytes_and_not_probed_for_ever() -> None:
    wire = Wire(A, mtu=1400)
    wire.paths.accept(A, wire.now)
    wire.run(60.0)
    assert 1400 - 24 <= wire.seen(MtuChanged)[-1].size <= 1400
    assert len([e for e in wire.effects if isinstance(e, SendProbe) and e.pad_to]) < 20


@pytest.mark.parametrize(("mtu", "lost"), [(1500, 1), (1500, 2), (1400, 2)])
def test_two_lost_probes_of_a_size_do_not_make_the_path_narrow(mtu: int, lost: int) -> None:
    wire = Wire(A, mtu=mtu)
    wire.lost = lost
    wire.paths.accept(A, wire.now)
    wire.run(60.0)
    assert min(1452, mtu) - 24 <= wire.seen(MtuChanged)[-1].size <= mtu
    if mtu == 1500:
        assert wire.seen(MtuChanged) == [MtuChanged(1452)]


def test_a_narrow_path_that_has_become_wide_is_found_out_after_ten_minutes_and_not_sooner() -> None:
    wire = Wire(A, mtu=1300)
    wire.paths.accept(A, wire.now)
    wire.run(60.0)
    assert 1300 - 24 <= wire.seen(MtuChanged)[-1].size <= 1300
    wire.effects.clear()
    wire.run(530.0)
    assert not [e for e in wire.seen(SendProbe) if e.pad_to], "a search costs large probes"
    wire.mtu = 1500
    wire.run(60.0)
    assert wire.seen(MtuChanged) == [MtuChanged(1452)]


def test_a_path_that_carries_nothing_larger_stays_at_the_base_size() -> None:
    wire = Wire(A, mtu=BASE_MTU)
    wire.paths.accept(A, wire.now)
    wire.run(60.0)
    assert not wire.seen(MtuChanged)


def test_a_black_hole_for_large_packets_shrinks_them_again() -> None:
    wire = connected(A)
    wire.mtu = 1300
    wire.paths.set_in_flight(1452, wire.now)
    wire.run(0.5)
    assert wire.seen(MtuChanged)[0] == MtuChanged(BASE_MTU)
    assert wire.paths.seeking.connectivity is Connectivity.CONNECTED, "small probes still get through"


def test_a_move_to_an_unproven_path_starts_from_the_size_that_always_fits() -> None:
    wire = connected(A, B)
    wire.paths.on_ping(B, MOVED, wire.now)
    wire.collect()
    assert wire.seen(MtuChanged) == [MtuChanged(BASE_MTU)]
    wire.run(1.0)
    assert wire.seen(MtuChanged)[-1] == MtuChanged(1452)


def test_a_second_connection_to_the_same_peer_learns_the_mtu_too() -> None:
    wire = connected(A)
    wire.paths.accept(A, wire.now)  # a new connection begins at 1,200 bytes whatever the old one had
    wire.run(1.0)
    assert wire.seen(MtuChanged) == [MtuChanged(1452)]


def test_a_black_hole_is_noticed_while_small_packets_still_pass() -> None:
    wire = connected(A)
    assert next(iter(wire.paths.book)).mtu.size > BASE_MTU
    wire.mtu = 1300
    began = wire.now
    while not wire.seen(MtuChanged) and wire.now < began + 10:
        wire.paths.set_in_flight(50_000, wire.now)
        wire.paths.on_received(A, True, wire.now)  # the peer's small packets: nothing looks silent
        wire.run(0.05)
    assert [effect.size for effect in wire.seen(MtuChanged)] == [BASE_MTU]
    assert wire.now - began < 2.5
    wire.paths.set_in_flight(0, wire.now)
    wire.run(8.0)
    assert 1250 < wire.seen(MtuChanged)[-1].size <= 1300, "what the path carries now is searched for"


def test_a_path_at_the_base_size_that_becomes_too_small_is_left_while_small_packets_still_pass() -> None:
    wire = connected(A, VIA_RELAY, mtu=BASE_MTU)
    wire.paths.add_candidates([(VIA_RELAY, "record")], wire.now)
    wire.mtus[A] = 1_072
    began = wire.now
    while wire.paths.active == A and wire.now < began + 10:
        wire.paths.set_in_flight(50_000, wire.now)
        wire.paths.on_received(A, True, wire.now)
        wire.run(0.05)
    assert wire.paths.active == VIA_RELAY
    assert wire.now - began < 4.0


def test_a_base_size_that_is_confirmed_begins_no_search_of_larger_ones() -> None:
    wire = connected(A, mtu=BASE_MTU)
    wire.run(60.0)
    wire.effects.clear()
    for _ in range(200):
        wire.paths.set_in_flight(50_000, wire.now)
        wire.paths.on_received(A, True, wire.now)
        wire.run(0.05)
    padded = [effect.pad_to for effect in wire.seen(SendProbe) if isinstance(effect, SendProbe) and effect.pad_to]
    assert 8 <= len(padded) <= 12, "one a second"
    assert set(padded) == {BASE_MTU}


def test_an_idle_path_costs_no_confirmations() -> None:
    wire = connected(A)
    wire.run(1.0)
    wire.paths.set_in_flight(1_000, wire.now)
    wire.run(0.02)
    wire.paths.on_received(A, True, wire.now)
    wire.paths.set_in_flight(0, wire.now)
    wire.effects.clear()
    wire.run(10.0)
    assert [effect for effect in wire.seen(SendProbe) if effect.pad_to] == []


def test_what_was_not_confirmed_on_a_path_before_a_new_connection_is_forgotten() -> None:
    wire = connected(A, B)
    left = wire.paths.book.current
    assert left is not None
    wire.paths.set_in_flight(1_452, wire.now)
    wire.mtu = 1_300
    wire.run(0.05)
    left.mtu.confirm_at = wire.now
    wire.run(0.01)
    wire.paths.accept(B, wire.now)
    assert (left.mtu.at, left.mtu.confirm_at) == (None, None)


def test_within_a_host_datagrams_are_large_at_once_and_at_the_base_on_any_other_path() -> None:
    for moved, size in ((Addr("127.0.0.2", 2), LOOPBACK_MTU), (A, BASE_MTU)):
        rng = random.Random(1)
        paths = PeerPaths(PEER, rng=rng, entropy=rng.randbytes, now=1.0, loopback_mtu=LOOPBACK_MTU)
        paths.accept(Addr("127.0.0.1", 1), 1.0)
        assert MtuChanged(LOOPBACK_MTU) in paths.take_effects()
        paths.on_ping(moved, MOVED, 1.1)
        assert paths.active == moved
        assert paths.mtu.size == size, "though it is not validated"
        assert (MtuChanged(BASE_MTU) in paths.take_effects()) == (size == BASE_MTU)
