"""Where UDP is dropped: at one side, at both, behind a proxy that asks for credentials; and when it comes back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns import natlab, scenarios
from tests.netns.natlab import NatLab
from tests.netns.natmesh import NatMesh
from tests.netns.test_traversal import unharmed

pytestmark = pytest.mark.netns

SLOW_PATH = 1_500_000
PULL = 1_500_000


@pytest.fixture
def mesh() -> Iterator[NatMesh]:
    natlab.require()
    with NatLab() as lab:
        yield NatMesh(lab)


@pytest.mark.parametrize("sides", [1, 2])
def test_a_node_without_udp_is_reached_and_reaches_others(mesh: NatMesh, sides: int) -> None:
    for _ in range(2 if sides == 1 else 1):  # two relays that were reached through each other failed one in seven
        found = unharmed(scenarios.udp_blocked(mesh, sides))
        assert found["path"] == "relay"
        assert found["first_byte_ms"] < 2_500


def test_a_proxy_with_credentials_is_passed_at_half_the_speed_of_a_plain_websocket_or_more(mesh: NatMesh) -> None:
    found = unharmed(scenarios.behind_a_proxy(mesh, SLOW_PATH, PULL))
    print(found)
    assert found["path"] == "relay"
    assert found["MBps"] > 0.35 * found["plain_MBps"]


def test_udp_is_preferred_again_when_it_comes_back(mesh: NatMesh) -> None:
    found = unharmed(scenarios.udp_comes_back(mesh))
    assert found["tunnels_before"] == ["wss!"]
    assert found["udp_after_s"] < 30
