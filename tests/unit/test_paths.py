"""The choice among a peer's addresses: moves, silence, returns, MTU and junk."""

from __future__ import annotations

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import BASE_MTU, INITIAL_WINDOW, MAX_CANDIDATES
from meshnode.base.path_reason import PathReason
from meshnode.nat.local_networks import LocalNetworks
from meshnode.paths.effects import (
    MOVED,
    SEEKING,
    MtuChanged,
    NeedIntroduction,
    NeedRecord,
    Nudge,
    Resumed,
    SendProbe,
    Suspended,
    Switched,
    Validated,
)
from meshnode.paths.seeking import SUSPEND_AFTER_S, Connectivity
from meshnode.paths.validation import CONFIRM_S
from tests.unit.path_wire import RTT, VIA_RELAY, A, B, C, Wire, connected, record

# ---- moves


def test_a_dialler_that_moves_says_so_at_once_and_is_connected_after_one_round_trip() -> None:
    wire = connected(A)
    wire.paths.local_change(wire.now)
    wire.collect()
    first = wire.seen(SendProbe)[0]
    assert isinstance(first, SendProbe)
    assert (first.path, first.flags & MOVED) == (A, MOVED)
    assert wire.paths.seeking.connectivity is Connectivity.SEEKING
    wire.run(RTT * 1.5)
    assert wire.paths.seeking.connectivity is Connectivity.CONNECTED
    nudges = [e for e in wire.seen(Nudge) if isinstance(e, Nudge)]
    assert nudges[-1].path == A, "what was in flight is sent again as soon as the peer has answered"


def test_a_move_of_this_node_nudges_quic_and_switches_nothing() -> None:
    wire = connected(A)
    wire.paths.local_change(wire.now)
    wire.run(RTT * 1.5)
    assert wire.seen(Nudge) == [Nudge(A, PathReason.MOVED), Nudge(A, PathReason.ANSWERED)]
    assert not wire.seen(Switched)


def test_a_peer_that_moved_is_followed_within_one_window_and_probed() -> None:
    wire = connected(A, B)
    wire.paths.on_ping(B, MOVED, wire.now)
    wire.collect()
    assert wire.paths.active == B
    assert wire.paths.budget() == INITIAL_WINDOW
    assert [e.path for e in wire.effects if isinstance(e, SendProbe)] == [B]
    wire.run(RTT * 1.5)
    assert wire.paths.budget() is None, "our own probe went round trip: no limit any more"
    assert wire.seen(Validated) == [Validated(B)]


def test_an_unproven_address_gets_three_times_what_came_from_it_and_no_more() -> None:
    wire = connected(A)
    wire.paths.on_ping(B, MOVED, wire.now)
    wire.paths.note_sent(INITIAL_WINDOW)
    assert wire.paths.budget() == 0
    wire.paths.on_received(B, 100, True, wire.now)
    wire.paths.on_received(A, 5_000, True, wire.now)
    assert wire.paths.budget() == 300, "RFC 9000 section 8.1"


def test_a_move_that_is_not_confirmed_is_undone_within_a_second() -> None:
    wire = connected(A)
    wire.paths.on_ping(B, MOVED, wire.now)
    wire.run(CONFIRM_S - 0.05)
    assert wire.paths.active == B
    wire.run(0.1)
    assert wire.paths.active == A
    wire.run(0.2)
    assert wire.paths.seeking.connectivity is Connectivity.CONNECTED


def test_a_move_that_is_not_confirmed_is_undone_also_when_the_old_address_left_the_record() -> None:
    wire = Wire(A)
    wire.paths.peer_record(record(A), wire.now)
    wire.paths.accept(A, wire.now)
    wire.run(2.0)
    wire.paths.on_ping(B, MOVED, wire.now)
    wire.paths.peer_record(record(C), wire.now)
    wire.run(CONFIRM_S + 3.0)
    assert (wire.paths.active, wire.paths.seeking.connectivity) == (A, Connectivity.CONNECTED), (
        "answers from it must count"
    )


def test_of_one_burst_of_moved_probes_the_first_address_wins() -> None:
    wire = connected(A, B, C)
    wire.paths.on_ping(B, MOVED, wire.now)
    wire.paths.on_ping(C, MOVED, wire.now + 0.01)
    assert wire.paths.active == B


def test_a_claimed_source_moves_nothing_until_our_probe_came_back_from_it() -> None:
    wire = connected(A)
    wire.paths.on_received(B, 1200, True, wire.now)
    wire.run(3.0)
    assert wire.paths.active == A, "no peer answers at B"
    wire.up = [B]
    wire.paths.on_received(C, 1200, False, wire.now)
    assert C not in wire.paths.book.paths(), "a packet that any host may have made teaches nothing"


