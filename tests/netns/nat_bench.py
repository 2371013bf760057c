"""The probe scripts' world in network namespaces. All of its sockets belong to the test's own process.

A packet that does not come has no moment at which it did not come. So that no test waits for nothing, every probe is
followed by fences: packets of flows that are known to pass, out of every site and then into every site. They queue
behind the probe at every NAT; when they have come, the probe has come or has been dropped.
"""

from __future__ import annotations

import itertools
import select
import socket
import threading
import time

from meshnode.base.address import Addr
from tests.netns.lab import Host
from tests.netns.natlab import NatLab, NatSite, udp_socket
from tests.sim.nat_probes import CLIENTS

SERVER_ADDRS = {
    "s1": Addr("198.51.100.7", 7001),
    "s2": Addr("198.51.100.7", 7002),
    "t": Addr("198.51.100.8", 7001),
}
FENCE_PORT = 7999
FENCE_TIMEOUT_S = 10.0
# the last step, from the NAT to the socket, may be another CPU's work and is no longer in one queue with the fence
GRACE_S = 0.03


class Servers:
    """One host outside, with two addresses, and the sockets of the scripts."""

    def __init__(self, lab: NatLab, switch: object) -> None:
        self.host: Host = lab.host("servers", switch, "198.51.100.7/24")  # type: ignore[arg-type]
        self.host.ip("addr add 198.51.100.8/24 dev eth0")
        self.sockets = {name: udp_socket(self.host, *addr) for name, addr in SERVER_ADDRS.items()}
        self.fence = udp_socket(self.host, SERVER_ADDRS["s1"].host, FENCE_PORT)
        self.lock = threading.Lock()  # scripts may run at once, but one packet at a time

    def close(self) -> None:
        """Close the sockets."""
        for one in (*self.sockets.values(), self.fence):
            one.close()


class Site:
    """A NAT and one host behind it, whose addresses are those of all the site's clients."""

    def __init__(self, lab: NatLab, nat: NatSite) -> None:
        self.nat = nat
        self.host = lab.host(f"{nat.label}-in", nat, "10.0.0.2/24", gateway="10.0.0.1")
        self.host.ip("addr add 10.0.0.3/24 dev eth0", "addr add 10.0.0.9/24 dev eth0")
        self.fence = udp_socket(self.host, "10.0.0.9", FENCE_PORT)

    def close(self) -> None:
        """Close the socket."""
        self.fence.close()


class LabBench:
    """Runs one script. Each takes client ports that no other used, so that the sites need no cleaning in between."""

    # in steps, for where two clients clash, the second gets the next port
    _ports = itertools.count(10_000, 16)
    _numbers = itertools.count()

    def __init__(self, servers: Servers, left: Site, right: Site | None = None, *more: NatSite, timeout: float = 2.0):
        self.port = next(self._ports)
        self._servers = servers
        self._timeout = timeout
        self._sites = [left] if right is None else [left, right]
        self._nats = [*(site.nat for site in self._sites), *more]
        self._blocked = False
        self._sockets = dict(servers.sockets)
        for number, name in enumerate(CLIENTS[: 2 * len(self._sites)]):
            host = self._sites[number // 2].host
            self._sockets[name] = udp_socket(host, f"10.0.0.{2 + number % 2}", self.port)
        self._names = {made: name for name, made in self._sockets.items()}

    def close(self) -> None:
        """Close the clients' sockets."""
        for name in set(self._sockets) - set(self._servers.sockets):
            self._sockets[name].close()

    def addr(self, server: str) -> Addr:
        """The address of a server socket."""
        return SERVER_ADDRS[server]

    def send(self, name: str, to: Addr) -> tuple[str, Addr] | None:
        """Send one packet; return its receiver and its source."""
        with self._servers.lock:
            return self._send(name, to)

    def _send(self, name: str, to: Addr) -> tuple[str, Addr] | None:
        probe = f"{name} {next(self._numbers)}".encode()
        self._sockets[name].sendto(probe, to)
        if not self._blocked:
            self._fences()
        ready, _, _ = select.select(list(self._names), [], [], 0)
        ready = ready or select.select(list(self._names), [], [], GRACE_S * (5 if self._blocked else 1))[0]
        for one in ready:
            data, source = one.recvfrom(2048)
            if data == probe:
                return self._names[one], Addr(*source)
        return None

    def _fences(self) -> None:
        number = str(next(self._numbers)).encode()
        for site in self._sites:
            site.fence.sendto(number, (SERVER_ADDRS["s1"].host, FENCE_PORT))
        seen = {self._await(self._servers.fence, number) for _ in self._sites}
        for source in seen:
            self._servers.fence.sendto(number, source)
        for site in self._sites:
            self._await(site.fence, number)

    @staticmethod
    def _await(fence: socket.socket, number: bytes) -> tuple[str, int]:
        deadline = time.monotonic() + FENCE_TIMEOUT_S
        while select.select([fence], [], [], max(0.0, deadline - time.monotonic()))[0]:
            data, source = fence.recvfrom(2048)
            if data == number:
                return source  # type: ignore[no-any-return]
        raise TimeoutError("a packet that every NAT must let through was lost")

    def do(self, what: str) -> None:
        """The steps that are no packets."""
        if what in ("wait", "half"):
            time.sleep(self._timeout * (1.5 if what == "wait" else 0.6))
            return
        for nat in self._nats:
            if what == "flush":
                nat.rebind()
            else:
                nat.block_udp(what == "block")
        self._blocked = what == "block"
