"""Sealed datagrams and knocks: only the right receiver, the right sender, once, and in time."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import crypto_secretbox, crypto_secretbox_open

from meshnode.base import limits
from meshnode.base.address import Addr
from meshnode.identity import replay
from meshnode.identity import senders as limited
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


def _resealed(datagram: bytes, opened_as: Identity, sealed_to: Identity) -> bytes:
    """What a member can do, which has the mesh's key: open the box of one receiver, and seal the same to another."""
    mesh = MeshKey.from_text("open")
    nonce, box = datagram[:24], datagram[24:]
    plain = crypto_secretbox_open(box, nonce, mesh.derive(b"mesh-receiver", bytes(opened_as.id)))
    return nonce + crypto_secretbox(plain, nonce, mesh.derive(b"mesh-receiver", bytes(sealed_to.id)))


@pytest.mark.parametrize("receiver", [A, C], ids=["its sender", "another node"])
def test_a_member_that_carries_a_datagram_or_knock_to_another_receiver_is_dropped(receiver: Identity) -> None:
    sender, odcid = _sealer(A), b"12345678"
    victim = _sealer(receiver)
    datagram, knock = sender.seal(B.id, b"hello"), sender.knock(B.id, odcid)
    assert victim.unseal(datagram[:1] + _resealed(datagram[1:], B, receiver)) is None
    assert victim.check_knock(_resealed(knock, B, receiver), odcid) is None
    assert victim.drops == {"seal_mac": 1, "knock_mac": 1}
    assert _sealer(B).check_knock(_resealed(knock, B, B), odcid) == A.id, "the box alone is no proof"


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
@settings(max_examples=40)
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


def test_senders_without_a_connection_are_limited_and_unknown_ones_the_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited, "UNCONNECTED_BURST", 3 * limits.NEW_SENDER_COST - 1)
    us, *others = (Identity.generate() for _ in range(4))
    receiver, senders = _sealer(us), [_sealer(other) for other in others]

    def accepted(sender: Sealer) -> bool:
        return receiver.unseal(sender.seal(us.id, b"x")) is not None

    assert [accepted(sender) for sender in senders] == [True, True, False]
    assert [accepted(senders[0]) for _ in range(4)] == [True, True, True, False]
    assert receiver.drops == {"seal_rate": 2}
    receiver.senders.is_linked = lambda peer: peer == others[0].id
    assert all(accepted(senders[0]) for _ in range(100))


def test_unknown_senders_at_one_address_leave_those_beside_it_their_turn() -> None:
    us, new, newer = (Identity.generate() for _ in range(3))
    receiver, flood, beside = _sealer(us), Addr("192.0.2.1", 1), Addr("192.0.2.1", 2)
    for _ in range(200):
        receiver.unseal(_sealer(Identity.generate()).seal(us.id, b"x"), flood)
    assert receiver.drops == {"seal_rate": 200 - limits.UNCONNECTED_PER_ADDRESS_BURST / limits.NEW_SENDER_COST}
    assert receiver.unseal(_sealer(new).seal(us.id, b"x"), beside) is not None
    knock = _sealer(newer).knock(us.id, b"12345678")
    assert receiver.check_knock(knock, b"12345678", flood) is None
    assert receiver.check_knock(knock, b"12345678", beside) == newer.id


def test_a_knock_names_its_sender_to_its_receiver_alone_and_proves_nothing() -> None:
    knock = _sealer(A).knock(B.id, b"12345678")
    receiver = _sealer(B)
    assert receiver.claimed_sender(knock) == A.id
    assert receiver.drops == {}
    assert _sealer(C).claimed_sender(knock) is None
    assert _sealer(B, mesh="other").claimed_sender(knock) is None
    assert receiver.claimed_sender(b"short") is None


def test_the_difference_of_the_clocks_is_learnt_from_what_arrives() -> None:
    receiver, ahead = _sealer(B), _Clock()
    ahead.now += 5.0
    receiver.unseal(_sealer(A, clock=ahead).seal(B.id, b"x"))
    assert receiver.skew.to_json(CLOCK.now)["offset_s"] == pytest.approx(5.0)
    assert receiver.skew.to_json(CLOCK.now)["stale_offset_s"] is None
    ahead.now += limits.SEAL_WINDOW_S
    assert receiver.unseal(_sealer(A, clock=ahead).seal(B.id, b"x")) is None
    assert receiver.skew.to_json(CLOCK.now)["stale_offset_s"] == pytest.approx(limits.SEAL_WINDOW_S + 5.0)
    assert receiver.skew.to_json(CLOCK.now)["offset_s"] == pytest.approx(5.0), "which proves nothing"


@pytest.mark.parametrize("error", [-86_400.0, 86_400.0])
def test_a_clock_that_is_set_leaves_the_begin_of_the_process_where_it_was(error: float) -> None:
    clock, right = _Clock(), _Clock()
    early = _sealer(A, clock=right).seal(B.id, b"before it began")
    right.now += 1.0
    clock.now = right.now + error
    receiver = _sealer(B, clock=clock, born=clock.now)
    assert receiver.unseal(_sealer(A, clock=right).seal(B.id, b"x")) is None, "its clock is wrong"
    clock.now = right.now = right.now + 1.0
    receiver.on_clock_set(-error)
    assert receiver.skew.to_json(clock.now)["stale_offset_s"] is None, "what was compared with the wrong clock"
    assert receiver.unseal(_sealer(A, clock=right).seal(B.id, b"x")) is not None
    assert receiver.unseal(early) is None