def test_a_peer_whose_nat_mapping_changed_is_followed_after_one_round_trip() -> None:
    wire = connected(A, B)
    wire.up = [B]
    wire.now += 0.01
    wire.paths.on_received(B, 1200, True, wire.now)
    wire.run(RTT * 1.5)
    assert wire.paths.active == B
    assert wire.paths.budget() is None


# ---- silence


def test_silence_while_an_answer_is_due_is_noticed_and_probed_everywhere() -> None:
    wire = connected(A, B)
    wire.paths.add_candidates([(B, "seed")], wire.now)
    wire.up = [B]
    wire.paths.set_in_flight(1000, wire.now)
    wire.run(0.3)
    assert wire.paths.active == B
    assert wire.paths.seeking.connectivity is Connectivity.CONNECTED


def test_the_history_has_each_silence_and_each_switch_with_its_time_and_address() -> None:
    wire = connected(A, B)
    wire.paths.add_candidates([(B, "seed")], wire.now)
    wire.up = [B]
    began = wire.now
    wire.paths.set_in_flight(1000, wire.now)
    wire.run(0.2)
    assert [addr for _, _, addr in wire.paths.history] == [A, A, B]
    assert [str(getattr(reason, "value", reason)) for _, reason, _ in wire.paths.history] == [
        "accepted",
        "silent",
        "answered",
    ]
    assert [at >= began for at, _, _ in wire.paths.history] == [False, True, True]


def test_an_idle_connection_is_not_suspected() -> None:
    wire = connected(A)
    wire.up = []
    wire.run(5.0)
    assert wire.paths.seeking.connectivity is Connectivity.CONNECTED
    assert not wire.seen(SendProbe)


def test_an_idle_connection_is_kept_alive_and_a_dead_one_found_out_within_a_keepalive() -> None:
    wire = connected(A)
    wire.run(17.0)
    assert wire.seen(SendProbe), "a keepalive holds the NAT's mapping"
    assert wire.paths.seeking.connectivity is Connectivity.CONNECTED
    wire.up = []
    wire.run(20.0)
    assert wire.paths.seeking.connectivity is Connectivity.SUSPENDED


def test_a_peer_that_is_gone_is_suspended_and_resumed_when_it_answers() -> None:
    wire = connected(A)
    wire.up = []
    wire.paths.set_in_flight(1000, wire.now)
    wire.run(SUSPEND_AFTER_S + 2.0)
    assert wire.paths.seeking.connectivity is Connectivity.SUSPENDED
    assert len(wire.seen(Suspended)) == 1
    assert len(wire.seen(NeedRecord)) >= 2, "the watches and the resolver are asked where it is"
    wire.up = [A]
    wire.paths.set_in_flight(0, wire.now)
    wire.run(6.0)
    assert wire.paths.seeking.connectivity is Connectivity.CONNECTED
    assert len(wire.seen(Resumed)) == 1


def test_a_move_of_ours_while_suspended_tells_of_one_suspension_and_one_resumption() -> None:
    wire = connected(A)
    wire.up = []
    wire.paths.set_in_flight(1000, wire.now)
    wire.run(SUSPEND_AFTER_S + 2.0)
    wire.paths.set_in_flight(0, wire.now)
    wire.up = [A]
    wire.paths.local_change(wire.now)
    wire.run(1.0)
    assert wire.paths.seeking.connectivity is Connectivity.CONNECTED
    assert (len(wire.seen(Suspended)), len(wire.seen(Resumed))) == (1, 1)


def test_probes_of_a_dead_peer_thin_out() -> None:
    wire = connected(A)
    wire.up = []
    wire.paths.set_in_flight(1000, wire.now)
    wire.run(30.0)
    wire.effects.clear()
    wire.run(60.0)
    assert len(wire.seen(SendProbe)) <= 14, "one every five seconds"


def test_a_newer_record_is_tried_at_once_while_seeking() -> None:
    wire = connected(A, C)
    wire.up = [C]
    wire.paths.set_in_flight(1000, wire.now)
    wire.run(20.0)
    assert wire.paths.seeking.connectivity is Connectivity.SUSPENDED
    wire.paths.peer_record(record(C), wire.now)
    wire.run(RTT * 2)
    assert (wire.paths.active, wire.paths.seeking.connectivity) == (C, Connectivity.CONNECTED)


def test_a_record_without_the_active_address_moves_us_once_the_new_one_answers() -> None:
    wire = connected(A, B)
    wire.now += 0.5
    wire.paths.peer_record(record(B), wire.now)
    assert wire.paths.active == A, "what works is kept until something else does"
    wire.run(RTT * 1.5)
    assert wire.paths.active == B


