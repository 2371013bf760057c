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
        st.one_of(st.floats(0, 20), st.floats(-200, 0)),  # seconds until the next; the clock may be set back
        st.booleans(),  # its sender has a connection by now
    ),
    max_size=80,
)


@given(TRAFFIC)
def test_no_datagram_counts_twice_however_full_the_guard_is(
    traffic: list[tuple[int, float, float, bool]],
) -> None:
    small = {
        "MAX_REPLAY_ENTRIES": 3,
        "MAX_REPLAY_AHEAD": 2,
        "MAX_REPLAY_RESERVED": 2,
        "MAX_REPLAY_PER_SENDER": 6,
        "MAX_REPLAY_FLOORS": 2,
    }
    with patch.multiple(replay, **small):
        guard, now = ReplayGuard(BEGIN), BEGIN
        stamps: dict[int, float] = {}
        counted: set[int] = set()
        for number, skew, pause, established in traffic:
            sent = stamps.setdefault(number, now + skew)
            if abs(now - sent) <= SEAL_WINDOW_S:  # the sealer has dropped all others
                said = guard.admit(IDS[number % 4], bytes([number]), sent, now, established=established)
                assert said in ("", "replay", "full", "set_back")
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


def test_a_clock_that_is_set_back_lets_no_recorded_datagram_count_again_and_goes_on_with_honest_ones() -> None:
    guard = ReplayGuard(BEGIN)
    recorded = [(IDS[n % 2], n.to_bytes(3, "big"), BEGIN + n) for n in range(1_800)]  # half an hour, one a second
    for sender, nonce, sent in recorded:
        assert guard.admit(sender, nonce, sent, sent) == ""
    for back in (600.0, 1_200.0, 5.0):  # set back, and once more from there
        begin = BEGIN + 1_800 - back
        for step in range(0, int(back), 10):
            wall = begin + step
            for sender, nonce, sent in recorded:
                if abs(sent - wall) <= SEAL_WINDOW_S:
                    assert guard.admit(sender, nonce, sent, wall) in ("set_back", "replay")
            assert guard.admit(IDS[2], f"new {back} {step}".encode(), wall, wall) == "" or back != 600.0
    assert guard.admit(IDS[0], b"honest", BEGIN + 1_801, BEGIN + 1_799) == "", "the peer's clock went on"


def test_a_clock_that_was_ahead_and_is_corrected_hears_peers_at_once() -> None:
    guard = ReplayGuard(BEGIN + 3_600)
    assert guard.admit(IDS[0], b"a liar that is ahead too", BEGIN + 3_605, BEGIN + 3_600) == ""
    assert guard.admit(IDS[1], b"honest", BEGIN + 1, BEGIN) == ""


def test_ids_that_are_thrown_away_open_no_way_for_what_their_betters_sent() -> None:
    with patch.object(replay, "MAX_REPLAY_FLOORS", 8):
        guard = ReplayGuard(BEGIN)
        assert guard.admit(IDS[0], b"recorded", BEGIN, BEGIN) == ""
        for number in range(100):
            guard.admit(NodeId(number.to_bytes(32, "big")), number.to_bytes(24, "big"), BEGIN + 200, BEGIN + 200)
        assert guard.admit(IDS[0], b"recorded", BEGIN, BEGIN) == "set_back"
