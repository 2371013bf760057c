"""Import time, start to ready, and what an idle node costs in memory and CPU (DHT and mDNS on)."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def _import_s() -> float:
    code = "import time; t = time.perf_counter(); import meshnode; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def _start(home: Path, *flags: str) -> tuple[subprocess.Popen[str], float, dict[str, Any]]:
    started = time.perf_counter()
    command = [sys.executable, "-m", "meshnode", "up", "--home", str(home), "--json", "--listen", "127.0.0.1:0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    return process, time.perf_counter() - started, ready


def _rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Work:
    """How much is done: starts to time, connected peers, and seconds of idling to count."""

    starts: int = 7
    peers: int = 20
    window: float = 30.0
    settle: float = 5.0


SHORT = Work(3, 5, 10.0)


def run(work: Work = Work()) -> dict[str, Any]:
    """Return the figures; memory and the CPU share are an idle node's, with DHT and mDNS, the latter with its peers."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        starts: tuple[list[float], list[float]] = [], []  # with a new key to make, and with one that is there
        for number in range(work.starts):
            for times in starts:
                process, seconds, _ = _start(home / f"s{number}")
                times.append(seconds)
                process.terminate()
                process.wait()
        node, _, ready = _start(home / "node")
        others = []
        try:
            time.sleep(work.settle)
            rss = _rss_mb(node.pid)
            seed = f"{ready['id']}@{ready['endpoints'][0]}"
            for number in range(work.peers):
                others.append(_start(home / f"p{number}", "--seed", seed, "--no-mdns")[0])
                ping = [
                    sys.executable,
                    "-m",
                    "meshnode",
                    "ping",
                    ready["id"],
                    "-c",
                    "1",
                    "--home",
                    str(home / f"p{number}"),
                ]
                subprocess.run(ping, check=True, capture_output=True)
            time.sleep(work.settle)
            before = _cpu_s(node.pid)
            time.sleep(work.window)
            cpu = (_cpu_s(node.pid) - before) / work.window * 100
        finally:
            for process in [node, *others]:
                process.terminate()
            for process in [node, *others]:
                process.wait()
    return {
        "import_s": round(statistics.median(_import_s() for _ in range(5)), 4),
        "first_start_s": round(statistics.median(starts[0]), 3),
        "start_to_ready_s": round(statistics.median(starts[1]), 3),
        "idle_rss_MB": round(rss, 1),
        "idle_cpu_percent": round(cpu, 2),
        "peers": work.peers,
    }


if __name__ == "__main__":
    print(json.dumps(run(SHORT if "--short" in sys.argv else Work())))
