"""The choice among a peer's addresses: moves, silence, a faster address, introductions."""

from __future__ import annotations

import pytest

from meshnode.base.limits import BASE_MTU, MAX_MOVED_PADDED
from meshnode.base.path_reason import PathReason
from meshnode.paths.effects import (
    MOVED,
    SEEKING,
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


def test_a_move_of_this_node_asks_for_no_record_while_the_peer_has_time_to_answer() -> None:
    for up in ([A], []):
        wire = connected(A)
        wire.up = list(up)
        wire.paths.local_change(wire.now)
        wire.run(0.25)
        assert bool(wire.seen(NeedRecord)) is not bool(up), "each is a lookup of a peer that has not moved"


def test_a_peer_that_moved_is_followed_at_once_and_probed() -> None:
    wire = connected(A, B)
    wire.paths.on_ping(B, MOVED, wire.now)
    wire.collect()
    assert wire.paths.active == B
    assert [e.path for e in wire.effects if isinstance(e, SendProbe)] == [B]
    wire.run(RTT * 1.5)
    assert wire.seen(Validated) == [Validated(B)], "our own probe went round trip"


def test_a_probe_of_where_the_peer_moved_to_tells_of_no_move_of_ours() -> None:
    wire = connected(A, B)
    for path in (B, A):  # one that is not validated yet, and one that is
        wire.paths.on_ping(path, MOVED, wire.now)
        assert wire.paths.active == path
        wire.run(2.0)
    told = {(e.path, e.flags & (MOVED | SEEKING)) for e in wire.effects if isinstance(e, SendProbe)}
    assert told == {(A, 0), (B, 0)}


def test_a_handshake_that_did_not_go_round_trip_on_its_address_is_confirmed_there_by_a_probe() -> None:
    wire = Wire(A)
    wire.paths.accept(A, wire.now, round_trip=False)
    assert not wire.paths.book.current.is_valid  # type: ignore[union-attr]
    wire.run(RTT * 1.5)
    assert wire.seen(Validated) == [Validated(A)]
    dead = Wire()
    dead.paths.accept(A, dead.now, round_trip=False)
    dead.run(CONFIRM_S + 0.1)
    assert dead.paths.seeking.silent_since is not None, "an address that does not answer is no path"


def test_what_tells_of_a_move_earns_the_answer_a_packet_while_data_is_under_way() -> None:
    idle = connected(A)
    idle.paths.local_change(idle.now)
    idle.run(0.3)
    assert {e.pad_to for e in idle.effects if isinstance(e, SendProbe)} == {0}
    busy = connected(A, B)
    busy.paths.add_candidates([(B, "seed")], busy.now)
    busy.up = []
    busy.paths.watchdog.data_at = busy.now
    busy.effects.clear()
    busy.paths.local_change(busy.now)
    busy.run(0.3)
    told = [(e.path, e.pad_to) for e in busy.effects if isinstance(e, SendProbe)]
    for path in (A, B):
        sizes = [pad_to for to, pad_to in told if to == path]
        assert sizes[: MAX_MOVED_PADDED + 1] == [BASE_MTU] * MAX_MOVED_PADDED + [0], "two packets, and no flood of them"


def test_a_candidate_is_named_by_records_and_settings_and_not_by_the_source_of_a_datagram() -> None:
    wire = connected(A)
    wire.paths.on_ping(B, 0, wire.now)
    wire.paths.on_received(C, True, wire.now)
    assert [wire.paths.book.get(path).named for path in (A, B, C)] == [False] * 3  # type: ignore[union-attr]
    wire.paths.peer_record(record(B), wire.now)
    wire.paths.introduced(C, wire.now, wire.now)
    assert [wire.paths.book.get(path).named for path in (B, C)] == [True] * 2  # type: ignore[union-attr]


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
    wire.paths.on_received(B, True, wire.now)
    wire.run(3.0)
    assert wire.paths.active == A, "no peer answers at B"
    wire.up = [B]
    wire.paths.on_received(C, False, wire.now)
    assert C not in wire.paths.book.paths(), "a packet that any host may have made teaches nothing"


def test_a_peer_whose_nat_mapping_changed_is_followed_after_one_round_trip() -> None:
    wire = connected(A, B)
    wire.up = [B]
    wire.now += 0.01
    wire.paths.on_received(B, True, wire.now)
    wire.run(RTT * 1.5)
    assert wire.paths.active == B


def test_a_source_that_has_not_earned_a_probe_is_probed_by_the_next_packet() -> None:
    wire = connected(A, B)
    for _ in range(2):
        wire.effects.clear()
        wire.paths.on_received(B, True, wire.now)
        for effect in wire.paths.take_effects():
            assert isinstance(effect, SendProbe)
            wire.paths.unsent(effect.tx)
            wire.effects.append(effect)
        assert [e.path for e in wire.seen(SendProbe)] == [B]  # type: ignore[attr-defined]
    wire.up = [B]
    wire.paths.on_received(B, True, wire.now)
    wire.run(RTT * 1.5)
    assert wire.paths.active == B


# ---- silence


def test_silence_while_an_answer_is_due_is_noticed_and_probed_everywhere() -> None:
    wire = connected(A, B)
    wire.paths.add_candidates([(B, "seed")], wire.now)
    wire.up = [B]
    wire.paths.set_in_flight(1000, wire.now)
    wire.run(0.2)
    assert wire.paths.active == B
    assert wire.paths.seeking.connectivity is Connectivity.CONNECTED


def test_a_peers_own_pings_hide_no_loss_of_what_is_sent_to_it() -> None:
    wire = connected(A, VIA_RELAY)
    wire.paths.add_candidates([(VIA_RELAY, "record")], wire.now)
    wire.up.remove(A)  # what goes there is lost; what the peer sends from there comes
    wire.paths.set_in_flight(50_000, wire.now)
    began = wire.now
    while wire.paths.active == A and wire.now < began + 3.0:
        wire.paths.on_ping(A, 0, wire.now)  # it is at a relay, and looks for a direct path
        wire.run(0.075)
    assert wire.paths.active == VIA_RELAY
    assert wire.now - began < 0.3


def test_a_node_at_rest_that_a_peer_does_not_hear_looks_for_another_path() -> None:
    wire = connected(A, VIA_RELAY)
    wire.paths.add_candidates([(VIA_RELAY, "record")], wire.now)
    wire.up.remove(A)
    began = wire.now
    while wire.paths.active == A and wire.now < began + 3.0:
        wire.paths.on_ping(A, SEEKING, wire.now)
        wire.run(0.05)
    assert wire.paths.active == VIA_RELAY
    assert wire.now - began < 0.3


def test_a_node_at_rest_that_a_peer_hears_again_asks_its_path_alone() -> None:
    wire = connected(A, B)
    wire.paths.add_candidates([(B, "record")], wire.now)
    wire.run(1.0)
    wire.effects.clear()
    wire.paths.on_ping(A, SEEKING, wire.now)
    wire.run(1.0)
    assert [effect.path for effect in wire.seen(SendProbe) if isinstance(effect, SendProbe)] == [A]
    assert wire.paths.seeking.silent_since is None


def test_a_peers_pings_are_a_sign_of_life_while_it_owes_no_answer() -> None:
    wire = connected(A)
    for _ in range(20):
        wire.paths.on_ping(A, 0, wire.now)
        wire.run(6.0)
    assert not wire.seen(SendProbe), "no keepalive beside those of the peer"


def test_the_history_has_a_silence_and_the_switch_that_ended_it_as_one_entry() -> None:
    wire = connected(A, B)
    wire.paths.add_candidates([(B, "seed")], wire.now)
    wire.up = [B]
    began = wire.now
    wire.paths.set_in_flight(1000, wire.now)
    wire.run(0.2)
    first, second = wire.paths.history
    assert (first.path, first.reason, first.silent_s) == (A, PathReason.ACCEPTED, None)
    assert (second.path, second.reason, second.is_open) == (B, PathReason.ANSWERED, False)
    assert second.silent_s is not None
    assert first.at < began < second.at - second.silent_s


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
    wire.paths.on_received(wire.paths.active, True, wire.now)
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


# ---- a second dial


def test_a_dial_begins_with_nothing_of_the_connection_before_it() -> None:
    wire = connected(A, B)
    wire.paths.add_candidates([(B, "seed")], wire.now)
    wire.paths.on_ping(B, MOVED, wire.now)  # to be confirmed within a second
    wire.up = []
    wire.paths.set_in_flight(1000, wire.now)
    wire.run(CONFIRM_S / 2)
    assert wire.paths.seeking.silent_since is not None
    wire.paths.set_in_flight(0, wire.now)
    wire.paths.take_effects()
    wire.effects.clear()
    wire.paths.begin(A, wire.now)
    wire.run(CONFIRM_S)
    assert wire.paths.seeking.silent_since is None
    assert not [effect for effect in wire.effects if not isinstance(effect, SendProbe)]
    assert {effect.flags for effect in wire.effects if isinstance(effect, SendProbe)} == {0}
    wire.up = [B]
    wire.run(3.0)
    assert wire.paths.active == B, "it goes on where it is answered first, though the other was validated before"
