"""The probe scripts' world, simulated."""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshnode.base.address import Addr
from meshnode.sim.nat import PRESETS, Nat
from meshnode.sim.world import Weather, World
from tests.sim.nat_probes import CLIENTS

TIMEOUT = 30.0
CARRIER_NET = "100.64.0.0/24"
SERVER_ADDRS = {
    "s1": Addr("198.51.100.7", 7001),
    "s2": Addr("198.51.100.7", 7002),
    "t": Addr("198.51.100.8", 7001),
}


@dataclass
class _Socket:
    bench: SimBench
    name: str

    def receive(self, datagram: bytes, source: Addr) -> None:
        self.bench.received = (self.name, source)


class SimBench:
    """Two sites, perhaps behind one carrier's NAT. ``hairpin`` is for every NAT there is."""

    port = 5000

    def __init__(
        self, left: str, right: str | None = None, *, carrier: str | None = None, hairpin: bool = False
    ) -> None:
        self.world = World(1, Weather(delay=0.01))
        self.received: tuple[str, Addr] | None = None
        self._nats: list[Nat] = []
        front = None if carrier is None else self._nat(carrier, "198.51.100.3", hairpin, CARRIER_NET)
        net = "198.51.100" if front is None else "100.64.0"
        sites = [self._nat(left, f"{net}.11", hairpin, behind=front)]
        sites.append(self._nat(right or left, f"{net}.12", hairpin, behind=front))
        self._where = {name: (sites[i // 2], Addr(f"10.0.0.{2 + i % 2}", self.port)) for i, name in enumerate(CLIENTS)}
        for name, (nat, addr) in self._where.items():
            self.world.sites.enter(nat, addr, _Socket(self, name))
        for name, addr in SERVER_ADDRS.items():
            self.world.sites.enter(None, addr, _Socket(self, name))

    def _nat(
        self, kind: str, outside: str, hairpin: bool, inside: str = "10.0.0.0/24", behind: Nat | None = None
    ) -> Nat:
        behaviour = replace(PRESETS[kind], hairpin=hairpin, timeout=TIMEOUT)
        nat = self.world.nat(behaviour, outside, inside=inside, behind=behind)
        self._nats.append(nat)
        return nat

    def addr(self, server: str) -> Addr:
        """The address of a server socket."""
        return SERVER_ADDRS[server]

    def send(self, name: str, to: Addr) -> tuple[str, Addr] | None:
        """Send one packet; return its receiver and its source."""
        nat, source = self._where[name] if name in self._where else (None, SERVER_ADDRS[name])
        self.received = None
        self.world.deliver(source, to, name.encode(), nat)
        self.world.run(0.1)
        return self.received

    def do(self, what: str) -> None:
        """The steps that are no packets."""
        if what in ("wait", "half"):
            self.world.run(TIMEOUT * (1.01 if what == "wait" else 0.6))
            return
        for nat in self._nats:
            if what == "flush":
                nat.flush()
            else:
                nat.block_udp = what == "block"
