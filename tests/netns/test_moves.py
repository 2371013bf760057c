"""Streams go on while their ends move about a real kernel network."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.netns.lab import EchoMesh, Host, Lab, require

pytestmark = pytest.mark.netns

RUNS = 3
# ms without a reply, loose because a shared machine may stall for a second: what we aim at (95th percentiles of
# 60, 60 and 150 ms) is measured by bench/moves.py
BOUNDS = {"dialler": 1500, "listener": 1500, "both": 2000}
OUTAGE_S = 2.0
AFTER_OUTAGE_MS = 2000
REBIND_MS = 2000


@pytest.fixture(scope="module")
def mesh() -> Iterator[EchoMesh]:
    require()
    with Lab() as lab:
        yield EchoMesh(lab)


def check(found: dict[str, Any], bound_ms: float, at: Host) -> None:
    assert found["error"] is None, found
    assert (found["lost"], found["reordered"]) == (0, 0), found
    assert found["replies"] > 20, found
    assert found["in_flight"] < 10, found  # nothing sent before or during the move is missing
    if found["peer_at"] is not None:  # the dialler's report
        assert found["peer_at"].startswith(at.address.partition("/")[0] + ":"), found
    assert found["gap_ms"] < bound_ms, found


@pytest.mark.parametrize("mover", ["dialler", "listener", "both"])
def test_a_stream_outlives_new_addresses(mesh: EchoMesh, mover: str) -> None:
    hosts = {"dialler": [mesh.dialler], "listener": [mesh.listener], "both": [mesh.dialler, mesh.listener]}[mover]
    found = []
    for _ in range(RUNS):
        mesh.reset()
        mesh.move(*hosts)
        found.append(mesh.report())
        check(found[-1], BOUNDS[mover], mesh.listener)
    print(mover, [run["gap_ms"] for run in found])


def test_numbers_go_on_beside_a_bulk_stream_while_both_ends_move() -> None:
    require()
    with Lab() as lab:
        mesh = EchoMesh(lab, bulk=True)
        mesh.reset()
        mesh.move(mesh.dialler, mesh.listener)
        found = mesh.report()
        check(found, BOUNDS["both"], mesh.listener)
        mesh.reset()
        assert mesh.report()["bulk_MB"] > 1, "the bulk stream goes on too"


@pytest.mark.parametrize("mover", ["dialler", "listener"])
def test_a_stream_outlives_a_pulled_cable(mesh: EchoMesh, mover: str) -> None:
    host = mesh.dialler if mover == "dialler" else mesh.listener
    mesh.reset()
    began = time.monotonic()
    host.link_down()
    time.sleep(OUTAGE_S)
    host.link_up(mesh.fresh())
    outage_ms = (time.monotonic() - began) * 1000
    found = mesh.report()
    print(mover, f"{found['gap_ms']} ms in an outage of {outage_ms:.0f} ms")
    assert found["gap_ms"] > OUTAGE_S * 1000 - 50, "the cable was not pulled"
    check(found, outage_ms + AFTER_OUTAGE_MS, mesh.listener)


@pytest.mark.parametrize(
    ("natted", "mapped", "flow"),
    [
        *(("dialler", False, flow) for flow in ("echo", "up", "down")),
        *(("listener", False, flow) for flow in ("echo", "up", "down")),
        ("listener", True, "echo"),  # its router forwards a port
    ],
)
def test_a_stream_outlives_a_nat_rebinding(natted: str, mapped: bool, flow: str) -> None:
    require("conntrack")
    with Lab() as lab:
        mesh = EchoMesh(lab, nat=natted, mapped=mapped, flow=flow)
        assert mesh.router is not None
        for _ in range(2):
            mesh.reset()
            before = mesh.router.mappings()
            mesh.router.rebind()
            found = mesh.report(settle=0.5)
            print(natted, flow, found["gap_ms"])
            assert before
            assert not before & mesh.router.mappings(), "the router kept a mapping"
            check(found, REBIND_MS, mesh.router if natted == "listener" else mesh.listener)
