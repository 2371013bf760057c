"""A peer on a relay: relays are compared while data flows, and a better kind of path is searched for."""

from __future__ import annotations

from itertools import pairwise

import pytest

from meshnode.base.address import Addr
from meshnode.base.path import Path, ViaRelay, ViaTunnel
from meshnode.base.path_reason import PathReason
from meshnode.nat.local_networks import LocalNetworks
from meshnode.paths.effects import MOVED, NeedIntroduction, SendProbe, Switched
from meshnode.paths.seeking import DIAL_GAPS_S
from meshnode.paths.upgrade import NEAR_GAPS_S, PAUSES_S
from tests.unit.path_wire import VIA_RELAY, A, B, C, Wire, record

OTHER_RELAY = ViaRelay("b-relay")
TUNNEL = ViaTunnel("peer", "192.0.2.9", 443)


def on_a_relay(*up: Path) -> Wire:
    """A wire that was just accepted through a relay; ``up`` answers too."""
    wire = Wire(VIA_RELAY, *up)
    wire.paths.accept(VIA_RELAY, wire.now)
    return wire


def beside_another(*up: Path) -> Wire:
    """A wire on a relay that has come to rest, and that knows a second one."""
    wire = on_a_relay(OTHER_RELAY, *up)
    wire.paths.add_candidates([(OTHER_RELAY, "record")], wire.now)
    wire.run(1.0)
    wire.effects.clear()
    return wire


def busy(wire: Wire, seconds: float) -> None:
    """Let time pass in which the peer's data comes by the path in use."""
    end = wire.now + seconds
    while wire.now < end:
        assert wire.paths.active is not None
        wire.paths.watchdog.data_at = wire.now
        wire.paths.on_received(wire.paths.active, True, wire.now)
        wire.run(0.05)


def ask_without_answer(wire: Wire) -> None:
    """Let both relays be probed once more, and go down before they answer."""
    wire.up = []
    wire.effects.clear()
    while OTHER_RELAY not in probed(wire):
        busy(wire, 0.05)


def probed(wire: Wire) -> list[Path]:
    """The paths that got a probe."""
    return [effect.path for effect in wire.effects if isinstance(effect, SendProbe)]


def losses(wire: Wire, path: Path) -> int:
    """The lost ones of the last probes on ``path``."""
    found = wire.paths.book.get(path)
    assert found is not None
    return found.losses


# ---- relays compared


def test_relays_are_probed_beside_each_other_while_data_flows_and_not_on_an_idle_path() -> None:
    wire = beside_another()
    wire.run(3.0)
    assert OTHER_RELAY not in probed(wire), "an idle path costs nothing"
    busy(wire, 2.0)
    assert probed(wire).count(OTHER_RELAY) == pytest.approx(10, abs=2), "five times a second"
    assert probed(wire).count(VIA_RELAY) == pytest.approx(10, abs=2)
    assert wire.paths.active == VIA_RELAY
    assert losses(wire, VIA_RELAY) == losses(wire, OTHER_RELAY) == 0


def test_a_relay_that_drops_what_others_carry_is_left_while_data_flows() -> None:
    wire = beside_another()
    wire.up = [OTHER_RELAY]
    busy(wire, 2.0)
    assert wire.paths.active == OTHER_RELAY
    assert [e.reason for e in wire.effects if isinstance(e, Switched)] == [PathReason.FEWER_LOSSES]


def test_a_relay_that_repeats_datagrams_is_left_as_one_that_drops_them() -> None:
    wire = beside_another()
    busy(wire, 1.0)
    for _ in range(3):
        wire.paths.book.on_duplicate(VIA_RELAY)
    assert losses(wire, VIA_RELAY) == 3
    busy(wire, 0.3)
    assert wire.paths.active == OTHER_RELAY


def test_what_comes_twice_by_another_path_than_a_relay_is_no_loss() -> None:
    wire = on_a_relay(A)
    wire.paths.add_candidates([(A, "record")], wire.now)
    wire.paths.book.on_duplicate(A)
    wire.paths.book.on_duplicate(B)
    assert losses(wire, A) == 0
    assert B not in wire.paths.book, "and teaches no address"


def test_a_pause_of_this_process_is_no_loss_of_a_relay() -> None:
    wire = beside_another()
    busy(wire, 1.0)
    ask_without_answer(wire)
    wire.paths.tick(wire.now + 1.0)
    wire.paths.tick(wire.now + 2.0)
    assert losses(wire, VIA_RELAY) == losses(wire, OTHER_RELAY) == 0


