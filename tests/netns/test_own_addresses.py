"""What a host with real bridges, cables and routes says of its addresses, and how a node hears of a change."""

from __future__ import annotations

import json
import sys

import pytest

from tests.netns.lab import Lab, require

pytestmark = pytest.mark.netns

LOOK = """
import json
from meshnode.runtime.netlink import Netlink
view = Netlink().view()
print(json.dumps([view.hosts(ipv6=True), len(view.place())]))
"""
FOLLOW = """
import asyncio, json
from meshnode.runtime.interfaces import InterfaceWatcher

def tell():
    view, _ = watcher.look()
    print(json.dumps({"source": view.ways_out[0].source}), flush=True)

loop = asyncio.new_event_loop()
watcher = InterfaceWatcher(loop, tell)
watcher.start()
tell()
loop.run_forever()
"""
BRIDGES = 64


def test_a_docker_host_names_its_uplink_first_and_only_bridges_in_use() -> None:
    require()
    with Lab() as lab:
        host = lab.host("host", lab.switch(), "10.77.0.10/24")

        def look() -> tuple[list[str], int]:
            named, places = json.loads(host.exec(sys.executable, "-c", LOOK))
            return named, places

        alone = look()
        host.ip(*(line for n in range(BRIDGES) for line in _bridge(n)))
        assert look() == alone, "bridges without members"
        host.ip(
            "link add cable type veth peer name inside",
            "link set cable master br7",
            "link set cable up",
            "link set inside up",
        )
        named, places = look()
        assert named == [*alone[0], "172.17.7.1"]
        assert places == alone[1], "a container that starts is no move"
        host.ip("addr add 10.78.0.10/24 dev eth0")
        assert look()[0][:2] == ["10.77.0.10", "10.78.0.10"]
        host.ip("route add default via 10.78.0.1")
        assert look()[1] == places + 2, "an address and a way out"


def _bridge(number: int) -> list[str]:
    return [
        f"link add br{number} type bridge",
        f"addr add 172.17.{number}.1/24 dev br{number}",
        f"link set br{number} up",
    ]


def test_a_rule_that_sends_all_by_another_table_is_a_move() -> None:
    require()
    with Lab() as lab:
        host = lab.host("host", lab.switch(), "10.77.0.10/24")
        host.ip(
            "addr add 10.78.0.10/24 dev eth0",
            "route add default via 10.77.0.1",
            "route add default via 10.78.0.1 src 10.78.0.10 table 77",
        )
        program = host.start(sys.executable, "-c", FOLLOW)
        assert program.line()["source"] == "10.77.0.10"
        host.ip("rule add priority 77 lookup 77")
        assert program.line()["source"] == "10.78.0.10"
        host.ip("rule del priority 77")
        assert program.line()["source"] == "10.77.0.10"
