"""Real nodes behind NATs: two seeds on the Internet, which are relays, and pairs of nodes at sites of any kind.

with NatLab() as lab:
    mesh = NatMesh(lab)
    pair = mesh.pair("port_restricted", "symmetric")
    first = pair.open(); pair.wait_for("direct")
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path
from typing import Any

from tests.netns.lab import Host, Program
from tests.netns.natlab import NatLab, NatSite

NAT_NODE = Path(__file__).with_name("nat_node.py")
DIRECT = ("direct", "lan")
JOINED_S = 10.0


class NatNode:
    """A node process on a host."""

    def __init__(self, host: Host, seeds: list[str], *options: str, env: dict[str, str] | None = None) -> None:
        self.host = host
        home = host.lab.scratch / f"{host.label}.home{time.monotonic_ns()}"
        command = [sys.executable, str(NAT_NODE), "--home", str(home), *options]
        command.append("--no-gossip")  # whose links would have met before the meeting that is measured
        for seed in seeds:
            command += ["--seed", seed]
        self.program: Program = host.start(*command, env=env)
        self.id = ""
        self.endpoint = ""

    def ready(self) -> NatNode:
        """Wait until it runs."""
        line = self.program.line()
        self.id, self.endpoint = line["id"], line["endpoints"][0]
        return self

    def ask(self, do: str, timeout: float = 20.0, **more: Any) -> dict[str, Any]:
        """Give an order and return the answer; raises RuntimeError with what failed."""
        answer = self.program.ask(timeout, do=do, **more)
        if "failed" in answer:
            raise RuntimeError(f"{self.host.label}: {answer['failed']}")
        return answer

    def until_joined(self, relays: int = 1) -> NatNode:
        """Wait until so many relays are named in its record."""
        deadline = time.monotonic() + JOINED_S
        while True:
            held = self.ask("status")["relays"]["held"]
            if sum(h["home"] for h in held) >= relays:
                return self
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.host.label} has no relay: {held}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it."""
        self.program.stop()


class Pair:
    """A dialler and a listener, each behind a NAT of its own."""

    def __init__(self, sites: tuple[NatSite, NatSite], dialler: NatNode, listener: NatNode) -> None:
        self.sites = sites
        self.dialler = dialler
        self.listener = listener

    def open(self) -> dict[str, Any]:
        """The dialler opens its stream; when the first byte was back, and how."""
        return self.dialler.ask("open", peer=self.listener.id)

    def listener_path(self) -> str:
        """How the listener sends."""
        paths = self.listener.ask("status")["paths"]
        return next((str(p["path"]) for p in paths if p["id"] == self.dialler.id), "none")

    def wait_for(self, kinds: tuple[str, ...] = DIRECT, seconds: float = 12.0) -> dict[str, Any]:
        """Return the dialler's report once both ends use a path of these kinds, or when time is over."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.dialler.ask("report")
            if (found["path"] in kinds and self.listener_path() in kinds) or time.monotonic() > deadline:
                return found
            time.sleep(0.05)

    def settled(self, seconds: float = 8.0) -> dict[str, Any]:
        """Return the dialler's report once its replies flow, or when time is over."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.dialler.ask("report")
            if found["in_flight"] < 10 or found["error"] or time.monotonic() > deadline:
                return found
            time.sleep(0.05)

    def stop(self) -> None:
        """End both nodes and free their sites' cables."""
        self.dialler.stop()
        self.listener.stop()


class NatMesh:
    """The Internet of a lab, with seeds on it."""

    def __init__(self, lab: NatLab, seeds: int = 2, *options: str) -> None:
        self.lab = lab
        self.switch = lab.switch()
        self.hosts = [lab.host(f"seed{n}", self.switch, f"198.51.100.{2 + n}/24") for n in range(seeds)]
        self.seed_nodes = [NatNode(host, [], "--seed-role", *options) for host in self.hosts]
        self.seeds = [f"{n.id}@{n.endpoint}" for n in map(NatNode.ready, self.seed_nodes)]
        self._numbers = itertools.count(11)
        self._blocks = itertools.count(16)
        self._sites: dict[tuple[str, int], tuple[NatSite, Host]] = {}

    def site(self, kind: str, number: int = 0) -> tuple[NatSite, Host]:
        """The site of this kind and number, with one host inside; made when first asked for."""
        found = self._sites.get((kind, number))
        if found is None:
            outside = next(self._numbers)
            label = f"{kind[:6]}{outside}"
            if kind == "open":
                block = next(self._blocks) * 8
                inside = f"198.51.100.{block + 1}/29"
                site = self.lab.nat_site(label, self.switch, kind, f"198.51.100.{outside}/24", inside=inside)
                host = self.lab.host(f"{label}h", site, f"198.51.100.{block + 2}/29", gateway=f"198.51.100.{block + 1}")
            else:
                site = self.lab.nat_site(label, self.switch, kind, f"198.51.100.{outside}/24")
                host = self.lab.host(f"{label}h", site, "10.0.0.2/24", gateway="10.0.0.1")
            found = self._sites[kind, number] = site, host
        return found

    def pair(self, left: str, right: str, *, relays: int = 1, number: int = 0) -> Pair:
        """Start fresh nodes behind fresh mappings; the dialler is at the left."""
        (site, host), (other_site, other) = self.site(left, 2 * number), self.site(right, 2 * number + 1)
        for each in (site, other_site):
            each.rebind()
        nodes = [NatNode(one, self.seeds) for one in (host, other)]
        for node in nodes:
            node.ready()
        for node in nodes:
            node.until_joined(relays)
        return Pair((site, other_site), nodes[0], nodes[1])
