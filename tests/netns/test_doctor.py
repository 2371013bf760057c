"""``meshnode doctor`` behind real kernel NATs: mappings by their right names, and no wrong word on filtering."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.given_time import HANG_S
from tests.homes import make_home
from tests.netns import natlab
from tests.netns.lab import Host
from tests.netns.natlab import NatLab, NatSite

pytestmark = pytest.mark.netns
Json = dict[str, Any]
FINDING_TIMEOUT_S = 45.0
MAPPINGS = {
    "full_cone": "endpoint-independent",
    "address_restricted": "endpoint-independent",
    "port_restricted": "endpoint-independent",
    "symmetric": "endpoint-dependent",
}


class Place:
    """Two seeds in the open, and a node behind each kind of NAT; the port-restricted site has two."""

    def __init__(self, lab: NatLab) -> None:
        self.lab = lab
        self.switch = lab.switch()
        self.ids: dict[str, str] = {}
        self.sites: dict[str, NatSite] = {}
        self.seeds: list[str] = []
        self.labels: dict[str, str] = {}
        for number in (7, 8):
            ready = self.up(lab.host(f"seed{number}", self.switch, f"198.51.100.{number}/24"), "seed", "--no-mdns")
            self.seeds.append(f"{ready['id']}@{ready['endpoints'][0]}")
        for number, kind in enumerate((*MAPPINGS, "blocked_udp"), 11):
            site = self.sites[kind] = lab.nat_site(kind[:8], self.switch, kind, f"198.51.100.{number}/24")
            self.node(lab.host(kind[:8] + "-a", site, "10.0.0.2/24", gateway="10.0.0.1"), kind)
        second = lab.host("second", self.sites["port_restricted"], "10.0.0.3/24", gateway="10.0.0.1")
        self.node(second, "second")

    def up(self, host: Host, *args: str) -> Json:
        """Start a node on a host."""
        make_home(Path(self.home(host.label)))
        command = [sys.executable, "-m", "meshnode", *args, "--json", "--home", self.home(host.label)]
        return host.start(*command).line()

    def node(self, host: Host, name: str) -> str:
        """Start an ordinary node that knows both seeds."""
        self.labels[name] = host.label
        seeds = [part for seed in self.seeds for part in ("--seed", seed)]
        quiet = [] if name in ("port_restricted", "second") else ["--no-mdns"]
        self.ids[name] = str(self.up(host, "up", *seeds, *quiet)["id"])
        return self.ids[name]

    def home(self, name: str) -> str:
        """A node's home."""
        return str(self.lab.scratch / f"home-{self.labels.get(name, name)}")

    def ask(self, name: str, *args: str) -> Json:
        """Run a command of a node's home; the control socket is a file, so from any namespace."""
        done = forked.run([*args, "--json", "--home", self.home(name)], HANG_S)
        assert done.returncode == 0, done.stdout + done.stderr
        found: Json = json.loads(done.stdout.splitlines()[-1])
        return found

    def doctor(self, name: str, until: tuple[str, str], *args: str) -> Json:
        """Ask the doctor until a topic has a finding of this level, which takes a few seconds after a change."""
        deadline = time.monotonic() + FINDING_TIMEOUT_S
        while True:
            found = self.ask(name, "doctor", *args)
            if until in {(finding["topic"], finding["level"]) for finding in found["findings"]}:
                return found
            assert time.monotonic() < deadline, (until, found)
            time.sleep(0.5)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    natlab.require()
    with NatLab() as lab:
        yield Place(lab)


def said(found: Json, topic: str) -> str:
    """All that was said on a topic."""
    return "; ".join(finding["text"] for finding in found["findings"] if finding["topic"] == topic)


@pytest.mark.parametrize("kind", MAPPINGS)
def test_it_names_the_mapping_of_every_kind_of_nat(place: Place, kind: str) -> None:
    symmetric = MAPPINGS[kind] == "endpoint-dependent"
    deadline = time.monotonic() + FINDING_TIMEOUT_S
    while (found := place.ask(kind, "doctor"))["nat"]["mapping"] == "unknown":
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    assert found["nat"]["mapping"] == MAPPINGS[kind], found
    assert place.sites[kind].outside in str(found["nat"]["reflexive"])
    assert ("symmetric" if symmetric else "one outside address") in said(found, "nat")
    assert said(found, "udp").startswith("UDP works")
    for topic in ("seeds", "dht", "clock", "relays"):
        assert {f["level"] for f in found["findings"] if f["topic"] == topic} == {"ok"}, found


def test_where_udp_is_dropped_it_says_so_and_that_websockets_carry_the_peers(place: Place) -> None:
    found = place.doctor("blocked_udp", ("udp", "problem"))
    assert "UDP is blocked" in said(found, "udp")
    assert "WebSocket" in said(found, "udp")
    assert "by WebSocket" in said(found, "seeds")
    dialled = [place.ask("blocked_udp", "peers", seed.partition("@")[0]) for seed in place.seeds]
    assert any((peer["path"], peer["tunnel"]) == ("direct", True) for peer in dialled)


