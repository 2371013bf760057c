"""Paths that answer small probes and lose what is as long as QUIC's first packets."""

from __future__ import annotations

import pytest

from meshnode.base.limits import BASE_MTU
from meshnode.base.path import Path, ViaTunnel
from meshnode.base.path_reason import PathReason
from meshnode.paths.effects import EXPAND, MOVED, SEEKING, SendProbe, Switched
from meshnode.paths.mtu import BASE_PROBES, ERROR_PAUSE_S, PROBE_TIMER_MIN_S
from meshnode.paths.seeking import Connectivity
from meshnode.stack import probe
from tests.unit.path_wire import RTT, VIA_RELAY, A, B, Wire, connected

SMALL = BASE_MTU - 100
TUNNEL = ViaTunnel("peer", "192.0.2.3", 443)


def _padded(wire: Wire, path: Path) -> list[SendProbe]:
    found = [effect for effect in wire.effects if isinstance(effect, SendProbe)]
    return [effect for effect in found if effect.path == path and effect.pad_to >= BASE_MTU]


def _switches(wire: Wire) -> list[tuple[Path, PathReason]]:
    return [(effect.new, effect.reason) for effect in wire.effects if isinstance(effect, Switched)]


def _transfer(wire: Wire, seconds: float) -> None:
    """Let packets be under way that are never acknowledged, and ever fewer timers of QUIC's fire."""
    wire.paths.set_in_flight(BASE_MTU, wire.now)
    wire.run(seconds)


def test_a_better_kind_is_taken_once_it_has_carried_a_whole_packet() -> None:
    wire = connected(VIA_RELAY, A, at=VIA_RELAY)
    wire.paths.introduced(A, wire.now, wire.now)
    wire.run(2.5 * RTT)
    assert wire.paths.active == A
    (first, *_) = _padded(wire, A)
    assert (first.pad_to, first.flags) == (BASE_MTU, EXPAND)


def test_a_better_kind_that_is_too_small_is_not_taken_and_seldom_tried() -> None:
    wire = connected(VIA_RELAY, A, at=VIA_RELAY)
    wire.mtus[A] = SMALL
    wire.paths.introduced(A, wire.now, wire.now)
    wire.run(60.0)
    assert _switches(wire) == []
    assert len(_padded(wire, A)) <= BASE_PROBES + 60.0 / ERROR_PAUSE_S
    wire.paths.on_received(A, True, wire.now)  # the peer sends that way: an old version, say
    wire.paths.on_ping(A, SEEKING, wire.now)
    wire.run(1.0)
    assert wire.paths.active == VIA_RELAY


def test_a_dial_goes_on_by_another_path_where_the_first_is_too_small() -> None:
    wire = Wire(A, TUNNEL)
    wire.mtus[A] = SMALL
    wire.paths.add_candidates([(A, "record"), (TUNNEL, "record")], wire.now)
    wire.paths.begin(A, wire.now)
    wire.run(0.1 + RTT + 0.1)
    assert wire.paths.active == A
    wire.run(BASE_PROBES * PROBE_TIMER_MIN_S + 2 * RTT)
    assert _switches(wire) == [(TUNNEL, PathReason.TOO_SMALL)]
    to_tunnel = [e for e in wire.seen(SendProbe) if isinstance(e, SendProbe) and e.path == TUNNEL]
    assert to_tunnel[-1].flags == MOVED, "a listener that got the first flight answers there from now on"
    assert wire.paths.book.best_guess() == TUNNEL, "the next dial begins there"
    assert "1200 bytes are lost" in next(c.outcome for c in wire.paths.book if c.path == A)


def test_a_dial_that_is_answered_in_time_costs_no_padded_probe() -> None:
    wire = Wire(A, B)
    wire.rtts[B] = 1.5 * RTT
    wire.paths.add_candidates([(A, "record"), (B, "record")], wire.now)
    wire.paths.begin(A, wire.now)
    wire.run(RTT)
    wire.paths.on_received(A, False, wire.now, proven=True)
    wire.run(RTT)
    assert wire.paths.active == A, "though the other address has answered before the handshake is done"
    wire.paths.accept(A, wire.now)
    assert _padded(wire, A) + _padded(wire, B) == []
    assert wire.paths.book.current is not None
    assert wire.paths.book.current.mtu.carries, "the handshake has shown it"