def test_a_probe_that_was_on_its_way_when_the_relay_was_left_is_no_loss_of_it() -> None:
    wire = beside_another(A)
    busy(wire, 1.0)
    ask_without_answer(wire)
    wire.paths.accept(A, wire.now)
    wire.up = [VIA_RELAY, OTHER_RELAY]
    wire.run(1.0)
    wire.paths.accept(VIA_RELAY, wire.now)
    wire.run(1.5)
    assert wire.paths.active == VIA_RELAY
    assert losses(wire, VIA_RELAY) == losses(wire, OTHER_RELAY) == 0


def test_beside_a_direct_path_no_relay_is_compared() -> None:
    wire = beside_another(A)
    wire.paths.accept(A, wire.now)
    wire.effects.clear()
    busy(wire, 2.0)
    assert not {VIA_RELAY, OTHER_RELAY} & set(probed(wire))


# ---- the search for a better kind


def rounds(wire: Wire, seconds: float) -> list[float]:
    """Let time pass; how long after now each round of probes began, by the introductions that were asked for."""
    began, found = wire.now, []
    while wire.now < began + seconds:
        before = len(wire.seen(NeedIntroduction))
        wire.run(0.01)
        if len(wire.seen(NeedIntroduction)) > before and (not found or wire.now - began - found[-1] > 1.5):
            found.append(wire.now - began)
    return found


def test_rounds_follow_each_other_in_pauses_that_grow() -> None:
    begun = rounds(on_a_relay(), 120.0)
    gaps = [later - earlier for earlier, later in pairwise(begun)]
    assert begun[0] < 0.1
    assert gaps[:4] == [pytest.approx(1.8 + pause, rel=0.12) for pause in PAUSES_S]


def test_a_round_has_24_probes_75_ms_apart_at_each_better_address() -> None:
    wire = on_a_relay()
    wire.paths.add_candidates([(A, "record"), (B, "record"), (OTHER_RELAY, "record")], wire.now)
    wire.run(2.5)
    assert probed(wire).count(A) == probed(wire).count(B) == 24
    assert OTHER_RELAY not in probed(wire), "that is no better kind"


def test_a_change_of_network_begins_a_round_at_once_and_the_pauses_again() -> None:
    wire = on_a_relay()
    wire.paths.add_candidates([(A, "record")], wire.now)
    wire.run(30.0)
    wire.effects.clear()
    wire.paths.local_change(wire.now)
    begun = rounds(wire, 6.0)
    assert begun[0] < 0.1
    assert begun[1] - begun[0] == pytest.approx(1.8 + PAUSES_S[0], rel=0.12)


def test_a_new_address_in_the_peers_record_is_tried_at_once_and_taken_when_it_answers() -> None:
    wire = on_a_relay(B)
    wire.run(30.0)
    wire.paths.peer_record(record(B), wire.now)
    wire.run(0.1)
    assert wire.paths.active == B
    assert wire.seen(Switched)[-1] == Switched(VIA_RELAY, B, PathReason.BETTER_KIND, False)


def test_both_ends_begin_a_round_when_the_relay_says_so() -> None:
    wire = on_a_relay()
    wire.run(3.0)
    wire.effects.clear()
    wire.paths.introduced(B, wire.now + 0.5, wire.now)
    wire.run(0.45)
    assert B not in probed(wire)
    wire.run(0.1)
    assert B in probed(wire)


def test_a_direct_path_has_no_rounds_whatever_happens() -> None:
    wire = Wire(A)
    wire.paths.accept(A, wire.now)
    wire.paths.local_change(wire.now)
    wire.paths.introduced(C, wire.now, wire.now)
    wire.run(20.0)
    assert probed(wire).count(C) <= 1, "only the move is told there"
    assert not wire.seen(NeedIntroduction)


def test_a_tunnel_is_left_for_udp_and_asks_for_no_introduction() -> None:
    wire = Wire(TUNNEL)
    wire.paths.accept(TUNNEL, wire.now)
    wire.paths.add_candidates([(A, "record")], wire.now)
    wire.run(3.0)
    assert not wire.seen(NeedIntroduction), "there is no relay that could give one"
    wire.up.append(A)
    wire.run(10.0)
    assert wire.paths.active == A


# ---- pings of the peer


def test_a_move_of_the_peer_is_no_move_of_this_node() -> None:
    wire = on_a_relay(A, B)
    wire.paths.accept(A, wire.now)
    wire.run(1.0)
    wire.effects.clear()
    wire.paths.on_ping(B, MOVED, wire.now)
    wire.collect()
    assert [(e.path, e.flags) for e in wire.effects if isinstance(e, SendProbe)] == [(B, 0)]


