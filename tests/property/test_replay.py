"""The replay guard under any traffic: nothing counts twice, and a flood of new ids takes nothing from a live peer."""

from __future__ import annotations

from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from meshnode.base import limits
from meshnode.base.limits import SEAL_WINDOW_S
from meshnode.identity import replay
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.replay import ReplayGuard

IDS = [Identity(bytes([n]) * 32).id for n in range(1, 5)]
BEGIN = 1_000_000.0

TRAFFIC = st.lists(
    st.tuples(
        st.integers(0, 25),  # which datagram
        st.floats(-SEAL_WINDOW_S, SEAL_WINDOW_S),  # its stamp when it is first sent, against the receiver's clock
        st.floats(0, 20),  # seconds until the next
        st.booleans(),  # its sender has a connection by now
    ),
    max_size=80,
)


@given(TRAFFIC)
def test_no_datagram_counts_twice_however_full_the_guard_is(
    traffic: list[tuple[int, float, float, bool]],
) -> None:
    small = {"MAX_REPLAY_ENTRIES": 3, "MAX_REPLAY_AHEAD": 2, "MAX_REPLAY_RESERVED": 2, "MAX_REPLAY_PER_SENDER": 6}
    with patch.multiple(replay, **small):
        guard, now = ReplayGuard(BEGIN), BEGIN
        stamps: dict[int, float] = {}
        counted: set[int] = set()
        for number, skew, pause, established in traffic:
            sent = stamps.setdefault(number, now + skew)
            if abs(now - sent) <= SEAL_WINDOW_S:  # the sealer has dropped all others
                said = guard.admit(IDS[number % 4], bytes([number]), sent, now, established=established)
                assert said in ("", "replay", "full")
                if said == "":
                    assert number not in counted
                    counted.add(number)
            now += pause


def _flood(guard: ReplayGuard, count: int, rate: float) -> float:
    """Throw-away ids send ``count`` datagrams; returns the time after the last."""
    now = BEGIN
    for number in range(count):
        now += 1 / rate
        guard.admit(NodeId(number.to_bytes(32, "big")), number.to_bytes(24, "big"), now, now)
    return now


def test_a_peer_with_a_connection_is_heard_whatever_new_ids_send() -> None:
    guard = ReplayGuard(BEGIN)
    now = _flood(guard, 3 * limits.MAX_REPLAY_ENTRIES, rate=10_000)
    for number in range(limits.MAX_REPLAY_RESERVED):
        assert guard.admit(IDS[0], b"move" + bytes([number // 256, number % 256]), now, now, established=True) == ""


def test_newcomers_are_heard_in_a_flood_when_their_clock_is_a_few_seconds_off() -> None:
    guard = ReplayGuard(BEGIN)
    now = _flood(guard, 3 * limits.MAX_REPLAY_ENTRIES, rate=10_000)
    assert [guard.admit(IDS[1], bytes([n]), now + off, now) for n, off in enumerate((-5.0, 0.0, 5.0))] == ["", "", ""]
    assert guard.admit(IDS[1], b"late", now - 25.0, now) == "full"  # its nonce might have been forgotten


def test_stamps_ahead_of_the_clock_have_few_places() -> None:
    with patch.object(replay, "MAX_REPLAY_AHEAD", 2):
        guard = ReplayGuard(BEGIN)
        said = [guard.admit(IDS[n], bytes([n]), BEGIN + 20, BEGIN) for n in range(3)]
        assert said == ["", "", "full"]
        assert guard.admit(IDS[3], b"now", BEGIN, BEGIN) == ""
