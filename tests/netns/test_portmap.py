"""Real nodes get mappings from a router program that we did not write (miniupnpd), and are dialled through them."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.given_time import HANG_S
from tests.homes import make_home
from tests.netns import igd
from tests.netns.igd import BRIDGE, INSIDE6, OUTSIDE, IgdRouter
from tests.netns.lab import Host, Lab, Program

pytestmark = pytest.mark.netns

INSIDE, ADDRESS, GATEWAY = "10.0.0.1/24", "10.0.0.2/24", "10.0.0.1"
KINDS: dict[str, dict[str, Any]] = {
    "pcp": {"pcp": True},
    "nat-pmp": {"natpmp": True},
    "upnp": {"upnp": True, "igd": 2},
    "upnp version 1": {"upnp": True, "igd": 1},
}
# leases of seconds instead of minutes: everything else is unchanged
SHORT = "import meshnode.base.limits as l; l.UPNP_LEASE_S = 12; from meshnode.cli.main import main; main()"


class Running:
    """A ``meshnode up`` in a namespace, asked over its control socket."""

    def __init__(self, host: Host, *options: str, short: bool = False) -> None:
        self.host = host
        self.home = host.lab.scratch / f"{host.label}.home{len(host._programs)}"
        make_home(self.home)
        command = ["-c", SHORT] if short else ["-m", "meshnode"]
        self.program: Program = host.start(
            sys.executable, *command, "up", "--json", "--no-mdns", "--home", str(self.home), *options
        )
        ready = self.program.line()
        self.id: str = ready["id"]

    def ask(self, command: str, *arguments: str) -> list[Any]:
        done = forked.run([command, "--json", "--home", str(self.home), *arguments], HANG_S)
        if done.returncode != 0:
            raise RuntimeError(done.stdout + done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def nat(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("status")[0]["nat"]
        return found

    def mapping(self, within: float = 12.0, ipv6: bool = False) -> dict[str, Any]:
        """Wait for the mapping of a family."""

        def held() -> Any:
            return [m for m in self.nat()["mappings"] if (m["internal"][0] == "[") == ipv6]

        until(held, within, lambda: self.nat())
        found: dict[str, Any] = held()[0]
        return found


def until(condition: Callable[[], Any], within: float, explain: Callable[[], Any] = lambda: "") -> float:
    """Wait for a condition; returns the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within, explain()
        time.sleep(0.1)
    return time.monotonic() - began


def site(lab: Lab, **settings: Any) -> tuple[IgdRouter, Host, Host]:
    """A router with a host inside, and a host outside."""
    net = lab.switch()
    outside = lab.host("outside", net, "44.128.0.20/24")
    home = IgdRouter(lab, "home", net, OUTSIDE, INSIDE, **settings)
    return home, lab.host("inside", home, ADDRESS, gateway=GATEWAY), outside


def reaches(outside: Host, peer: str, at: str) -> str | None:
    """Dial a peer from outside, told nothing but one address; returns the address in use, None when it failed."""
    node = Running(outside, "--no-port-mapping", "--seed", f"{peer}@{at}")
    try:
        pings = node.ask("ping", peer, "-c", "1")
        if pings[0].get("rtt_ms") is None:
            return None
        return next(p["endpoint"] for p in node.ask("peers") if p["id"] == peer)
    except RuntimeError:
        return None
    finally:
        node.program.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_a_node_behind_a_router_is_dialled_at_its_mapping_and_gives_it_back(kind: str) -> None:
    igd.require()
    with Lab() as lab:
        home, inside, outside = site(lab, **KINDS[kind])
        began = time.monotonic()
        node = Running(inside)
        mapping = node.mapping()
        print(f"{kind}: {time.monotonic() - began:.1f} s from the start")
        assert mapping["protocol"] == kind.split()[0]
        assert mapping["external"].startswith(OUTSIDE.partition("/")[0] + ":")
        assert not mapping["private"]
        port = int(mapping["internal"].rpartition(":")[2])
        assert home.granted() == {(int(mapping["external"].rpartition(":")[2]), "10.0.0.2", port)}
        until(lambda: mapping["external"] in node.ask("status")[0]["endpoints"], 2.0)
        record = node.ask("resolve", node.id)[0]["record"]
        assert dict(zip(record["endpoints"], record["kinds"], strict=True))[mapping["external"]] == "mapped"
        assert reaches(outside, node.id, mapping["external"]) == mapping["external"]
        began = time.monotonic()
        node.program.stop()
        assert time.monotonic() - began < 1.5
        until(lambda: not home.granted(), 1.0, home.said)