def test_a_record_without_the_active_address_changes_nothing_when_the_new_one_is_dead() -> None:
    wire = connected(A)
    wire.paths.peer_record(record(B), wire.now)
    wire.run(5.0)
    assert (wire.paths.active, wire.paths.seeking.connectivity) == (A, Connectivity.CONNECTED)


def test_seeking_pings_of_the_peer_are_answered_by_probes_of_ours() -> None:
    wire = connected(A, B)
    wire.paths.on_ping(B, SEEKING, wire.now)
    assert wire.paths.active == A
    wire.run(RTT * 1.5)
    assert wire.paths.active == B, "the peer asked for it, and our probe proved it"


# ---- a faster address


def hesitate(wire: Wire) -> None:
    """A short silence of the path in use: every address is probed, and the path in use goes on first."""
    assert wire.paths.active is not None
    wire.paths.set_in_flight(1000, wire.now)
    asked = len(wire.seen(SendProbe))
    while len(wire.seen(SendProbe)) < asked + 2:
        wire.run(0.001)
    wire.paths.set_in_flight(0, wire.now)
    wire.paths.on_received(wire.paths.active, 1200, True, wire.now)
    wire.run(1.0)


@pytest.mark.parametrize(
    ("used", "found", "moves"),
    [
        (0.100, 0.070, True),
        (0.100, 0.079, True),
        (0.100, 0.081, False),  # by a fifth it is not faster
        (0.100, 0.090, False),
        (0.020, 0.014, True),
        (0.020, 0.0155, False),  # by 5 ms it is not
        (0.010, 0.006, False),
        (0.020, 0.020, False),
        (0.020, 0.060, False),
    ],
)
def test_an_address_is_preferred_that_is_faster_by_a_fifth_and_by_five_milliseconds(
    used: float, found: float, moves: bool
) -> None:
    wire = Wire(A, B)
    wire.rtts = {A: used, B: found}
    wire.paths.accept(A, wire.now)
    wire.run(2.0)
    wire.paths.add_candidates([(B, "seed")], wire.now)
    hesitate(wire)
    assert wire.paths.active == A, "one measurement is none"
    hesitate(wire)
    assert wire.paths.active == (B if moves else A)
    reasons = [effect.reason for effect in wire.seen(Switched) if isinstance(effect, Switched) and effect.new == B]
    assert reasons == (["faster"] if moves else [])


# ---- path MTU


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


# ---- junk


JUNK = [
    Addr("224.0.0.1", 5353),
    Addr("ff02::fb", 5353),
    Addr("255.255.255.255", 4242),
    Addr("0.0.0.0", 4242),
    Addr("::", 4242),
    Addr("192.0.2.9", 0),
]


@pytest.mark.parametrize("addr", JUNK, ids=str)
def test_what_is_nobodys_unicast_address_is_never_probed(addr: Addr) -> None:
    wire = connected(A)
    wire.paths.add_candidates([(addr, "seed")], wire.now)
    wire.paths.on_ping(addr, MOVED | SEEKING, wire.now)
    wire.paths.on_received(addr, 1200, True, wire.now)
    wire.paths.local_change(wire.now)
    wire.run(3.0)
    assert wire.paths.active == A
    assert addr not in {e.path for e in wire.effects if isinstance(e, SendProbe)}


def test_a_peer_on_loopback_is_reached_there() -> None:
    here = Addr("127.0.0.1", 4242)
    wire = Wire(here)
    wire.paths.add_candidates([(here, "seed")], wire.now)
    assert wire.paths.book.best_guess() == here
    assert wire.paths.book.kind(here) == "lan"


def test_thousands_of_addresses_stay_within_the_bound_and_never_push_out_the_active_one() -> None:
    wire = connected(A)
    for n in range(3000):
        wire.paths.add_candidates([(Addr(f"10.0.{n >> 8}.{n & 255}", 4242), "record")], wire.now)
        wire.paths.on_received(Addr(f"10.1.{n >> 8}.{n & 255}", 4242), 100, True, wire.now)
    assert len(wire.paths.book.paths()) <= MAX_CANDIDATES
    assert A in wire.paths.book.paths()
    wire.effects.clear()
    wire.paths.take_effects()
    wire.paths.local_change(wire.now)
    wire.run(0.015)
    assert len(wire.seen(SendProbe)) <= MAX_CANDIDATES + 1, "a burst probes each address once"


def test_a_flood_of_addresses_does_not_push_out_the_one_that_an_unconfirmed_move_left() -> None:
    wire = connected(A)
    wire.paths.on_ping(B, MOVED, wire.now)
    assert wire.paths.active == B
    for n in range(100):
        wire.paths.add_candidates([(Addr(f"10.0.0.{n + 1}", 4242), "record")], wire.now)
    assert len(wire.paths.book.paths()) == MAX_CANDIDATES
    wire.run(CONFIRM_S + 3.0)
    assert (wire.paths.active, wire.paths.seeking.connectivity) == (A, Connectivity.CONNECTED), (
        "answers from it must count"
    )


