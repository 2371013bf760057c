"""One ``PeerPaths`` and a network that answers its probes."""

from __future__ import annotations

import random

from meshnode.base.address import Addr
from meshnode.base.path import Path, ViaRelay
from meshnode.identity.keys import Identity
from meshnode.identity.record import Endpoint, EndpointRecord
from meshnode.paths.effects import Effect, SendProbe
from meshnode.paths.peer import PeerPaths

PEER = Identity(bytes(32)).id
A, B, C = (Addr(f"192.0.2.{n}", 4242) for n in (1, 2, 3))
VIA_RELAY = ViaRelay("a-relay")
RTT = 0.02
START = 100.0


class Wire:
    """One PeerPaths and a network that answers probes at ``up``, up to ``mtu`` bytes, after ``RTT``.

    ``rtts`` has other round trips by address, ``mtus`` other sizes; of the padded probes the next ``lost`` of each size
    are lost.
    """

    def __init__(self, *up: Path, mtu: int = 1500) -> None:
        rng = random.Random(1)
        self.paths = PeerPaths(PEER, rng=rng, entropy=rng.randbytes, now=START)
        self.up = list(up)
        self.mtu = mtu
        self.now = START
        self.effects: list[Effect] = []
        self.rtts: dict[Path, float] = {}
        self.mtus: dict[Path, int] = {}
        self.lost = 0
        self._losses: dict[int, int] = {}
        self._pongs: list[tuple[float, SendProbe]] = []

    def collect(self) -> None:
        """Take the effects; what reaches an address that is up will be answered."""
        for effect in self.paths.take_effects():
            self.effects.append(effect)
            if not isinstance(effect, SendProbe) or effect.path not in self.up:
                continue
            if effect.pad_to <= self.mtus.get(effect.path, self.mtu):
                if effect.pad_to and self._losses.get(effect.pad_to, 0) < self.lost:
                    self._losses[effect.pad_to] = self._losses.get(effect.pad_to, 0) + 1
                    continue
                self._pongs.append((self.now + self.rtts.get(effect.path, RTT), effect))

    def run(self, seconds: float) -> None:
        """Let time pass, timers fire and answers arrive, each at its time."""
        end = self.now + seconds
        self.collect()
        while True:
            timer = self.paths.next_deadline()
            pong = min(self._pongs, key=lambda p: p[0], default=None)
            at = min([end] + [t for t in (timer, pong[0] if pong else None) if t is not None])
            if at >= end:
                break
            self.now = max(self.now, at)
            if pong is not None and pong[0] <= self.now:
                self._pongs.remove(pong)
                self.paths.on_pong(pong[1].tx, self.now)
            else:
                self.paths.tick(self.now)
                due = self.paths.next_deadline()
                assert due is None or due > self.now, "a tick leaves nothing due"
            self.collect()
        self.now = end

    def seen(self, kind: type) -> list[Effect]:
        """The effects of one kind so far."""
        return [e for e in self.effects if isinstance(e, kind)]


def connected(*up: Path, at: Path = A, mtu: int = 1500) -> Wire:
    """A wire whose connection was accepted at ``at`` and has come to rest."""
    wire = Wire(*up, mtu=mtu)
    wire.paths.accept(at, wire.now)
    wire.run(2.0)
    wire.effects.clear()
    return wire


def record(*addrs: Addr) -> EndpointRecord:
    """What the peer publishes."""
    return EndpointRecord(PEER, 2, 0, 60, tuple(Endpoint(a) for a in addrs))
