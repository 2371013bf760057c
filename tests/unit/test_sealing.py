"""Sealed datagrams and knocks: only the right receiver, the right sender, once, and in time."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.base import limits
from meshnode.identity import replay, sealing
from meshnode.identity.keys import Identity
from meshnode.identity.replay import ReplayGuard
from meshnode.identity.sealing import KNOCK_LENGTH, SEAL_OVERHEAD, MeshKey, Sealer


class _Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


CLOCK = _Clock()
A, B, C = (Identity(bytes([n]) * 32) for n in (1, 2, 3))


def _sealer(identity: Identity, mesh: str = "open", clock: _Clock = CLOCK, born: float = 0.0) -> Sealer:
    return Sealer(identity, MeshKey.from_text(mesh), clock, os.urandom, born=born)


def test_a_sealed_body_reaches_its_receiver_alone() -> None:
    datagram = _sealer(A).seal(B.id, b"hello")
    assert len(datagram) == SEAL_OVERHEAD + 5
    assert not datagram[0] & 0x40, "never mistaken for QUIC"
    assert _sealer(B).unseal(datagram) == (A.id, b"hello")
    assert _sealer(C).unseal(datagram) is None
    assert _sealer(B, mesh="other").unseal(datagram) is None


def test_a_replay_is_dropped_and_counted() -> None:
    receiver = _sealer(B)
    datagram = _sealer(A).seal(B.id, b"x")
    assert receiver.unseal(datagram) is not None
    assert receiver.unseal(datagram) is None
    assert receiver.drops == {"seal_replay": 1}


def test_whose_datagram_came_again_is_told_and_only_of_a_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = _sealer(B)
    datagram = _sealer(A).seal(B.id, b"x")
    receiver.unseal(datagram)
    assert receiver.repeated is None
    receiver.unseal(datagram)
    assert receiver.repeated == A.id
    monkeypatch.setattr(replay, "MAX_REPLAY_PER_SENDER", 1)
    assert receiver.unseal(_sealer(A).seal(B.id, b"another")) is None
    assert receiver.drops == {"seal_replay": 1, "seal_full": 1}
    assert receiver.repeated is None


def test_old_future_and_pre_start_stamps_are_dropped() -> None:
    early, late = _Clock(), _Clock()
    early.now -= limits.SEAL_WINDOW_S + 1
    late.now += limits.SEAL_WINDOW_S + 1
    for clock in (early, late):
        receiver = _sealer(B)
        assert receiver.unseal(_sealer(A, clock=clock).seal(B.id, b"x")) is None
        assert receiver.drops == {"seal_stale": 1}
    restarted = _sealer(B, born=CLOCK.now + 0.001)
    assert restarted.unseal(_sealer(A).seal(B.id, b"x")) is None


def test_no_node_seals_in_the_name_of_another() -> None:
    """C knows the mesh key and both ids, and still cannot speak as A: that takes A's or B's private key."""
    forger = _sealer(C)
    forger._identity.id = A.id
    try:
        receiver = _sealer(B)
        assert receiver.unseal(forger.seal(B.id, b"x")) is None
        assert receiver.drops == {"seal_mac": 1}
    finally:
        forger._identity.id = Identity(bytes([3]) * 32).id


def test_a_knock_is_bound_to_its_connection_id() -> None:
    token = _sealer(A).knock(B.id, b"12345678")
    assert len(token) == KNOCK_LENGTH
    assert _sealer(B).check_knock(token, b"87654321") is None
    assert _sealer(B).check_knock(token, b"12345678") == A.id


@given(st.integers(0, 200), st.integers(-29, 29), st.integers(0, 29))
@settings(max_examples=40, deadline=None)
def test_a_datagram_is_accepted_once_for_as_long_as_its_stamp_holds(arrives: int, ahead: int, gap: int) -> None:
    """Whenever it arrives, whatever the sender's clock, and however much other traffic there is in between."""
    there, here = _Clock(), _Clock()
    receiver, sender, other = _sealer(B, clock=here, born=here.now), _sealer(A, clock=there), _sealer(C, clock=here)
    here.now += arrives
    there.now = here.now + ahead
    datagram = sender.seal(B.id, b"once")
    assert (receiver.unseal(datagram) is None) == (arrives + ahead < 0)
    while here.now <= there.now + limits.SEAL_WINDOW_S:
        here.now += 1 + gap
        assert receiver.unseal(other.seal(B.id, b"other traffic")) is not None
        assert receiver.unseal(datagram) is None


@given(st.binary(max_size=200))
def test_junk_is_dropped_without_an_exception(data: bytes) -> None:
    receiver = _sealer(B)
    assert receiver.unseal(data) is None
    assert receiver.check_knock(data, b"12345678") is None


@given(st.binary(min_size=1, max_size=64), st.integers(0, 10_000), st.integers(1, 255))
def test_any_changed_byte_is_noticed(body: bytes, position: int, flip: int) -> None:
    datagram = bytearray(_sealer(A).seal(B.id, body))
    datagram[position % len(datagram)] ^= flip
    assert _sealer(B).unseal(bytes(datagram)) is None


def test_the_replay_guard_is_bounded_and_fails_closed() -> None:
    guard = ReplayGuard(0.0)
    for number in range(limits.MAX_REPLAY_PER_SENDER):
        assert guard.admit(A.id, number.to_bytes(8, "big"), 1.0, 1.0) == ""
    assert guard.admit(A.id, b"one more", 1.0, 1.0) == "full"
    assert guard.admit(B.id, b"another sender", 1.0, 1.0) == ""


def test_a_sender_whose_allowance_is_used_up_has_another_one_a_minute_later() -> None:
    guard = ReplayGuard(0.0)
    for number in range(limits.MAX_REPLAY_PER_SENDER):
        guard.admit(A.id, number.to_bytes(8, "big"), 1.0, 1.0)
    assert guard.admit(A.id, b"one more", 2 * limits.SEAL_WINDOW_S + 0.1, 2 * limits.SEAL_WINDOW_S + 0.1) == ""
    assert guard.admit(A.id, bytes(8), 2 * limits.SEAL_WINDOW_S + 0.2, 2 * limits.SEAL_WINDOW_S + 0.2) == "replay"


def test_unknown_senders_are_limited_and_known_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "NEW_SENDERS_BURST", 2.0)
    receiver = _sealer(Identity(bytes([9]) * 32))
    to = Identity(bytes([9]) * 32).id
    assert [receiver.unseal(_sealer(each).seal(to, b"x")) is not None for each in (A, B, C)] == [True, True, False]
    assert receiver.drops == {"seal_rate": 1}
    for _ in range(5):
        assert receiver.unseal(_sealer(A).seal(to, b"x")) is not None


def test_the_difference_of_the_clocks_is_learnt_from_what_arrives() -> None:
    receiver, ahead = _sealer(B), _Clock()
    ahead.now += 5.0
    receiver.unseal(_sealer(A, clock=ahead).seal(B.id, b"x"))
    assert receiver.skew.to_json()["offset_s"] == pytest.approx(5.0)
    assert receiver.skew.to_json()["stale_offset_s"] is None
    ahead.now += limits.SEAL_WINDOW_S
    assert receiver.unseal(_sealer(A, clock=ahead).seal(B.id, b"x")) is None
    assert receiver.skew.to_json()["stale_offset_s"] == pytest.approx(limits.SEAL_WINDOW_S + 5.0)
    assert receiver.skew.to_json()["offset_s"] == pytest.approx(5.0), "which proves nothing"
