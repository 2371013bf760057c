"""Relay frames byte by byte as the reference has them, and what a relay lets through."""

from __future__ import annotations

import hashlib
import random

import pytest

from meshnode.base.address import Addr, pack_addr
from meshnode.base.fair_rate import KEPT
from meshnode.base.limits import MAX_RELAY_FLOWS, RELAY_BURST_S, RELAY_CONSENT_S
from meshnode.base.metrics import Metrics
from meshnode.base.wire import decode
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.quic.hello import Frame, frame
from meshnode.relay.frames import DOWN, FRAME_OVERHEAD, UP, label, make_frame, parse_frame, proven
from meshnode.relay.server import RelayLimits, RelayServer, Reservation

ONE, TWO, THREE = (Identity(bytes([n]) * 32).id for n in (1, 2, 3))
KEY, RESERVATION = bytes(range(32)), b"reserved"


def test_a_frame_is_laid_out_as_the_reference_says() -> None:
    made = make_frame(KEY, UP, RESERVATION, label(TWO), b"inner")
    mac = hashlib.blake2b(TWO.raw[:8] + b"inner", key=KEY, digest_size=8, person=b"mesh-relay-up").digest()
    assert made == b"\x02" + RESERVATION + mac + TWO.raw[:8] + b"inner"
    assert len(made) == FRAME_OVERHEAD + 5 == 30


def test_a_frame_proves_its_leg_in_its_direction_only() -> None:
    parsed = parse_frame(make_frame(KEY, UP, RESERVATION, label(TWO), b"inner"))
    assert parsed is not None
    assert proven(parsed, KEY, UP)
    assert not proven(parsed, KEY, DOWN)
    assert not proven(parsed, bytes(32), UP)
    assert not proven(parsed._replace(inner=b"other"), KEY, UP)
    assert not proven(parsed._replace(peer=label(THREE)), KEY, UP)


@pytest.mark.parametrize("length", [*range(26), 40])
def test_what_is_too_short_or_no_frame_is_none(length: int) -> None:
    assert parse_frame(b"\x02" * min(length, FRAME_OVERHEAD) if length < 26 else b"\x01" * length) is None


def test_control_frames_are_what_the_reference_says() -> None:
    addr = Addr("198.51.100.7", 258)
    for kind, fields, expected in (
        (Frame.RELAY_ASK, (), [4]),
        (Frame.RELAY_GRANT, (RESERVATION, KEY), [5, RESERVATION, KEY]),
        (Frame.RELAY_REFUSE, ("full",), [6, "full"]),
        (Frame.INTRODUCE, (bytes(ONE),), [7, bytes(ONE)]),
        (Frame.INTRODUCED, (bytes(ONE), pack_addr(addr), 9), [8, bytes(ONE), b"\xc6\x33\x64\x07\x01\x02", 9]),
        (Frame.SEARCH, (), [9]),
    ):
        made = frame(kind, *fields)
        assert int.from_bytes(made[:2], "big") == len(made) - 2
        assert decode(made[2:], 200) == expected


def _server(**limits: float) -> tuple[RelayServer, Metrics, list[Reservation]]:
    metrics = Metrics()
    made = RelayServer(RelayLimits(**limits), lambda peer: peer != THREE, random.Random(1).randbytes, metrics, 0.0)  # type: ignore[arg-type]
    legs = [made.reserve(peer, (peer,), 0.0)[0] for peer in (ONE, TWO)]  # each in a network of its own
    assert all(isinstance(leg, Reservation) for leg in legs)
    return made, metrics, legs  # type: ignore[return-value]


def _up(server: RelayServer, leg: Reservation, to: bytes, inner: bytes, now: float) -> object:
    parsed = parse_frame(make_frame(leg.key, UP, leg.id, to, inner))
    assert parsed is not None
    return server.forward(parsed, now)


