"""Which addresses of a peer are candidates: junk, floods, neighbours, and what was dropped."""

from __future__ import annotations

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import MAX_CANDIDATES
from meshnode.base.path import ViaRelay
from meshnode.nat.local_networks import LocalNetworks
from meshnode.paths.effects import (
    MOVED,
    SEEKING,
    SendProbe,
)
from meshnode.paths.seeking import Connectivity
from meshnode.paths.validation import CONFIRM_S
from tests.unit.path_wire import VIA_RELAY, A, B, Wire, connected, record

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
    wire.paths.on_received(addr, True, wire.now)
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
        wire.paths.on_received(Addr(f"10.1.{n >> 8}.{n & 255}", 4242), True, wire.now)
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


def test_a_relay_that_names_ever_new_addresses_hides_none_that_others_name() -> None:
    other = ViaRelay("b-relay")
    wire = Wire(VIA_RELAY)
    wire.paths.accept(VIA_RELAY, wire.now)
    wire.paths.peer_record(record(A, B), wire.now)
    wire.paths.add_candidates([(other, "relay")], wire.now)
    for n in range(4 * MAX_CANDIDATES):
        wire.paths.introduced(Addr(f"198.51.100.{n + 1}", 4242), wire.now, wire.now)
    known = wire.paths.book.paths()
    assert len(known) == MAX_CANDIDATES
    assert {A, B, other} <= {*known}


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


@pytest.mark.parametrize(("own", "is_near"), [("10.9.0.1", False), ("169.254.3.4", True)])
def test_an_address_without_dhcp_is_near_only_to_a_host_that_has_one_too(own: str, is_near: bool) -> None:
    usual, lost = Addr("198.51.100.1", 1), Addr("169.254.7.8", 1)
    wire = Wire()
    wire.paths.book.here = LocalNetworks(((own, 16),))
    wire.paths.add_candidates([(usual, "record"), (lost, "record")], wire.now)
    assert wire.paths.book.best_guess() == (lost if is_near else usual)
    assert wire.paths.book.kind(lost) == ("lan" if is_near else "direct")


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