def test_a_seed_to_which_others_come_by_websocket_is_not_told_that_its_own_udp_is_blocked(place: Place) -> None:
    told = [place.ask(seed, "doctor", place.ids["blocked_udp"]) for seed in ("seed7", "seed8")]
    assert not [found for found in told if "UDP is blocked" in said(found, "udp")]
    tunnels = [found for found in told if found["peer"]["tunnel"]]
    assert tunnels, "one of them may be reached through the other"
    assert all("its network seems to block UDP" in said(found, "path") for found in tunnels)


def test_it_hears_the_neighbour_by_multicast(place: Place) -> None:
    assert "multicast works: 1 node" in said(place.doctor("second", ("mdns", "ok")), "mdns")


def test_it_says_why_a_symmetric_nat_and_a_strict_one_need_a_relay(place: Place) -> None:
    found = place.ask("symmetric", "doctor", place.ids["port_restricted"])
    peer = found["peer"]
    assert peer["connected"]
    assert peer["candidates"]
    if peer["path"] == "relay":
        assert "this node's NAT shows every peer another port" in said(found, "path")
    assert "connected" in said(found, "history") or "dialled" in said(found, "history")  # either end may have begun


def test_strangers_that_call_show_what_is_let_in_and_no_finding_is_wrong(place: Place) -> None:
    for number in range(31, 35):
        name = f"stranger{number}"
        place.node(place.lab.host(f"s{number}", place.switch, f"198.51.100.{number}/24"), name)
        for kind in MAPPINGS:
            place.ask(name, "ping", place.ids[kind], "-c", "1")
    told = {kind: place.ask(kind, "doctor")["nat"]["filtering"] for kind in MAPPINGS}
    assert told.pop("full_cone") == "endpoint-independent"
    assert told.pop("address_restricted") in ("unknown", "at-most-address-dependent")
    assert set(told.values()) == {"unknown"}


def test_a_network_that_begins_to_drop_udp_is_told_from_a_dead_one(place: Place) -> None:
    site = place.sites["port_restricted"]
    site.block_udp(True)
    try:
        found = place.doctor("port_restricted", ("udp", "problem"))
        assert "UDP is blocked" in said(found, "udp")
        assert "one outside address" in said(found, "nat") or "not known" in said(found, "nat")
    finally:
        site.block_udp(False)


def test_ipv6_is_told_with_what_is_let_in() -> None:
    natlab.require()
    with NatLab() as lab:
        switch = lab.switch()
        homes: dict[str, str] = {}

        def up(number: int, *args: str) -> Json:
            host = lab.host(f"six{number}", switch, f"192.0.2.{number}/32")  # and no route: IPv6 is all there is
            host.ip(f"addr add 2001:db8:{number}::1/128 dev eth0 nodad", "route add 2001:db8::/32 dev eth0")
            homes[host.label] = str(lab.scratch / host.label)
            make_home(lab.scratch / host.label)
            command = [sys.executable, "-m", "meshnode", *args, "--no-mdns", "--json", "--home", homes[host.label]]
            ready = host.start(*command).line()
            return {**ready, "at": next(e for e in ready["endpoints"] if e.startswith(f"[2001:db8:{number}::1]"))}

        def ask(name: str, *args: str) -> Json:
            done = forked.run([*args, "--json", "--home", homes[name]], HANG_S)
            assert done.returncode == 0, done.stdout + done.stderr
            found: Json = json.loads(done.stdout.splitlines()[-1])
            return found

        ready = [up(number, "seed") for number in (7, 8)]
        seeds = [part for one in ready for part in ("--seed", f"{one['id']}@{one['at']}")]
        here = up(9, "up", *seeds)
        deadline = time.monotonic() + FINDING_TIMEOUT_S
        while (found := ask("six9", "doctor"))["nat"]["mapping_ipv6"] == "unknown":
            assert time.monotonic() < deadline, found
            time.sleep(0.5)
        assert found["nat"]["mapping_ipv6"] == "none"
        assert "IPv6 works" in said(found, "ipv6")
        assert "IPv6: there is no NAT" in said(found, "nat")
        for number in range(10, 18):  # a call within 5 s of a change of addresses proves nothing
            up(number, "up", *seeds)
            ask(f"six{number}", "ping", here["id"], "-c", "1")
            found = ask("six9", "doctor")
            if found["nat"]["filtering_ipv6"] != "unknown":
                break
        assert found["nat"]["filtering_ipv6"] == "endpoint-independent", found
        assert found["nat"]["filtering"] == "unknown"
