"""What a traversal must survive, with real nodes: each scenario runs once and returns what was measured.

The tests run them with loose bounds, ``bench/nat.py`` runs them often and holds them against the targets.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from tests.netns.lab import Host, Program
from tests.netns.natlab import NatLab, rehome
from tests.netns.natmesh import DIRECT, NatMesh, NatNode, Pair

PROXY = "198.51.100.200"
PLAIN_SOCKET = Path(__file__).with_name("plain_websocket.py")
RELAY_CROWD = Path(__file__).with_name("relay_crowd.py")


def meet(mesh: NatMesh, left: str, right: str, seconds: float = 12.0, number: int = 0) -> dict[str, Any]:
    """Fresh nodes behind fresh mappings open a stream; ``met``: both ends send directly before time is over."""
    pair = mesh.pair(left, right, number=number)
    try:
        first = pair.open()
        found = pair.wait_for(seconds=seconds)
        met = found["path"] in DIRECT
        if met:
            time.sleep(0.4)  # of the stream, behind the switch
            found = pair.dialler.ask("report")
        return {**found, "met": met, "first_byte_ms": first["first_byte_ms"]}
    finally:
        pair.stop()


def relay_killed(lab: NatLab) -> dict[str, Any]:
    """Two symmetric NATs, so relayed for good; the relay in use dies without a word."""
    mesh = NatMesh(lab)
    pair = mesh.pair("symmetric", "symmetric", relays=2)
    pair.open()
    pair.settled()
    time.sleep(1.0)
    used = pair.dialler.ask("report")["endpoint"]
    pair.dialler.ask("reset")
    relay = next(node for node in mesh.seed_nodes if node.id in used)
    relay.program.kill()
    time.sleep(1.5)
    found = pair.settled()
    return {**found, "relay_before": used}


def direct_dies(mesh: NatMesh) -> dict[str, Any]:
    """A punched path is cut between the two NATs: back to the relay."""
    pair = mesh.pair("port_restricted", "port_restricted")
    try:
        pair.open()
        pair.wait_for()
        time.sleep(1.0)
        pair.dialler.ask("reset")
        pair.sites[0].cut(pair.sites[1].outside)
        time.sleep(1.5)
        return pair.settled()
    finally:
        pair.sites[0].cut()
        pair.stop()


class Movers:
    """A pair whose ends both move to other NATs, again and again."""

    def __init__(self, mesh: NatMesh, left: str = "port_restricted", right: str = "port_restricted") -> None:
        self.pair = mesh.pair(left, right)
        self._away = [mesh.site(kind, number)[0] for kind, number in ((left, 2), (right, 3))]
        self._home = list(self.pair.sites)
        self._turn = 0
        self.pair.open()
        self.pair.wait_for()

    def move(self) -> dict[str, Any]:
        """Move both at the same moment; the longest silence since."""
        self._turn += 1
        sites = self._away if self._turn % 2 else self._home
        hosts = (self.pair.dialler.host, self.pair.listener.host)
        self.pair.dialler.ask("reset")
        number = 20 + self._turn
        rehome(
            {
                host: (site, f"10.0.0.{number + n}/24", "10.0.0.1")
                for n, (host, site) in enumerate(zip(hosts, sites, strict=True))
            }
        )
        time.sleep(1.5)
        return self.pair.settled()


def _walled(mesh: NatMesh, number: int) -> Host:
    return mesh.site("blocked_udp", number)[1]


def udp_blocked(mesh: NatMesh, sides: int, pull: int = 0) -> dict[str, Any]:
    """UDP is dropped at the dialler's side, or at both."""
    walled = NatNode(_walled(mesh, 0), mesh.seeds)
    other = NatNode(_walled(mesh, 1) if sides == 2 else mesh.site("port_restricted")[1], mesh.seeds)
    for node in (walled, other):
        node.ready()
    for node in (walled, other):
        node.until_joined()
    try:
        first = walled.ask("open", peer=other.id)
        time.sleep(1.0)
        found = {**walled.ask("report"), "first_byte_ms": first["first_byte_ms"]}
        if pull:
            found["MBps"] = walled.ask("pull", 60, peer=other.id, bytes=pull)["MBps"]
        return found
    finally:
        walled.stop()
        other.stop()