def test_a_ping_on_the_path_in_use_costs_no_probe_and_moves_nothing() -> None:
    wire = Wire(A)
    wire.paths.accept(A, wire.now)
    wire.run(2.0)
    wire.effects.clear()
    wire.paths.on_ping(A, 0, wire.now)
    wire.paths.on_ping(A, MOVED, wire.now)
    wire.run(3.0)
    assert probed(wire) == []
    assert wire.paths.active == A


# ---- a direct path that leads out of this node's networks and in again


def hairpinned() -> Wire:
    """A wire on a direct path whose peer's record names an address on this node's network that nothing answers yet."""
    wire = Wire(A)
    wire.paths.book.here = LocalNetworks(((B.host, 31),))
    wire.paths.accept(A, wire.now)
    wire.paths.peer_record(record(B, A), wire.now)
    return wire


def test_an_address_on_our_network_whose_first_probe_was_lost_is_probed_again_and_taken() -> None:
    wire = hairpinned()
    wire.run(1.0)
    wire.up.append(B)
    wire.run(1.5)
    assert wire.paths.active == B
    wire.effects.clear()
    wire.run(20.0)
    assert A not in probed(wire), "there is nothing nearer than that"


def test_an_address_on_our_network_that_answers_late_at_first_is_taken_once_it_answers_in_time() -> None:
    wire = hairpinned()
    wire.up.append(B)
    wire.rtts[B] = 0.2  # this host is busy
    wire.run(0.5)
    assert wire.paths.active == A
    wire.rtts[B] = 0.001
    wire.run(2.0)
    assert wire.paths.active == B


def test_an_address_on_our_network_that_never_answers_is_given_up() -> None:
    wire = hairpinned()
    wire.run(12.0)
    assert probed(wire).count(B) == 1 + len(NEAR_GAPS_S)
    wire.effects.clear()
    wire.run(100.0)
    assert B not in probed(wire)
    wire.paths.local_change(wire.now)
    wire.run(12.0)
    assert probed(wire).count(B) >= len(NEAR_GAPS_S), "another network, another try"


def test_an_address_on_our_network_that_falls_silent_again_and_again_is_taken_less_and_less() -> None:
    wire = hairpinned()
    wire.up.append(B)
    for _ in range(6):
        wire.run(0.5)
        wire.up.remove(B)
        if wire.paths.active == B:
            wire.paths.set_in_flight(1, wire.now)
            wire.run(1.0)
            wire.paths.set_in_flight(0, wire.now)
            assert wire.paths.active == A
        wire.up.append(B)
    back = [e for e in wire.seen(Switched) if isinstance(e, Switched) and e.reason is PathReason.NEARER]
    assert 2 <= len(back) <= 4


def test_a_direct_path_that_becomes_a_relayed_one_has_rounds_at_once() -> None:
    wire = hairpinned()
    wire.up.append(VIA_RELAY)
    wire.run(0.15)
    wire.up.remove(A)
    wire.paths.add_candidates([(VIA_RELAY, "record")], wire.now)
    wire.paths.accept(VIA_RELAY, wire.now)
    wire.effects.clear()
    wire.run(0.2)
    assert probed(wire).count(B) >= 2


def test_a_direct_path_that_falls_silent_is_searched_for_at_once_beside_the_relay() -> None:
    wire = hairpinned()
    wire.up.append(VIA_RELAY)
    wire.paths.add_candidates([(VIA_RELAY, "record")], wire.now)
    wire.run(4.0)  # five seconds lie between the last two probes on our network
    wire.up.remove(A)
    wire.paths.set_in_flight(1, wire.now)
    while wire.paths.active != VIA_RELAY:
        wire.run(0.01)
    wire.effects.clear()
    wire.run(0.5)
    assert probed(wire).count(B) >= 4


# ---- relays beside a dial


@pytest.mark.parametrize("here", ["127.0.0.1", "192.0.2.1"])
def test_a_dial_within_a_network_asks_relays_only_when_it_is_not_answered_soon(here: str) -> None:
    near = Addr(here, 4242)
    wire = Wire()
    wire.paths.add_candidates([(near, "record"), (VIA_RELAY, "relay")], wire.now)
    wire.paths.begin(near, wire.now)
    wire.run(DIAL_GAPS_S[0] / 2)
    is_near = here.startswith("127.")
    assert (VIA_RELAY in probed(wire)) is not is_near, "of any other address it is not known whether it is reached"
    wire.run(DIAL_GAPS_S[0])
    assert VIA_RELAY in probed(wire)