def test_without_a_mapping_the_same_node_cannot_be_dialled() -> None:
    igd.require()
    with Lab() as lab:
        home, inside, outside = site(lab, pcp=True, upnp=True)
        node = Running(inside, "--no-port-mapping", "--listen", "0.0.0.0:4242")
        assert reaches(outside, node.id, "44.128.0.11:4242") is None
        assert not home.granted()
        assert node.nat()["mappings"] == []


@pytest.mark.parametrize("kind", ["pcp", "nat-pmp", "upnp"])
def test_a_router_that_restarts_is_asked_again(kind: str) -> None:
    igd.require()
    with Lab() as lab:
        home, inside, outside = site(lab, **KINDS[kind])
        node = Running(inside, short=True)
        mapping = node.mapping()
        time.sleep(4.5)  # a restart sooner than that is asked about no sooner
        home.restart()  # a node that is told of it may be granted one again before this returns
        print(f"{kind}: mapped again {until(home.granted, 25.0, lambda: (node.nat(), home.said())):.1f} s later")
        again = node.mapping()
        assert again["internal"] == mapping["internal"]
        assert reaches(outside, node.id, again["external"]) == again["external"]


def test_a_mapping_outlives_its_lifetime_because_it_is_renewed() -> None:
    igd.require()
    with Lab() as lab:
        home, inside, _ = site(lab, pcp=True, lifetimes=(10, 12))
        node = Running(inside)
        mapping = node.mapping()
        assert mapping["lifetime_s"] <= 12
        time.sleep(13.5)
        assert node.nat()["mappings"][0]["external"] == mapping["external"]
        assert home.granted()
        assert node.ask("status")[0]["counters"]["portmap_granted"] >= 2


def test_a_node_that_was_killed_gets_its_mapping_back_at_once() -> None:
    igd.require()
    with Lab() as lab:
        home, inside, _ = site(lab, pcp=True)
        options = ("--listen", "0.0.0.0:4242", "--home", str(lab.scratch / "kept"))
        first = Running(inside, *options)
        until(home.granted, 3.0, home.said)
        first.program.signal(signal.SIGKILL)
        time.sleep(0.2)
        assert home.granted(), "no process was there to take it back"
        began = time.monotonic()
        node = Running(inside, *options)
        node.home = lab.scratch / "kept"
        assert node.mapping(1.5)["protocol"] == "pcp"
        assert len(home.granted()) == 1
        print(f"{time.monotonic() - began:.1f} s from the start")


def test_a_new_address_and_a_new_port_are_mapped_at_once() -> None:
    igd.require()
    with Lab() as lab:
        home, inside, _ = site(lab, pcp=True)
        node = Running(inside)
        node.mapping()
        took = until(_moved(home, inside, "10.0.0.7/24"), 2.0, lambda: (node.nat(), home.granted()))
        print(f"mapped {took:.1f} s after the address changed")
        old = {port for _, host, port in home.granted() if host == "10.0.0.7"}
        port = int(node.ask("rebind")[0]["listen"].rpartition(":")[2])
        until(lambda: {p for _, host, p in home.granted() if host == "10.0.0.7"} == {port}, 2.0, home.granted)
        assert port not in old