def test_a_path_in_use_that_becomes_too_small_is_left_within_two_seconds() -> None:
    wire = connected(A, VIA_RELAY)
    wire.paths.add_candidates([(VIA_RELAY, "relay")], wire.now)
    wire.mtu = SMALL
    wire.mtus[VIA_RELAY] = BASE_MTU
    _transfer(wire, 2.0)
    assert _switches(wire) == [(VIA_RELAY, PathReason.TOO_SMALL)]
    wire.paths.set_in_flight(0, wire.now)
    wire.run(40.0)
    assert len(_switches(wire)) == 1, "and it stays left while it is too small"
    wire.mtu = 1500
    wire.run(70.0)  # the longest pause of the rounds that look for a better kind
    assert _switches(wire)[1:] == [(A, PathReason.BETTER_KIND)]


@pytest.mark.parametrize("lost", [1, BASE_PROBES - 1])
def test_a_few_lost_probes_do_not_make_a_path_too_small(lost: int) -> None:
    wire = connected(A, VIA_RELAY)
    wire.paths.add_candidates([(VIA_RELAY, "relay")], wire.now)
    wire.lost = lost
    _transfer(wire, 4.0)
    assert _switches(wire) == []


def test_a_path_that_carries_nothing_is_not_taken_for_one_that_is_too_small() -> None:
    wire = connected(A)
    wire.up = []
    _transfer(wire, 10.0)
    assert wire.paths.book.current is not None
    assert not wire.paths.book.current.is_too_small
    assert len(_padded(wire, A)) == BASE_PROBES
    wire.up = [A]
    wire.run(5.5)
    assert wire.paths.seeking.connectivity is Connectivity.CONNECTED


def test_a_path_that_is_too_small_and_the_only_one_is_kept_and_found_large_enough_again() -> None:
    wire = connected(A)
    wire.mtu = SMALL
    _transfer(wire, 5.0)
    wire.paths.set_in_flight(0, wire.now)
    assert wire.paths.active == A
    assert wire.paths.book.current is not None
    assert wire.paths.book.current.is_too_small
    wire.effects.clear()
    wire.run(30.0)
    assert len(_padded(wire, A)) <= 30.0 / ERROR_PAUSE_S + 1
    wire.mtu = 1500
    wire.run(ERROR_PAUSE_S + 5.5)
    assert not wire.paths.book.current.is_too_small
    assert wire.paths.seeking.connectivity is Connectivity.CONNECTED


def test_what_was_found_too_small_may_be_larger_after_a_move() -> None:
    wire = connected(VIA_RELAY, A, at=VIA_RELAY)
    wire.mtus[A] = SMALL
    wire.paths.introduced(A, wire.now, wire.now)
    wire.run(3.0)
    assert wire.paths.active == VIA_RELAY
    wire.mtus.clear()
    wire.paths.local_change(wire.now)
    wire.run(3 * RTT)
    assert wire.paths.active == A


def test_the_answer_to_what_tells_of_a_move_proves_no_size() -> None:
    """It leaves shorter where there is no credit for more."""
    wire = connected(A, B)
    wire.paths.add_candidates([(B, "record")], wire.now)
    wire.paths.watchdog.data_at = wire.now
    wire.paths.local_change(wire.now)
    wire.run(5 * RTT)
    assert _padded(wire, B)
    assert not next(c for c in wire.paths.book if c.path == B).mtu.carries


@pytest.mark.parametrize("size", [probe.MIN_PING, 500, BASE_MTU])
def test_an_expanded_answer_is_as_long_as_it_is_to_be_and_says_the_same(size: int) -> None:
    for observed in (A, None):
        pong = probe.Pong(probe.NO_CONN, bytes(8), observed)
        body = probe.encode_pong(pong, size)
        assert len(body) == size
        assert probe.decode_pong(body) == probe.Pong(probe.NO_CONN | probe.EXPANDED, bytes(8), observed)
    assert probe.decode_pong(body[: probe.MIN_PING - 1]) is None
    assert probe.decode_pong(body[:10] + b"\x07" + body[11:]) is None, "no address has seven bytes"
