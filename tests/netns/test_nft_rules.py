"""The rule set for operators: it loads, drops a stranger's flood in the kernel, and lets peers and newcomers pass."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from meshnode.base.address import Addr
from meshnode.demo.netns import Switch
from tests.homes import make_home
from tests.netns import lab
from tests.netns.lab import ROOT, Host, Lab

pytestmark = pytest.mark.netns

RULES = ROOT / "bootstrap" / "meshnode.nft"
SENT = 20_000
IPV4 = "10.83.{}.{}"  # a /24 is one network
IPV6 = "2001:db8:{}::{}"  # and so is a /48
families = pytest.mark.parametrize("form", [IPV4, IPV6], ids=["IPv4", "IPv6"])
RATE, BURST = 500, 1_000  # what the rules allow one network
CALLS, CALLS_RATE, CALLS_BURST = 400, 50, 100  # TCP connections


@pytest.fixture
def place() -> Iterator[Lab]:
    """A laboratory."""
    lab.require()
    with Lab() as made:
        yield made


def meshnode(host: Host, *args: str) -> dict[str, object]:
    """Run a command with the host's home; what it printed last."""
    printed = host.exec(sys.executable, "-m", "meshnode", *args, "--json", "--home", str(host.lab.scratch / host.label))
    found: dict[str, object] = json.loads(printed.splitlines()[-1])
    return found


def start(host: Host, *args: str) -> str:
    """Start a node; its id."""
    home: Path = host.lab.scratch / host.label
    make_home(home)
    ready = host.start(sys.executable, "-m", "meshnode", *args, "--no-mdns", "--json", "--home", str(home)).line()
    return str(ready["id"])


def dropped(seed: Host) -> int:
    """Packets that the rules have dropped."""
    listed = seed.exec("nft", "list", "table", "inet", "meshnode")
    return sum(int(count) for count in re.findall(r"counter packets (\d+)", listed))


def received(seed: Host) -> int:
    """Datagrams that reached the node and were dropped there."""
    counters = meshnode(seed, "status")["counters"]
    assert isinstance(counters, dict)
    return sum(count for name, count in counters.items() if name.startswith("drop_"))


def family(host: str) -> socket.AddressFamily:
    """The family of an address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def put(place: Lab, label: str, switch: Switch, form: str, network: int, number: int) -> Host:
    """A host with an address of that form, and none of the other family that matters."""
    host = place.host(
        label, switch, IPV4.format(network, number) + "/16" if form == IPV4 else f"10.9.{network}.{number}/30"
    )
    if form == IPV6:
        host.ip(f"addr add {form.format(network, number)}/32 dev eth0 nodad")
    return host


def flood(host: Host, to: str, count: int) -> None:
    """Send junk from many ports."""

    def sockets() -> list[socket.socket]:
        return [socket.socket(family(to), socket.SOCK_DGRAM) for _ in range(50)]

    data = [b"\x01" + os.urandom(128) for _ in range(100)]
    made = host.inside(sockets)
    for number in range(count):
        made[number % len(made)].sendto(data[number % len(data)], (to, 4242))
    for sock in made:
        sock.close()


@families
def test_a_flood_is_dropped_in_the_kernel_while_a_peer_and_a_newcomer_pass(place: Lab, form: str) -> None:
    switch, to = place.switch(), form.format(0, 1)
    seed = put(place, "seed", switch, form, 0, 1)
    peer = put(place, "peer", switch, form, 7, 2)
    stranger = put(place, "stranger", switch, form, 7, 66)  # in the peer's network
    newcomer = put(place, "newcomer", switch, form, 8, 2)
    seed.exec("nft", "-c", "-f", str(RULES))
    seed.exec("nft", "-f", str(RULES))
    seed.exec("nft", "-f", str(RULES))  # it replaces itself
    at = f"{start(seed, 'seed', '--listen', '[::]:4242')}@{Addr(to, 4242)}"
    own = start(peer, "up", "--seed", at)
    meshnode(peer, "ping", at.partition("@")[0], "-c", "1")

    began, before = time.monotonic(), received(seed)
    flood(stranger, to, SENT)
    echoes = meshnode(peer, "ping", at.partition("@")[0], "-c", "1")
    passed, allowed = received(seed) - before, BURST + RATE * (time.monotonic() - began + 1)
    assert echoes["rtt_ms"] is not None, "a peer in the network that floods"
    assert 0 < passed <= allowed
    assert dropped(seed) > SENT - allowed

    start(newcomer, "up", "--seed", at)
    assert meshnode(newcomer, "ping", own, "-c", "1")["rtt_ms"] is not None


@families
def test_tcp_connections_of_one_network_are_limited_and_those_of_another_pass(place: Lab, form: str) -> None:
    switch, to = place.switch(), form.format(0, 1)
    seed = put(place, "seed", switch, form, 0, 1)
    stranger = put(place, "stranger", switch, form, 7, 66)
    caller = put(place, "caller", switch, form, 8, 2)
    seed.exec("nft", "-f", str(RULES))
    with closing(seed.inside(lambda: socket.create_server((to, 4242), family=family(to), backlog=512))):

        def calls(count: int) -> list[socket.socket]:
            made = []
            for _ in range(count):
                sock = socket.socket(family(to))
                sock.setblocking(False)
                sock.connect_ex((to, 4242))
                made.append(sock)
            return made

        began = time.monotonic()
        pending = stranger.inside(lambda: calls(CALLS))
        assert dropped(seed) >= CALLS - CALLS_BURST - CALLS_RATE * (time.monotonic() - began + 1)
        with closing(caller.inside(lambda: socket.create_connection((to, 4242), timeout=2))):
            pass
        for sock in pending:
            sock.close()
