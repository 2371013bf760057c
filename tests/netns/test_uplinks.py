"""A host with two uplinks, whose routing chooses by the source address: the router of the first dies without a word."""

from __future__ import annotations

import pytest

from bench import cases
from tests.netns.lab import Host, Lab, Switch, require

pytestmark = pytest.mark.netns


def _second_uplink(host: Host, switch: Switch) -> None:
    """Plug a second cable, eth1, of 10.79.0.0/24; what leaves from its address goes by it."""
    host.ip("link set eth0 down", "link set eth0 name wan0")
    switch.plug(host)
    host.ip(
        "link set eth0 name wan1",
        "link set wan0 up",
        "addr replace 10.78.0.2/24 dev wan0",
        "route replace default via 10.78.0.1",
        "link set wan1 up",
        "addr add 10.79.0.2/24 dev wan1",
        "route add default via 10.79.0.1 table 79",
        "rule add from 10.79.0.2 lookup 79",
    )


def test_a_stream_goes_on_by_the_second_uplink_when_the_first_one_dies_without_a_word() -> None:
    require()
    with Lab() as lab:
        internet = lab.switch()
        first = lab.router("first", internet, "10.77.0.11/24", inside="10.78.0.1/24")
        second = lab.router("second", internet, "10.77.0.12/24", inside="10.79.0.1/24")
        here = lab.host("here", first, "10.78.0.2/24", "10.78.0.1")
        _second_uplink(here, second)
        there = lab.host("there", internet, "10.77.0.2/24")
        stream = cases.Stream(lab, there, here, lab.scratch / "stream")
        assert stream.watch(2.0)["error"] is None
        first.exec("nft", "add", "rule", "ip", "lab", "forward", "drop")
        found = stream.watch(6.0)
        print(f"gap {found['gap_ms']} ms")
        assert (found["lost"], found["error"]) == (0, None)
        assert found["gap_ms"] < 3_000
        assert found["in_flight"] < 10
