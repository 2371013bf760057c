"""``meshnode doctor`` behind real kernel NATs: mappings by their right names, and no wrong word on filtering."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.netns import natlab
from tests.netns.lab import ROOT, Host
from tests.netns.natlab import NatLab, NatSite

pytestmark = pytest.mark.netns
Json = dict[str, Any]
PATIENCE_S = 45.0
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
        command = [sys.executable, "-m", "meshnode", *args, "--json", "--home", self.home(name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        found: Json = json.loads(done.stdout.splitlines()[-1])
        return found

    def doctor(self, name: str, until: tuple[str, str], *args: str) -> Json:
        """Ask the doctor until a topic has a finding of this level, which takes a few seconds after a change."""
        deadline = time.monotonic() + PATIENCE_S
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
    deadline = time.monotonic() + PATIENCE_S
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
    peers = place.ask("blocked_udp", "peers")
    assert (peers["path"], peers["tunnel"]) == ("direct", True)


def test_it_hears_the_neighbour_by_multicast(place: Place) -> None:
    assert "multicast works: 1 node" in said(place.doctor("second", ("mdns", "ok")), "mdns")


def test_it_says_why_a_symmetric_nat_and_a_strict_one_need_a_relay(place: Place) -> None:
    found = place.ask("symmetric", "doctor", place.ids["port_restricted"])
    peer = found["peer"]
    assert peer["connected"]
    assert peer["candidates"]
    if peer["path"] == "relay":
        assert "this node's NAT shows every peer another port" in said(found, "path")
    assert "dialled" in said(found, "history")


def test_strangers_that_call_show_who_is_let_in_and_nobody_is_told_a_wrong_thing(place: Place) -> None:
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
