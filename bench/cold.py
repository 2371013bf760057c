"""Cold start of a function: start of the process to the first byte echoed by a peer that its settings name.

Each run is a new process with a new key and no home; the interpreter, all imports, the handshake and the stream are in
it. Bytecode is compiled before, as pip does. Wall time is worth something on an idle machine alone; CPU seconds depend
less on other work.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SERVER = """
import asyncio, sys
from meshnode import Config, Node

async def echo(reader, writer, peer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()

async def main():
    async with Node(Config(home=sys.argv[1], listen="127.0.0.1:0", mdns=False, port_mapping=False)) as node:
        node.serve("echo", echo, allow=["any"])
        print(f"{node.id}@{node.record.endpoints[0]}", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
FUNCTION = """
import asyncio, sys, time
from meshnode import Config, Node

async def main():
    async with Node(Config.for_function(listen="127.0.0.1:0", seeds=[sys.argv[1]])) as node:
        reader, writer = await node.open(sys.argv[1].partition("@")[0], "echo")
        writer.write(b"x")
        await reader.readexactly(1)
        print(time.process_time(), flush=True)

asyncio.run(main())
"""


PYTHON = "import asyncio, time; print(time.process_time(), flush=True)"  # what every asyncio program costs


def _once(seed: str, env: dict[str, str]) -> tuple[float, float]:
    """Return seconds of wall and of CPU time until the byte is back."""
    return _timed(env, FUNCTION, seed)


def _timed(env: dict[str, str], *code: str) -> tuple[float, float]:
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", *code], stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        took = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError("the function failed")
    return took, float(line)


def run(starts: int = 21) -> dict[str, Any]:
    """Return the figures of so many starts, one after another."""
    with tempfile.TemporaryDirectory() as folder:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("MESHNODE_", "PYTHONDONT"))}
        env["PYTHONPYCACHEPREFIX"] = str(Path(folder) / "bytecode")
        command = [sys.executable, "-c", SERVER, str(Path(folder) / "server")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as server:
            assert server.stdout is not None
            seed = server.stdout.readline().strip()
            try:
                _once(seed, env)  # writes the bytecode
                found = [_once(seed, env) for _ in range(starts)]
                alone = [_timed(env, PYTHON) for _ in range(starts)]
            finally:
                server.terminate()
    wall, cpu, asyncio_wall, asyncio_cpu = ([pair[i] for pair in pairs] for pairs in (found, alone) for i in (0, 1))
    return {
        "starts": starts,
        "wall_ms": {"best": round(min(wall) * 1000), "median": round(statistics.median(wall) * 1000)},
        "cpu_ms": {"best": round(min(cpu) * 1000), "median": round(statistics.median(cpu) * 1000)},
        "asyncio_alone_ms": {"wall": round(min(asyncio_wall) * 1000), "cpu": round(min(asyncio_cpu) * 1000)},
        "load": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    print(json.dumps(run(7 if "--short" in sys.argv else 21)))
