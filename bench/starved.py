"""``./dev bench starved``: thirty nodes, each a process of its own, that share a quarter of a core.

Nodes are on loopback addresses of their own. Some offer one service, others call it by its name through a forward; a
node moves every ten seconds (``rebind``), one is killed (-9) every thirty and started again, outside the limit until it
is ready. Then the limit ends, and it counts how soon all callers are answered. What answers behind the service is in
this process, which has no such limit.

``python -m bench.starved [SECONDS] [--signals]`` prints JSON; ``--signals`` limits without the kernel's groups.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import quota
from meshnode.daemon.client import call
from meshnode.daemon.request import build
from meshnode.demo.stage import Process
from meshnode.errors import MeshError

SHARE = 0.25  # of a core, for all of them
NODES, SEEDS, SERVERS, CALLERS = 30, 2, 6, 10
AT_ONCE = 4  # nodes that start together
STARTS = 4  # tries of 30 s for a node to start, on a machine that has other work
WITNESSES = 5  # callers whose view of the members is watched
MOVE_S, KILL_S, CALL_S = 10.0, 30.0, 0.5
SETTLE_S = 20.0  # from the last start to the limit
GIVE_UP_S = 30.0  # for one call
CALL_CPU_S = 1.0  # of CPU given to all, in which a call is to be answered
GRACE_S = 30.0  # after its new start, in which a node that was killed may still be taken for gone
SHORT_S, WHOLE_S = 180.0, 1_200.0


@dataclass
class Node:
    """One node of the mesh, and its lives."""

    process: Process
    number: int
    role: str
    port: int = 0  # of a caller's forward
    began: float = 0.0  # when its present life was ready
    lives: int = 1
    counted: Counter[str] = field(default_factory=Counter)  # at the begin of this life's part that counts

    @property
    def runs(self) -> bool:
        return self.began > 0.0


class Mesh:
    """Thirty nodes and what happens to them."""

    def __init__(self, root: Path, group: quota.Quota, seed: int = 1) -> None:
        self.rng = random.Random(seed)
        self.nodes: list[Node] = []
        self.answers: list[tuple[float, float]] = []  # when a call began, what it took; infinite without an answer
        self.gone: list[tuple[float, str]] = []  # what a witness said and when
        self.counters: Counter[str] = Counter()
        self.moves = self.kills = self.not_moved = self.begun = 0
        self._root = root
        self._group = group
        self._target: asyncio.Server | None = None
        self._status: dict[int, dict[str, str]] = {}  # of each witness: what it takes each id for
        self._place = 0
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- start and end

    async def start(self) -> None:
        """Start all nodes, each in a core's time, and let them find each other."""
        self._target = await asyncio.start_server(_echo, "127.0.0.1", 0)
        roles = ["seed"] * SEEDS + ["server"] * SERVERS + ["caller"] * CALLERS
        roles += ["other"] * (NODES - len(roles))
        for number, role in enumerate(roles):
            self.nodes.append(Node(self._process(number, role), number, role))
            if role == "seed":
                await self._begin(self.nodes[-1])
        rest = self.nodes[SEEDS:]
        for first in range(0, len(rest), AT_ONCE):
            await asyncio.gather(*(self._begin(node) for node in rest[first : first + AT_ONCE]))
        target = f"tcp://127.0.0.1:{self._target.sockets[0].getsockname()[1]}"
        servers, callers = ([n for n in self.nodes if n.role == role] for role in ("server", "caller"))
        for node in servers:
            await node.process.ask("expose", name="echo", target=target, allow=["any"])
        trusted = [node.process.id for node in servers]
        for node in callers:
            told = await node.process.ask("forward", listen="127.0.0.1:0", to="echo", trusted=trusted)
            node.port = int(told["listen"].rpartition(":")[2])
        for node in callers[:WITNESSES]:
            threading.Thread(target=self._watch, args=(node,), daemon=True).start()
        await asyncio.sleep(SETTLE_S)

    def _process(self, number: int, role: str) -> Process:
        self._place += 1
        args = ["seed" if role == "seed" else "up", "--no-port-mapping"]
        for seed in self.nodes[:SEEDS]:
            if seed.number != number:
                args += ["--seed", f"{seed.process.id}@{seed.process.endpoint}"]
        where = f"127.0.{20 + self._place // 200}.{1 + self._place % 200}"
        return Process(self._root / f"n{number}", where, args)

    async def _begin(self, node: Node) -> None:
        for left in reversed(range(STARTS)):
            try:
                await node.process.start()
                break
            except MeshError:  # no core was free for it
                node.process.kill()
                if not left:
                    raise
        self._group.add(node.process.pid)
        node.began = time.monotonic()

    async def stop(self) -> None:
        """End all nodes."""
        for task in self._tasks:
            task.cancel()
        for node in self.nodes:
            node.process.kill()
        await asyncio.gather(*(node.process.stop() for node in self.nodes))
        if self._target is not None:
            self._target.close()

    # ---- what is watched

    def _watch(self, node: Node) -> None:
        """Note what one node takes the others for, in a thread of its own."""
        status = self._status[node.number] = {}
        with contextlib.suppress(MeshError, OSError):
            for told in call(node.process.home, build("watch", {})):
                if told["event"] == "member":
                    status[told["id"]] = told["status"]
                    if told["status"] == "gone":
                        self.gone.append((time.monotonic(), told["id"]))

    def wrongly_gone(self) -> list[str]:
        """Return which nodes were called gone long after they began to run, or are so now."""
        by_id = {node.process.id: node for node in self.nodes}
        wrong = [id for at, id in self.gone if id in by_id and self._ran(by_id[id], at)]
        now = time.monotonic()
        for status in self._status.values():
            wrong += [id for id, what in status.items() if what == "gone" and id in by_id and self._ran(by_id[id], now)]
        return wrong

    @staticmethod
    def _ran(node: Node, at: float) -> bool:
        """Return whether a node ran at that time, and had for a while."""
        return node.runs and at > node.began + (GRACE_S if node.lives > 1 else 0.0)

    async def count(self, node: Node) -> Counter[str]:
        """Return a node's counters; empty when it does not say in time."""
        with contextlib.suppress(MeshError, TimeoutError):
            status = await asyncio.wait_for(node.process.ask("status"), GIVE_UP_S)
            return Counter(status["counters"])
        return Counter()

    async def count_all(self) -> None:
        """Add what each node has counted since it was last looked at."""
        for node in self.nodes:
            await self._count_up(node)

    async def _count_up(self, node: Node) -> None:
        if node.runs and (found := await self.count(node)):
            self.counters.update(found - node.counted)
            node.counted = found

    # ---- what happens

    async def live(self, seconds: float) -> None:
        """Move, kill and call for a time."""
        end = time.monotonic() + seconds
        await asyncio.gather(
            self._every(MOVE_S, end, self._move),
            self._every(KILL_S, end, self._kill),
            self._every(CALL_S, end, self._call),
        )
        await asyncio.gather(*self._tasks)

    async def _every(self, pause: float, end: float, action: Any) -> None:
        at = time.monotonic()
        while (at := at + pause) < end:
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            task = asyncio.create_task(action())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _move(self) -> None:
        node = self.rng.choice([node for node in self.nodes if node.runs])
        self._place += 1
        try:
            where = f"127.0.{20 + self._place // 200}.{1 + self._place % 200}"
            await asyncio.wait_for(node.process.ask("rebind", address=f"{where}:0"), GIVE_UP_S)
            self.moves += 1
        except (MeshError, TimeoutError):
            self.not_moved += 1

    async def _kill(self) -> None:
        node = self.rng.choice([node for node in self.nodes if node.runs and node.role in ("server", "other")])
        await self._count_up(node)
        node.process.kill()
        node.began = 0.0
        await node.process.stop()
        self.kills += 1
        node.process, node.lives, node.counted = self._process(node.number, node.role), node.lives + 1, Counter()
        await self._begin(node)

    async def _call(self) -> None:
        callers = [node for node in self.nodes if node.role == "caller"]
        self.begun += 1
        began = time.monotonic()
        self.answers.append((began, await ask(callers[self.begun % len(callers)].port, GIVE_UP_S)))

    async def recover(self) -> float:
        """Return the seconds until each caller has had an answer to a call begun from now on."""
        began = time.monotonic()

        async def one(port: int) -> None:
            answered = False
            while not answered:
                answered = await ask(port, 0.5) < float("inf")
                await asyncio.sleep(0.02)

        await asyncio.gather(*(one(node.port) for node in self.nodes if node.role == "caller"))
        return time.monotonic() - began


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def ask(port: int, most: float) -> float:
    """Return the seconds that one call through a forward took, from connect to answer; infinite without one."""
    began, writer = time.monotonic(), None
    try:
        async with asyncio.timeout(most):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"are you there?\n")
            if await reader.readline() == b"are you there?\n":
                return time.monotonic() - began
    except OSError:
        pass
    finally:
        if writer is not None:
            writer.close()
    return float("inf")


