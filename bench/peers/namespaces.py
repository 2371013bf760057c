"""Moves in namespaces of this machine: numbers at 100 Hz there and back, and an end or both get new addresses.

This mesh is measured by ``bench.moves``, where a third node knows both, as one of a mesh does.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.peers.columns import DEAD
from bench.peers.environments import ROOT, Peer
from bench.peers.programs import PeerFailedError, Program
from tests.netns.lab import Lab, missing, renumber

NET = "10.77.0"
MOVERS = ("dialler", "listener", "both")
WAIT_S = 6.0
BEHIND = 10  # numbers under way at most, when a stream flows


@contextmanager
def _environment(peer: Peer) -> Iterator[None]:
    before = {name: os.environ.get(name) for name, _ in peer.env}
    os.environ.update(dict(peer.env))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _silence(client: Program) -> float:
    until = time.monotonic() + WAIT_S
    while True:
        time.sleep(0.8)
        found = client.ask("gap")
        if found["error"] or time.monotonic() > until:
            return DEAD
        if found["in_flight"] < BEHIND:
            return float(found["gap_ms"])


def _move(peer: Peer, start: tuple[str, ...], mover: str) -> float:
    """Return the silence of one move, on a connection of its own."""
    with Lab() as lab:
        switch = lab.switch()
        listener = lab.host("listener", switch, f"{NET}.10/24")
        dialler = lab.host("dialler", switch, f"{NET}.11/24")
        env = peer.variables()
        with Program(list(listener.command(*start, "serve", f"{NET}.10")), env, ROOT) as server:
            at = server.line()["at"]
            with Program(list(dialler.command(*start, "client")), env, ROOT) as client:
                client.ask("connect", at=at)
                client.ask("beat")
                time.sleep(1.5)
                client.ask("reset")
                new = {"dialler": {dialler: f"{NET}.21/24"}, "listener": {listener: f"{NET}.20/24"}}
                renumber(new.get(mover) or new["dialler"] | new["listener"])
                return _silence(client)


def _mesh(runs: int) -> dict[str, float]:
    from bench import moves as bench_moves

    found = bench_moves.run(max(3, runs))
    return {f"move_{mover}": found[mover]["p50_ms"] for mover in MOVERS}


def moves(peer: Peer, start: tuple[str, ...], runs: int) -> dict[str, float]:
    """Return the median silence of each kind of move in ms. Raises PeerFailedError without namespaces."""
    reason = missing("nft")
    if reason is not None:
        raise PeerFailedError(reason)
    if peer.program[-1].endswith("mesh"):
        with _environment(peer):
            return _mesh(runs)
    found = {}
    for mover in MOVERS:
        found[f"move_{mover}"] = statistics.median(_move(peer, start, mover) for _ in range(runs))
    return found
