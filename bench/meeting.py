"""How nodes meet: on a LAN that leads nowhere, and twelve that know only a seed, which is then killed with -9."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from itertools import permutations
from pathlib import Path
from typing import Any

from bench.moves import percentile
from meshnode.daemon.client import RemoteError
from meshnode.demo.netns import Network
from meshnode.demo.stage import Process

MESHNODE = [sys.executable, "-m", "meshnode"]
NODES = 12
SAVED_S = 1.0  # contacts are on disk half a second after they are met, at first


def lan_first_ping() -> tuple[float, str]:
    """Start two nodes at once, no flags, on one switch, no route out; seconds to the first echo, and its path."""
    with Network("meshlan") as net, tempfile.TemporaryDirectory(prefix="mesh") as folder:
        switch = net.switch()
        hosts = [net.host(f"h{n}", switch, f"10.79.0.{n}/24") for n in (1, 2)]
        homes = [Path(folder) / host.label for host in hosts]
        nodes = []
        started = time.monotonic()
        for host, home in zip(hosts, homes, strict=True):
            command = host.command(*MESHNODE, "up", "--json", "--home", str(home))
            nodes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        try:
            ready = [json.loads(node.stdout.readline()) for node in nodes if node.stdout is not None]
            ping = [*MESHNODE, "ping", ready[1]["id"], "-c", "1", "--json", "--home", str(homes[0])]
            done = subprocess.run(ping, capture_output=True, text=True, timeout=30, check=False)
            seconds = time.monotonic() - started
        finally:
            for node in nodes:
                node.terminate()
            for node in nodes:
                node.wait(5)
                if node.stdout is not None:
                    node.stdout.close()
    if done.returncode != 0:
        raise RuntimeError(f"no echo: {done.stdout}")
    return seconds, json.loads(done.stdout)["path"]


async def _pings(pairs: list[tuple[Process, Process]]) -> tuple[int, list[float]]:
    """Ping one pair after the other by key; how many answered, and the milliseconds of each command."""
    answered, times = 0, []
    for here, there in pairs:
        started = time.perf_counter()
        try:
            echo = await here.ask("ping", id=there.id, count=1)
            answered += echo["rtt_ms"] is not None
        except RemoteError as error:  # a target missed, not a bench lost
            print(f"twelve: {here.id[:8]} to {there.id[:8]}: {error}", file=sys.stderr)
        times.append((time.perf_counter() - started) * 1000)
    return answered, times


async def _twelve(root: Path, nodes: int) -> dict[str, Any]:
    seed = Process(root / "seed", "127.0.5.1", ["seed"])
    await seed.start()
    join = ["up", "--seed", f"{seed.id}@{seed.endpoint}"]
    peers = [Process(root / f"n{i}", f"127.0.5.{i + 2}", join) for i in range(nodes)]
    started = [seed, *peers]
    try:
        await asyncio.gather(*(peer.start() for peer in peers))
        ring = list(zip(peers, peers[1:] + peers[:1], strict=True))
        before, _ = await _pings(ring)
        await asyncio.sleep(SAVED_S)
        seed.kill()
        strangers = [pair for pair in permutations(peers, 2) if pair not in ring]
        after, times = await _pings([*strangers, *ring])
        peers[3].kill()
        again = Process(peers[3].home, "127.0.5.99", join)
        started.append(again)
        await again.start()
        others = [peer for peer in peers if peer is not peers[3]]
        restarted, again_times = await _pings([(again, peer) for peer in others] + [(peer, again) for peer in others])
    finally:
        await asyncio.gather(*(process.stop() for process in started))
    return {
        "with_seed": [before, len(ring)],
        "without_seed": [after, nodes * (nodes - 1)],
        "restarted": [restarted, 2 * (nodes - 1)],
        "first_ping_p95_ms": round(percentile(times, 95), 1),
        "restarted_p95_ms": round(percentile(again_times, 95), 1),
    }


def twelve(nodes: int = NODES) -> dict[str, Any]:
    """Answered pings and all pings: neighbours with the seed; all pairs without it; to and from a restarted node."""
    with tempfile.TemporaryDirectory(prefix="mesh") as folder:
        return asyncio.run(_twelve(Path(folder), nodes))


if __name__ == "__main__":
    print(json.dumps({"lan": [lan_first_ping() for _ in range(3)], "twelve": twelve()}))
