"""Real nodes behind every kind of NAT: the bounds are loose, for a shared machine stalls; bench/nat.py has figures."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations_with_replacement
from typing import Any

import pytest

from tests.netns import natlab, scenarios
from tests.netns.natlab import NatLab
from tests.netns.natmesh import NatMesh

pytestmark = pytest.mark.netns

CONES = ("open", "full_cone", "address_restricted", "port_restricted")
SEARCHES = 2
MOVES = 2


@pytest.fixture(scope="module")
def mesh() -> Iterator[NatMesh]:
    natlab.require()
    with NatLab() as lab:
        yield NatMesh(lab)


@pytest.fixture
def lab() -> Iterator[NatLab]:
    natlab.require()
    with NatLab() as made:
        yield made


def unharmed(found: dict[str, Any]) -> dict[str, Any]:
    """Nothing was lost, nothing came out of order, and the stream goes on."""
    assert found["error"] is None, found
    assert (found["lost"], found["reordered"]) == (0, 0), found
    assert found["replies"] > 20, found
    assert found["in_flight"] < 50, found
    return found


@pytest.mark.parametrize(
    ("left", "right"), [*combinations_with_replacement(CONES, 2), *((cone, "symmetric") for cone in CONES[:3])]
)
def test_they_meet_directly_and_the_first_byte_did_not_wait_for_it(mesh: NatMesh, left: str, right: str) -> None:
    found = unharmed(scenarios.meet(mesh, left, right))
    assert found["met"], found
    assert found["first_byte_ms"] < 1_500
    assert found["direct_after_ms"] < 6_000
    assert found["switch_gap_ms"] < 500


def test_a_port_restricted_nat_and_a_symmetric_one_meet_by_searching_a_port(mesh: NatMesh) -> None:
    found = []
    for turn in range(SEARCHES):
        ends = ("port_restricted", "symmetric") if turn % 2 else ("symmetric", "port_restricted")
        found.append(unharmed(scenarios.meet(mesh, *ends)))
    print([run.get("direct_after_ms") for run in found])
    assert sum(run["met"] for run in found) >= SEARCHES - 1, found


def test_two_symmetric_nats_stay_relayed(mesh: NatMesh) -> None:
    found = unharmed(scenarios.meet(mesh, "symmetric", "symmetric", seconds=3.0))
    assert not found["met"]
    assert found["path"] == "relay"


def test_a_relay_killed_in_use_is_left_for_the_other(lab: NatLab) -> None:
    found = unharmed(scenarios.relay_killed(lab))
    assert found["path"] == "relay"
    assert found["endpoint"] != found["relay_before"]
    assert found["gap_ms"] < 1_500


def test_a_direct_path_that_dies_falls_back_to_the_relay(mesh: NatMesh) -> None:
    found = unharmed(scenarios.direct_dies(mesh))
    assert found["path"] == "relay"
    assert found["gap_ms"] < 1_500


def test_a_stream_outlives_both_ends_moving_to_other_nats_at_once(lab: NatLab) -> None:
    movers = scenarios.Movers(NatMesh(lab))
    gaps = [unharmed(movers.move())["gap_ms"] for _ in range(MOVES)]
    print("both move", gaps)
    assert max(gaps) < 4_000


def test_a_relay_carries_no_more_than_its_limit_and_the_transfer_still_ends(lab: NatLab) -> None:
    found = scenarios.relay_load(lab, 1, 2_000_000)
    assert found["refused"] > 0
    assert found["carried_MBps"] < 1.8, "1 MB/s, and half a second's worth at the start"


def test_idle_reservations_cost_a_relay_less_than_100_kb_each(lab: NatLab) -> None:
    found = scenarios.crowd(lab, 60)
    assert found["clients"] >= 60
    assert found["grown_MB"] < 12, "100 kB each, and the first ones' share of what all use"