def test_a_relay_makes_one_frame_of_one_and_names_the_true_sender() -> None:
    server, _, (one, two) = _server()
    assert (one.forwarded, one.refused) == (0, 0)
    forwarded = _up(server, one, label(TWO), b"inner", 0.0)
    assert isinstance(forwarded, tuple)
    to, made = forwarded
    parsed = parse_frame(made)
    assert parsed is not None
    assert (to, parsed.peer, parsed.inner, len(made)) == (TWO, label(ONE), b"inner", 30)
    assert proven(parsed, two.key, DOWN)


def test_a_client_that_is_not_allowed_gets_no_reservation_and_frames_without_receiver_are_dropped() -> None:
    server, metrics, (one, _) = _server()
    assert isinstance(server.reserve(THREE, ("",), 0.0)[0], str)
    assert _up(server, one, label(THREE), b"x", 0.0) is None
    assert _up(server, one, label(ONE), b"x", 0.0) is None, "no echo to oneself"
    assert metrics.counters == {"relay_refused": 1, "relay_no_peer": 2}


def test_what_is_over_the_limit_is_dropped_and_counted() -> None:
    server, metrics, (one, _) = _server(client_bytes=100_000.0, client_packets=1e6)
    passed = sum(_up(server, one, label(TWO), bytes(1_000), tick / 1_000) is not None for tick in range(1_000))
    assert passed == pytest.approx(100 * (1 + RELAY_BURST_S), abs=2)
    assert metrics.counters["relay_over_limit"] == 1_000 - passed


@pytest.mark.parametrize("limit", [{"total_bytes": 100_000.0}, {"total_packets": 100.0}])
def test_all_clients_together_get_no_more_than_the_relay_gives_in_total(limit: dict[str, float]) -> None:
    server, metrics, (one, two) = _server(client_bytes=1e9, client_packets=1e9, **limit)
    passed = 0
    for tick in range(1_000):
        now = tick / 1_000
        passed += _up(server, one, label(TWO), bytes(500), now) is not None
        passed += _up(server, two, label(ONE), bytes(500), now) is not None
    total = 200 if "total_bytes" in limit else 100
    assert total * (1 + (1 - KEPT) * RELAY_BURST_S) - 2 <= passed <= total * (1 + RELAY_BURST_S) + 2
    assert metrics.counters["relay_over_total"] == 2_000 - passed


def test_a_client_that_sends_little_is_served_whatever_those_do_that_send_much() -> None:
    server, metrics, (one, two) = _server(client_bytes=1e9, client_packets=1e9, total_bytes=1e6)
    served = 0
    for tick in range(4_000):
        now = tick / 1_000
        for _ in range(5):
            _up(server, one, label(TWO), bytes(1_000), now)
        if tick % 125 == 0:  # 8 kB/s of 1 MB/s
            served += _up(server, two, label(ONE), bytes(1_000), now) is not None
    assert served == 32
    assert metrics.counters["relay_over_total"] > 10_000


def test_ids_of_one_network_share_what_is_kept_for_those_that_send_little() -> None:
    server, metrics, (_, two) = _server(client_bytes=1e9, client_packets=1e9, total_bytes=1e6, clients=200)
    crowd = [server.reserve(NodeId(bytes([9, n]) * 16), ("one network",), 0.0)[0] for n in range(100)]
    served = 0
    for tick in range(4_000):
        now = tick / 1_000
        for n in range(5):  # 50 kB/s each: a share for each id would leave the others nothing
            leg = crowd[(5 * tick + n) % 100]
            assert isinstance(leg, Reservation)
            _up(server, leg, label(ONE), bytes(1_000), now)
        if tick % 125 == 0:
            served += _up(server, two, label(ONE), bytes(1_000), now) is not None
    assert served == 32
    assert metrics.counters["relay_over_total"] > 10_000