async def measure(seconds: float, *, by_signals: bool = False, share: float = SHARE) -> dict[str, Any]:
    """Return what a starved mesh does for that time, and how soon it is well again."""
    group = quota.make(f"meshnode-starved-{os.getpid()}", by_signals=by_signals)
    with tempfile.TemporaryDirectory() as folder:
        mesh = Mesh(Path(folder), group)
        try:
            await mesh.start()
            await mesh.count_all()
            mesh.counters.clear()
            mesh.gone.clear()
            pids = {node.process.pid: quota.cpu_s(node.process.pid) for node in mesh.nodes}
            group.limit(share)
            began = time.monotonic()
            await mesh.live(seconds)
            lasted = time.monotonic() - began
            used = sum(quota.cpu_s(pid) - before for pid, before in pids.items() if quota.cpu_s(pid))
            group.limit(None)
            recovery = await mesh.recover()
            await mesh.count_all()
            return _told(mesh, share, began, recovery) | {"cpu": round(used / lasted, 3), "how": group.how}
        finally:
            group.limit(None)
            await mesh.stop()
            group.close()


def _told(mesh: Mesh, share: float, began: float, recovery: float) -> dict[str, Any]:
    answers = sorted(took for _, took in mesh.answers)
    in_time = sum(took * share <= CALL_CPU_S for took in answers)
    by_half_minute: dict[int, list[bool]] = {}
    for at, took in mesh.answers:
        by_half_minute.setdefault(int((at - began) / 30.0), []).append(took * share <= CALL_CPU_S)
    counters = mesh.counters
    kept = ("dht_rpcs", "dht_timeouts", "dht_late", "dht_retransmits", "gossip_gone", "gossip_accusations")
    return {
        "share": share,
        "calls": len(answers),
        "in_time": round(in_time / len(answers), 4),
        "in_time_each_30_s": [round(sum(met) / len(met), 2) for _, met in sorted(by_half_minute.items())],
        "p50_s": _seconds(answers[len(answers) // 2]),
        "p95_s": _seconds(answers[int(0.95 * len(answers))]),
        "unanswered": sum(took == float("inf") for took in answers),
        "moves": mesh.moves,
        "not_moved": mesh.not_moved,
        "kills": mesh.kills,
        "wrongly_gone": len(mesh.wrongly_gone()),
        "recovery_s": round(recovery, 2),
        "timed_out": round(counters["dht_timeouts"] / max(1, counters["dht_rpcs"]), 4),
        "counters": {name: counters[name] for name in kept},
        "all_counters": dict(counters.most_common()),
    }


def _seconds(took: float) -> float | None:
    return round(took, 3) if took < float("inf") else None


def rows(short: bool) -> list[tuple[Any, ...]]:
    """Return the rows; each says what it leaves out."""
    found = asyncio.run(measure(SHORT_S if short else WHOLE_S))
    print(f"starved: {found}", file=sys.stderr)
    what = f"{NODES} nodes on {SHARE} of a core"
    told = {
        "limit by": found["how"],
        "without": "a node that starts has a core until it is ready; no loss, no NAT",
    }
    calls = {key: found[key] for key in ("calls", "p50_s", "p95_s", "unanswered", "moves", "kills")}
    return [
        (f"{what}: calls answered within {CALL_CPU_S:.0f} s of CPU given", found["in_time"], 0.95, True, told | calls),
        (f"{what}: living nodes called gone", found["wrongly_gone"], 0, False),
        (f"{what}: DHT requests timed out, share", found["timed_out"], 0.1, False, found["counters"]),
        (f"{what}: all callers answered after the limit ends, s", found["recovery_s"], 2, False),
    ]


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--signals"]
    length, share = float(words[0]) if words else SHORT_S, float(words[1]) if words[1:] else SHARE
    print(json.dumps(asyncio.run(measure(length, by_signals="--signals" in sys.argv, share=share))), flush=True)
