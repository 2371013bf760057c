"""200 publishes a second of 1 kB to 50 subscribers: real nodes, real sockets, several nodes a process.

Five processes of ten nodes each join one topic; one node in each of the first processes publishes its share of the rate
that is asked for, or what publish() lets it. Every message carries its time, which all processes of a machine read from
one clock. ``python -m bench.topics [SECONDS] [RATE] [ENGINE]`` prints JSON: the rate reached, latency from publish() to
the subscriber's queue, what did not come, and what a delivery costs. ``BENCH_NODES`` (a process) makes it smaller,
``BENCH_PUBLISHERS`` is 2, or up to 5.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from meshnode import Config, Node

PROCESSES, NODES = 5, int(os.environ.get("BENCH_NODES", "10"))  # nodes a process
PUBLISHERS = int(os.environ.get("BENCH_PUBLISHERS", "2"))
SIZE = 1_000
START_S, SETTLE_S, DRAIN_S = 20.0, 7.0, 8.0
TOPIC = "bench"


async def _worker(root: Path, index: int, seed: str, engine: str) -> None:
    """One process: says "ready", waits for a line ``begin SECONDS RATE``, and reports in the end."""
    async with AsyncExitStack() as stack:
        nodes = []
        for number in range(NODES):
            settings: dict[str, Any] = {
                "home": root / f"n{index}-{number}",
                "listen": f"127.0.7.{1 + index * NODES + number}:0",
                "mdns": False,
                "engine": engine,
                "dht": index == number == 0,
                "seed_role": index == number == 0,
                "relay": "off",  # all are on one host: a process that stalls must not send its neighbours on detours
            }
            if seed or nodes:
                settings["seeds"] = (seed or f"{nodes[0].id}@{nodes[0].record.endpoints[0]}",)
            nodes.append(await stack.enter_async_context(Node(Config(**settings))))
        print(f"{nodes[0].id}@{nodes[0].record.endpoints[0]}", flush=True)
        topics = await asyncio.gather(*(node.join(TOPIC, limit=100_000) for node in nodes))
        latencies: list[float] = []
        counts = [0] * NODES

        async def read(number: int) -> None:
            async for message in topics[number]:
                if message.data[0]:
                    latencies.append(time.monotonic() - float(message.data[1:20]))
                    counts[number] += 1

        readers = [asyncio.create_task(read(number)) for number in range(NODES)]
        loop = asyncio.get_running_loop()
        order = (await loop.run_in_executor(None, sys.stdin.readline)).split()
        seconds, rate = float(order[0]), float(order[1])
        before = os.times()
        sent, took = 0, 0.0
        if index < PUBLISHERS:
            interval = PUBLISHERS / rate
            for _ in range(int(SETTLE_S / 0.1)):  # the tree grows out of the links that were first
                await topics[0].publish(b"\0" * SIZE)
                await asyncio.sleep(0.1)
            due = time.monotonic()
            end = due + seconds
            while sent < int(seconds / interval) and time.monotonic() < end + 1:
                stamp = b"\1" + f"{time.monotonic():019.6f}".encode()
                await topics[0].publish(stamp + b"x" * (SIZE - len(stamp)))
                sent += 1
                due += interval
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            took = time.monotonic() - end + seconds
            print("published", flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        after = os.times()
        for reader in readers:
            reader.cancel()
        names = (
            "topic_received",
            "topic_received_twice",
            "topic_queue_full",
            "topic_drop_slow",
            "topic_drop_flood",
            "gossip_gone",
            "path_switches",
        )
        report = {
            "sent": sent,
            "rate": sent / took if took else 0.0,
            "counts": counts,
            "lost": sum(topic.lost for topic in topics),
            "links": [topic.links for topic in topics],
            "cpu_s": round(after.user + after.system - before.user - before.system, 2),
            "latencies": sorted(latencies)[:: max(1, len(latencies) // 2_000)],
            "worst": max(latencies, default=0.0),
            "counters": {name: sum(node.metrics.counters.get(name, 0) for node in nodes) for name in names},
        }
        print(json.dumps(report), flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)


async def measure(seconds: float, rate: float, engine: str) -> dict[str, Any]:
    """Run the processes and put their reports together."""
    with tempfile.TemporaryDirectory(prefix="mesh") as directory:
        workers: list[asyncio.subprocess.Process] = []
        seed = ""
        try:
            for index in range(PROCESSES):
                worker = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "bench.topics", "worker", directory, str(index), seed, engine),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    limit=1 << 24,
                )
                workers.append(worker)
                assert worker.stdout is not None
                where = (await worker.stdout.readline()).decode().strip()
                seed = seed or where
                print(f"topics: process {index + 1} of {PROCESSES} is up", file=sys.stderr)
            await asyncio.sleep(START_S)
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.write(f"{seconds} {rate}\n".encode())
            began = time.monotonic()
            for worker in workers[:PUBLISHERS]:  # a paced one takes longer
                assert worker.stdout is not None
                await worker.stdout.readline()
            await asyncio.sleep(DRAIN_S)
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.write(b"report\n")
            took = time.monotonic() - began
            reports = []
            for worker in workers:
                assert worker.stdout is not None
                reports.append(json.loads(await worker.stdout.readline()))
        finally:
            for worker in workers:
                if worker.returncode is None:
                    worker.kill()
                await worker.wait()
    return {"engine": engine, "rate_asked": rate, **_together(reports, took)}


def _together(reports: list[dict[str, Any]], took: float) -> dict[str, Any]:
    sent = sum(report["sent"] for report in reports)
    expected = got = 0
    for index, report in enumerate(reports):
        for number, count in enumerate(report["counts"]):
            own = report["sent"] if number == 0 and index < PUBLISHERS else 0
            expected += sent - own
            got += count
    latencies = sorted(value for report in reports for value in report["latencies"])
    counters: dict[str, int] = {}
    for report in reports:
        for name, value in report["counters"].items():
            counters[name] = counters.get(name, 0) + value
    return {
        "subscribers": sum(len(report["counts"]) for report in reports),
        "rate_reached": round(sum(report["rate"] for report in reports), 1),
        "published": sent,
        "expected": expected,
        "missing": expected - got,
        "counted_lost": sum(report["lost"] for report in reports),
        "p50_ms": round(latencies[len(latencies) // 2] * 1000, 1),
        "p99_ms": round(latencies[int(len(latencies) * 0.99)] * 1000, 1),
        "max_ms": round(max(report["worst"] for report in reports) * 1000, 1),
        "cpu_cores": round(sum(report["cpu_s"] for report in reports) / took, 2),
        "cpu_ms_per_delivery": round(1000 * sum(report["cpu_s"] for report in reports) / max(1, got), 3),
        "links": sorted(links for report in reports for links in report["links"])[:: max(1, PROCESSES * NODES // 10)],
        "copies_per_message": round(1 + counters["topic_received_twice"] / max(1, counters["topic_received"]), 3),
        "counters": counters,
    }


def run(seconds: float = 20.0, rate: float = 200.0, engine: str = "aioquic") -> dict[str, Any]:
    """The whole bench."""
    return asyncio.run(measure(seconds, rate, engine))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        asyncio.run(_worker(Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:6]))
    else:
        print(json.dumps(run(*(float(text) for text in sys.argv[1:3]), *sys.argv[3:4]), indent=1))
