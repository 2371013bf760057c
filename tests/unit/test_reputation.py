"""Rates of origins and black marks of peers: ``meshnode.gossip.membership.reputation`` alone."""

from __future__ import annotations

import pytest

from meshnode.base.limits import GOSSIP_BAN_S, GOSSIP_ORIGIN_BURST, GOSSIP_ORIGIN_BYTES_BURST
from meshnode.base.metrics import Metrics
from meshnode.gossip.membership.reputation import Fault, Reputation
from meshnode.identity.node_id import NodeId

PEER, OTHER = (NodeId(bytes(31) + bytes([n])) for n in (1, 2))


def _marks(reputation: Reputation, fault: Fault, gap: float, count: int = 1_000) -> int | None:
    """After how many faults, one every ``gap`` seconds, the peer is banned; None when it never is."""
    for number in range(count):
        if reputation.lower(PEER, fault, number * gap):
            return number + 1
    return None


@pytest.mark.parametrize(
    ("fault", "gap", "banned_after"),
    [
        (Fault.FORGED, 0.0, 3),
        (Fault.MALFORMED, 0.0, 3),
        (Fault.MALFORMED, 29.0, 3),  # 4, 7.03, 10.07 points
        (Fault.MALFORMED, 31.0, 4),  # 4, 6.97, 9.93, 12.9
        (Fault.MALFORMED, 119.0, 182),
        (Fault.MALFORMED, 121.0, None),  # 4 points are forgiven in 120 s
        (Fault.TOO_MUCH, 0.0, 251),  # 0.04 a fault: the 250th leaves it a rounding error below 10
        (Fault.TOO_MUCH, 1.21, None),
        (Fault.UNTIMELY, 0.0, None),  # it may be our own clock that is wrong
    ],
)
def test_a_peer_is_banned_for_faults_that_come_faster_than_one_point_in_30_s_is_forgiven(
    fault: Fault, gap: float, banned_after: int | None
) -> None:
    assert _marks(Reputation(Metrics()), fault, gap) == banned_after


def test_what_is_forgiven_is_no_credit_for_later() -> None:
    reputation = Reputation(Metrics())
    reputation.lower(PEER, Fault.FORGED, 0.0)
    assert [reputation.lower(PEER, Fault.FORGED, 1e6) for _ in range(3)] == [False, False, True]


def test_a_ban_ends_and_begins_from_nothing() -> None:
    reputation = Reputation(Metrics())
    for _ in range(3):
        reputation.lower(PEER, Fault.FORGED, 5.0)
    assert reputation.is_banned(PEER, 5.0 + GOSSIP_BAN_S - 0.1)
    assert not reputation.is_banned(OTHER, 5.0)
    assert not reputation.is_banned(PEER, 5.0 + GOSSIP_BAN_S)
    assert reputation.points(PEER) == 0
    assert not reputation.lower(PEER, Fault.FORGED, 5.0 + GOSSIP_BAN_S)


def test_untimely_entries_alone_cost_half_a_ban_and_count_beside_worse_faults() -> None:
    reputation = Reputation(Metrics())
    for _ in range(1_000):
        assert not reputation.lower(PEER, Fault.UNTIMELY, 0.0)
    assert reputation.points(PEER) == pytest.approx(5.0)
    assert not reputation.lower(PEER, Fault.FORGED, 0.0)
    assert reputation.lower(PEER, Fault.FORGED, 0.0)


def test_an_origin_may_send_its_burst_at_once_and_its_rate_for_ever() -> None:
    reputation = Reputation(Metrics())
    assert sum(reputation.allows(PEER, 100, 0.0) for _ in range(500)) == GOSSIP_ORIGIN_BURST
    assert sum(reputation.allows(PEER, 100, second / 40) for second in range(1, 2_401)) == pytest.approx(1_200, abs=1)
    assert reputation.allows(OTHER, 100, 60.0), "each origin has a rate of its own"


def test_an_origin_that_sends_large_entries_is_held_to_its_bytes() -> None:
    reputation = Reputation(Metrics())
    assert sum(reputation.allows(PEER, 16_384, 0.0) for _ in range(100)) == GOSSIP_ORIGIN_BYTES_BURST // 16_384
    assert not reputation.allows(PEER, 65_536, 0.9)
    assert reputation.allows(PEER, 65_536, 1.01)
    assert not reputation.allows(PEER, 16_384, 1.1)


def test_a_share_of_the_rate_is_a_share_of_all_of_it() -> None:
    reputation = Reputation(Metrics())
    assert sum(reputation.allows(PEER, 100, 0.0, share=0.5) for _ in range(500)) == GOSSIP_ORIGIN_BURST / 2
    assert sum(reputation.allows(PEER, 100, second / 40, share=0.5) for second in range(1, 401)) == pytest.approx(
        100, abs=1
    )