def test_a_client_that_moves_shares_with_its_new_network() -> None:
    server, _, (one, two) = _server()
    server.moved(ONE, ("elsewhere",), 1.0)
    assert one.little is not two.little
    server.moved(TWO, ("elsewhere",), 1.0)
    server.moved(THREE, ("elsewhere",), 1.0)
    assert one.little is two.little


def test_a_full_relay_takes_a_client_of_another_network_in_place_of_the_newest_of_the_largest() -> None:
    server, metrics, _ = _server(clients=4)
    crowd = [NodeId(bytes([9, n]) * 16) for n in range(3)]
    assert [server.reserve(peer, ("crowd",), 1.0)[1] for peer in crowd] == [None] * 3, "the last has no place"
    assert metrics.counters["relay_refused"] == 1
    made, gone = server.reserve(NodeId(bytes([8]) * 32), ("another",), 2.0)
    assert isinstance(made, Reservation)
    assert gone == crowd[1]
    assert server.serves(ONE)
    assert server.serves(crowd[0])
    assert not server.serves(crowd[1])
    server.release(ONE)
    assert isinstance(server.reserve(crowd[2], ("crowd",), 3.0)[0], Reservation), "there is room again"
    assert len(server) == 4


def test_the_end_of_one_client_leaves_the_reservation_of_another_with_the_same_label() -> None:
    """A label is 8 bytes of an id: a stranger can make an id with the same ones."""
    server, _, (one, two) = _server()
    stranger = NodeId(ONE.raw[:8] + bytes(24))
    assert server.reserve(stranger, ("",), 0.0) == ("this relay is full", None)
    server.release(stranger)
    assert server.serves(ONE)
    assert _up(server, two, label(ONE), b"x", 0.0) is not None
    assert _up(server, one, label(TWO), b"x", 0.0) is not None


def test_only_those_are_introduced_that_recently_sent_each_other_something() -> None:
    server, metrics, (one, two) = _server()
    assert not server.may_introduce(ONE, TWO, 0.0)
    _up(server, one, label(TWO), b"x", 0.0)
    assert not server.may_introduce(ONE, TWO, 0.0), "the other has not answered"
    _up(server, two, label(ONE), b"x", 0.0)
    assert server.may_introduce(ONE, TWO, 0.0)
    assert not server.may_introduce(TWO, ONE, 0.5), "once a second, whichever asks"
    assert server.may_introduce(TWO, ONE, 1.1)
    assert not server.may_introduce(ONE, TWO, RELAY_CONSENT_S + 1)
    assert metrics.counters["relay_no_consent"] == 3


def test_no_number_of_other_clients_costs_two_their_introduction() -> None:
    server, _, (one, two) = _server()
    _up(server, one, label(TWO), b"x", 0.0)
    _up(server, two, label(ONE), b"x", 0.0)
    crowd = []
    for number in range(2 * MAX_RELAY_FLOWS):
        held, _ = server.reserve(NodeId(bytes([9, number]) + bytes(30)), (number,), 0.0)
        assert isinstance(held, Reservation)
        crowd.append(held)
    for held in crowd:
        for other in crowd[:4]:
            _up(server, held, label(other.client), b"x", 0.1)
        _up(server, held, label(ONE), b"x", 0.1)
    assert server.may_introduce(ONE, TWO, 1.0)
    for other in crowd[: MAX_RELAY_FLOWS + 1]:
        assert not server.may_introduce(other.client, ONE, 1.1), "it has sent them nothing"
    assert not server.may_introduce(TWO, ONE, 1.2), "so many refusals do not make the relay forget when"


def test_a_client_with_the_label_of_another_one_is_not_introduced_for_it() -> None:
    server, _, (one, two) = _server()
    _up(server, one, label(TWO), b"x", 0.0)
    _up(server, two, label(ONE), b"x", 0.0)
    stranger = NodeId(ONE.raw[:8] + bytes(24))
    assert not server.may_introduce(stranger, TWO, 0.0)
    assert not server.may_introduce(TWO, stranger, 0.0)
    assert not server.serves(stranger)