def _moved(home: IgdRouter, inside: Host, address: str) -> Callable[[], bool]:
    inside.renumber(address)
    return lambda: any(host == address.partition("/")[0] for _, host, _ in home.granted())


def test_an_ipv6_firewall_lets_in_peers_that_dial_a_pinhole() -> None:
    igd.require()
    with Lab() as lab:
        home, inside, outside = site(lab, pcp=True, ipv6=True)
        link_local = home.exec("ip", "-6", "-o", "addr", "show", "dev", BRIDGE, "scope", "link").split()[3]
        own = INSIDE6.replace("::1/", "::2/")
        gateway = link_local.partition("/")[0]  # as router advertisements give it
        inside.ip(f"addr add {own} dev eth0", f"route add default via {gateway} dev eth0")
        outside.ip("addr add 2001:db8:1::20/64 dev eth0", "route add 2001:db8:2::/64 via 2001:db8:1::1")
        closed = Running(inside, "--no-port-mapping", "--listen", "[::]:4242")
        assert reaches(outside, closed.id, "[2001:db8:2::2]:4242") is None, "the firewall is open"
        closed.program.stop()
        node = Running(inside)
        pinhole = node.mapping(ipv6=True)
        assert pinhole["external"] == pinhole["internal"]
        # told of nothing else; once connected it may prefer the IPv4 mapping, which the record names too
        assert reaches(outside, node.id, pinhole["external"]) is not None
        home.restart()  # which it announces for IPv4 alone
        until(lambda: "20010db8" in home.pinholes(), 10.0, home.pinholes)
        node.program.stop()
        until(lambda: "dport" not in home.pinholes(), 1.0, home.pinholes)


def test_nothing_is_sent_without_a_default_gateway_or_when_told_not_to(tmp_path: Path) -> None:
    igd.require()
    counting = """
        table ip watch {
            chain out { type filter hook output priority 0;
                udp dport { 5350, 5351 } counter; udp dport 1900 counter; tcp dport 1024-65535 counter; }
        }
    """

    def sent(host: Host) -> list[int]:
        rules = json.loads(host.exec("nft", "-j", "list", "table", "ip", "watch"))["nftables"]
        return [e["counter"]["packets"] for r in rules if "rule" in r for e in r["rule"]["expr"] if "counter" in e]

    with Lab() as lab:
        home, gated, _ = site(lab)  # a router that grants nothing
        alone = lab.host("alone", home, "10.0.0.3/24")
        local = lab.host("local", home, "10.0.0.4/24", gateway=GATEWAY)
        quiet = lab.host("quiet", home, "10.0.0.5/24", gateway=GATEWAY)
        vpn = lab.host("vpn", home, "10.0.0.6/24", gateway=GATEWAY)
        vpn.ip(
            "link add vpn0 type veth peer name vpn1",
            "addr add 10.99.0.2/24 dev vpn0",
            "link set vpn0 up",
            "link set vpn1 up",
            "route add 0.0.0.0/1 via 10.99.0.1",
            "route add 128.0.0.0/1 via 10.99.0.1",
        )
        plain = lab.host("plain", home, "10.0.0.7/24", gateway=GATEWAY)
        hosts = [gated, plain, alone, local, quiet, vpn]
        for host in hosts:
            host.exec("nft", "-f", "-", stdin=counting)
        Running(gated)
        Running(alone)
        Running(local, "--listen", "127.0.0.1:0")
        Running(quiet, "--no-port-mapping")
        Running(vpn)
        plain_home = lab.scratch / "without-upnp"
        plain_home.mkdir()
        (plain_home / "meshnode.toml").write_text("upnp = false\n")
        Running(plain, "--home", str(plain_home))
        time.sleep(6.0)
        assert sent(gated)[:2] == [6, 4], "three PCP, three NAT-PMP, two searches for two versions"
        assert sent(plain)[:2] == [6, 0], "without UPnP no multicast"
        assert [sent(host) for host in hosts[2:]] == [[0, 0, 0]] * 4