def behind_a_proxy(mesh: NatMesh, rate: int, pull: int) -> dict[str, Any]:
    """Nothing leaves the dialler's site but TCP to a proxy that asks for credentials and passes ``rate`` bytes/s."""
    lab = mesh.lab
    proxy_host = lab.host("proxy", mesh.switch, f"{PROXY}/24")
    proxy = lab.connect_proxy(proxy_host, credentials="user:secret", rate=rate)
    site, host = mesh.site("blocked_udp", 0)
    site.only_tcp_to(PROXY)
    env = {"HTTPS_PROXY": f"http://user:secret@{PROXY}:3128", "NO_PROXY": ""}
    walled = NatNode(host, mesh.seeds, env=env)
    other = NatNode(mesh.site("port_restricted")[1], mesh.seeds)
    for node in (walled, other):
        node.ready()
    for node in (walled, other):
        node.until_joined()
    while proxy.line()["status"] != 200:  # TCP 443, where no seed of the lab listens, is tried beside the seed's port
        pass
    first = walled.ask("open", peer=other.id)
    time.sleep(1.0)
    found = {**walled.ask("report"), "first_byte_ms": first["first_byte_ms"]}
    found["MBps"] = walled.ask("pull", 120, peer=other.id, bytes=pull)["MBps"]
    walled.stop()
    other.stop()
    found["plain_MBps"] = plain_websocket(mesh, host, pull, env)
    return found


def plain_websocket(mesh: NatMesh, host: Host, count: int, env: dict[str, str] | None = None) -> float:
    """Fetch so many bytes by a WebSocket over TLS from a seed's host: what this path gives without a mesh."""
    server_host = mesh.hosts[0]
    address = server_host.address.partition("/")[0]
    server = server_host.start(sys.executable, str(PLAIN_SOCKET), "serve", f"{address}:8443", str(lab_pem(server_host)))
    server.line()
    client: Program = host.start(
        sys.executable, str(PLAIN_SOCKET), "fetch", f"wss://{address}:8443/{count}", env=env or {}
    )
    found = client.line(120)["MBps"]
    server.stop()
    return float(found)


def lab_pem(host: Host) -> Path:
    """Where the plain server keeps its certificate."""
    return host.lab.scratch / "plain.pem"


def udp_comes_back(mesh: NatMesh) -> dict[str, Any]:
    """UDP is dropped at first; then the rule goes away. When the dialler is off the tunnel, and what it cost."""
    site, host = mesh.site("port_restricted", 0)
    site.block_udp(True)
    walled = NatNode(host, mesh.seeds).ready().until_joined()
    other = NatNode(mesh.site("port_restricted", 1)[1], mesh.seeds).ready().until_joined()
    pair = Pair((site, mesh.site("port_restricted", 1)[0]), walled, other)
    pair.open()
    time.sleep(1.0)
    before = {p["endpoint"][:4] for p in walled.ask("status")["paths"] if p["id"] != other.id}
    walled.ask("reset")
    site.block_udp(False)
    began = time.monotonic()
    while any("!" in p["endpoint"] for p in walled.ask("status")["paths"]) and time.monotonic() < began + 70:
        time.sleep(0.1)
    took = time.monotonic() - began
    time.sleep(0.5)  # of the stream, behind the switch
    found = {**pair.settled(), "udp_after_s": round(took, 1), "tunnels_before": sorted(before)}
    pair.stop()
    return found


def crowd(lab: NatLab, count: int) -> dict[str, Any]:
    """So many clients hold idle reservations at one relay; what the relay's memory grew by."""
    mesh = NatMesh(lab, 1, "--no-gossip")  # what gossip keeps for each member is not the relay's
    relay = mesh.seed_nodes[0]
    before = relay.ask("status")
    host = lab.host("crowd", mesh.switch, "198.51.100.100/24")
    program = host.start(sys.executable, str(RELAY_CROWD), str(count), mesh.seeds[0], str(lab.scratch / "crowd"))
    joined = program.line(300)
    time.sleep(1.0)
    after = relay.ask("status")
    program.stop()
    return {
        "clients": after["relays"]["clients"],
        "joined_s": joined["seconds"],
        "grown_MB": round(after["rss_MB"] - before["rss_MB"], 1),
    }


def relay_load(lab: NatLab, relay_mb: float, pull: int) -> dict[str, Any]:
    """A relayed transfer: goodput, what the relay carried a second of its processor time, what it refused."""
    mesh = NatMesh(lab, 1, "--relay-mb", str(relay_mb))
    pair = mesh.pair("symmetric", "symmetric")
    relay = mesh.seed_nodes[0]
    before = relay.ask("status")
    began = time.monotonic()
    pulled = pair.dialler.ask("pull", 120, peer=pair.listener.id, bytes=pull)
    took = time.monotonic() - began
    after = relay.ask("status")
    carried = after["counters"]["relay_forwarded_bytes"] - before["counters"].get("relay_forwarded_bytes", 0)
    pair.stop()
    return {
        "MBps": pulled["MBps"],
        "relay_MB_per_cpu_s": round(carried / 1e6 / (after["cpu_s"] - before["cpu_s"]), 1),
        "carried_MBps": round(carried / 1e6 / took, 2),
        "refused": after["counters"].get("relay_over_limit", 0),
    }