def test_a_path_that_was_dropped_is_not_gone_back_to() -> None:
    wire = connected(A, B)
    wire.paths.on_ping(B, MOVED, wire.now)
    wire.paths.book.drop(B)
    assert B in wire.paths.book, "it is in use"
    wire.paths.book.drop(A)
    wire.up = []
    wire.run(CONFIRM_S + 0.5)
    assert wire.paths.active == B, "the answers of A would find no candidate"


def test_an_address_on_our_own_network_is_tried_first() -> None:
    wire = Wire()
    wire.paths.book.here = LocalNetworks((("10.9.0.1", 24),))
    wire.paths.add_candidates([(Addr("198.51.100.1", 1), "record"), (Addr("10.9.0.7", 1), "record")], wire.now)
    assert wire.paths.book.best_guess() == Addr("10.9.0.7", 1)


@pytest.mark.parametrize("near_first", [True, False])
def test_a_neighbour_is_reached_on_our_own_network_and_not_through_a_nat_that_hairpins(near_first: bool) -> None:
    near, outside = Addr("10.9.0.7", 1), Addr("198.51.100.1", 1)
    wire = Wire(near, outside)
    wire.paths.book.here = LocalNetworks((("10.9.0.1", 24),))
    wire.paths.add_candidates([(outside, "record"), (near, "record")], wire.now)
    wire.paths.begin(outside, wire.now)
    wire.collect()
    if near_first:
        wire.paths.accept(outside, wire.now)
        wire.run(1.0)
    else:
        wire.run(0.01)
        wire.paths.accept(outside, wire.now)
        wire.run(1.0)
    assert wire.paths.active == near
    wire.run(60.0)
    assert wire.paths.active == near


def test_a_black_hole_is_noticed_while_small_packets_still_pass() -> None:
    wire = connected(A)
    assert next(iter(wire.paths.book)).mtu.size > BASE_MTU
    wire.mtu = 1300
    began = wire.now
    while not wire.seen(MtuChanged) and wire.now < began + 10:
        wire.paths.set_in_flight(50_000, wire.now)
        wire.paths.on_received(A, 40, True, wire.now)  # the peer's small packets: nothing looks silent
        wire.run(0.05)
    assert [effect.size for effect in wire.seen(MtuChanged)] == [BASE_MTU]
    assert wire.now - began < 2.5
    wire.paths.set_in_flight(0, wire.now)
    wire.run(8.0)
    assert 1250 < wire.seen(MtuChanged)[-1].size <= 1300, "what the path carries now is searched for"


def test_an_idle_path_costs_no_confirmations() -> None:
    wire = connected(A)
    wire.run(1.0)
    wire.paths.set_in_flight(1_000, wire.now)
    wire.run(0.02)
    wire.paths.on_received(A, 40, True, wire.now)
    wire.paths.set_in_flight(0, wire.now)
    wire.effects.clear()
    wire.run(10.0)
    assert [effect for effect in wire.seen(SendProbe) if effect.pad_to] == []


# ---- introductions


def on_a_relay() -> Wire:
    """A wire that was just accepted through a relay; nothing answers elsewhere."""
    wire = Wire(VIA_RELAY)
    wire.paths.accept(VIA_RELAY, wire.now)
    return wire


def asked(wire: Wire, seconds: float) -> list[float]:
    """Let time pass; how long after now each introduction was asked for."""
    began, times = wire.now, []
    while wire.now < began + seconds:
        before = len(wire.seen(NeedIntroduction))
        wire.run(0.005)
        times += [round(wire.now - began, 2)] * (len(wire.seen(NeedIntroduction)) - before)
    return times


def test_an_introduction_that_does_not_come_is_asked_for_twice_more_within_a_round() -> None:
    times = asked(on_a_relay(), 2.0)
    assert times == [pytest.approx(at, abs=0.02) for at in (0.0, 5 * 0.075, 14 * 0.075)]


def test_one_that_has_come_is_not_asked_for_again_before_the_next_round() -> None:
    wire = on_a_relay()
    assert len(asked(wire, 0.2)) == 1
    wire.paths.introduced(B, wire.now, wire.now)
    assert asked(wire, 2.0) == []
    assert len(asked(wire, 3.0)) >= 1, "the next round"


def test_the_end_of_the_relay_is_the_end_of_asking() -> None:
    wire = on_a_relay()
    wire.up.append(B)
    wire.paths.introduced(B, wire.now, wire.now)
    wire.run(1.0)
    assert wire.paths.active == B
    assert asked(wire, 30.0) == []
