"""Ways to wear a node down: recorded datagrams after a clock was set back, grants without end, lines of the log."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from attacks import Row
from attacks.foe import CLOCK
from attacks.lab import Member
from meshnode.base.limits import CLOCK_MARK_S, LOG_KIND_BURST, SEAL_WINDOW_S
from meshnode.identity.keys import Identity
from meshnode.identity.sealing import MeshKey, Sealer
from meshnode.quic.engines import pick_engine
from meshnode.sim.world import SimNode, World

RECORDED, BACK_S, GRANTS, CALLS = 600, 300.0, 10_000, 400
ROWS = {
    "set_back": Row(
        19, "low", "stranger on the path: sends again what it recorded, after the clock was set back by 5 minutes",
        "identity/replay.py", f"of {RECORDED} datagrams that count twice", 321, 0,
    ),
    "restarted": Row(
        19, "low", "the same, and the node was started again after its clock was set back", "identity/clock_doubt.py",
        f"of {RECORDED} datagrams that count twice", 301, 0,
    ),
    "grants": Row(
        19, "low", f"relay: grants again {GRANTS:,} times, each a new reservation", "stack/relay_client.py",
        "reservations that are kept", 10_000, 2,
    ),
    "log": Row(
        19, "low", f"member: calls a service whose target is dead, {CALLS} times", "base/log_lines.py",
        "lines of the log", 400, LOG_KIND_BURST + 10,
    ),
}  # fmt: skip


@dataclass
class _Clock:
    """A wall clock that the test sets."""

    now: float

    def wall(self) -> float:
        """Return Unix seconds."""
        return self.now

    def monotonic(self) -> float:
        """Return monotonic seconds."""
        return CLOCK.monotonic()


def _set_back(restarted: bool) -> int:
    clock = _Clock(1_800_000_000.0)
    here, there = Identity.generate(), Identity.generate()
    mesh = MeshKey(os.urandom(32))
    sender = Sealer(there, mesh, clock, os.urandom, born=0.0)
    receiver = Sealer(here, mesh, clock, os.urandom, born=0.0)
    recorded = []
    for _ in range(RECORDED):
        clock.now += 1.0
        recorded.append(sender.seal(here.id, b"x"))
        receiver.unseal(recorded[-1])
    last = clock.now
    clock.now -= BACK_S
    if restarted:  # as the runtime does it
        receiver = Sealer(here, mesh, clock, os.urandom, born=clock.now)
        receiver.doubt.begin(last + CLOCK_MARK_S + SEAL_WINDOW_S, clock.monotonic())
    twice = 0
    for _ in range(int(BACK_S) // 10):
        clock.now += 10.0
        twice += sum(receiver.unseal(datagram) is not None for datagram in recorded)
    return twice


def _grants() -> int:
    world = World(3)
    engine = pick_engine("aioquic")
    relay = SimNode(world, "198.51.100.1", engine, seed_role=True)
    client = SimNode(world, "198.51.100.2", engine)
    client.join(relay)
    world.run(8.0)
    kept = client.mesh.relaying
    for number in range(GRANTS):
        kept._on_grant(relay.id, [5, number.to_bytes(8, "big"), bytes(32)], world.now)
    return len(kept._by_reservation)


def _log() -> int:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with (
            Member(root / "victim", command="seed") as victim,
            Member(root / "foe", "--seed", victim.at) as foe,
            socket.socket() as dead,
        ):
            dead.bind(("127.0.0.1", 0))
            victim.ask("expose", name="dead", target=f"tcp://127.0.0.1:{dead.getsockname()[1]}", allow=["any"])
            listen = str(foe.ask("forward", listen="127.0.0.1:0", to=f"{victim.id}/dead")["listen"])
            host, _, port = listen.rpartition(":")
            for _ in range(CALLS):
                with suppress(OSError), socket.create_connection((host, int(port)), timeout=10) as call:
                    call.recv(1)
        return sum("does not answer" in line for line in (root / "victim.log").read_text().splitlines())


def run(short: bool) -> dict[str, float]:
    """Attack a sealer, a node in virtual time, and a live one."""
    return {"set_back": _set_back(False), "restarted": _set_back(True), "grants": _grants(), "log": _log()}
