"""Real nodes behind every kind of NAT: the bounds are loose, for a shared machine stalls; bench/nat.py has figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.netns import natlab, scenarios
from tests.netns.natlab import NatLab
from tests.netns.natmesh import NatMesh, NatNode, Pair

pytestmark = pytest.mark.netns

CONES = ("open", "full_cone", "address_restricted", "port_restricted")
# each with itself, with the strictest and with a symmetric one; the simulator's test and the bench have all
PAIRS = [
    *((cone, cone) for cone in CONES),
    *((c, "port_restricted") for c in CONES[:3]),
    *((c, "symmetric") for c in CONES[:3]),
]
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


@pytest.mark.parametrize(("left", "right"), PAIRS)
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


def test_two_homes_of_one_carrier_that_hairpins_meet_directly_and_neighbours_on_their_lan(lab: NatLab) -> None:
    mesh = NatMesh(lab, 1)
    front = lab.nat_site("carrier", mesh.switch, "full_cone", "198.51.100.20/24", inside="100.64.0.1/24", hairpin=True)
    nodes = []
    for side in (1, 2):
        home = lab.nat_site(f"home{side}", front, "port_restricted", f"100.64.0.1{side}/24", gateway="100.64.0.1")
        host = lab.host(f"host{side}", home, "10.0.0.2/24", gateway="10.0.0.1")
        nodes.append(NatNode(host, mesh.seeds))
    nodes.append(NatNode(lab.host("neighbour", home, "10.0.0.3/24", gateway="10.0.0.1"), mesh.seeds))
    for node in nodes:
        node.ready()
    for node in nodes:
        node.until_joined()
    for other, kind in ((nodes[0], "direct"), (nodes[2], "lan")):
        pair = Pair((front, front), nodes[1], other)
        pair.open()
        assert pair.wait_for((kind,))["path"] == kind


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
