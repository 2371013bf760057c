"""How long a client that calls a service 100 times a second hears nothing when the instance in use is killed (-9).

Three instances of one service, each a process with its own TCP server behind ``expose``, and a client that calls by the
service's name alone: ``open``, a stream for each call through the SDK; ``stream``, one stream for all calls, opened
again when it ends; ``forward``, one TCP connection through ``forward LISTEN NAME``, likewise.

``python -m bench.services [RUNS]`` prints JSON; the targets are 1,000 ms for the worst and 300 ms for the median.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from meshnode import Config, Node
from meshnode.demo.play import Process
from meshnode.errors import MeshError

INTERVAL_S = 0.01
CALL_TIMEOUT_S = 5.0
HOWS = ("open", "stream", "forward")
SERVER = """
import asyncio, sys
async def main(name):
    async def handle(reader, writer):
        try:
            while data := await reader.readline():
                writer.write(name.encode() + b"\\n")
        except ConnectionError:
            pass
        writer.close()
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main(sys.argv[1]))
"""


class Instances:
    """A seed, and some processes that offer the service ``db``; each answers with its own number."""

    def __init__(self, root: Path, count: int) -> None:
        self.root = root
        self.seed = Process(root / "seed", "127.0.6.1", ["seed"])
        self.count = count
        self.nodes: list[Process] = []
        self.ports: list[int] = []
        self._servers: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> Instances:
        await self.seed.start()
        for number in range(self.count):
            server = await asyncio.create_subprocess_exec(
                sys.executable, "-c", SERVER, str(number), stdout=asyncio.subprocess.PIPE
            )
            assert server.stdout is not None
            self._servers.append(server)
            self.ports.append(int(await server.stdout.readline()))
            self.nodes.append(self._process(number, 0))
        await asyncio.gather(*(self._begin(number) for number in range(self.count)))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.gather(self.seed.stop(), *(node.stop() for node in self.nodes))
        for server in self._servers:
            server.kill()
            await server.wait()

    def _process(self, number: int, run: int) -> Process:
        where = f"127.0.6.{10 + number + 10 * (run % 20)}"
        return Process(self.root / f"i{number}", where, ["up", "--seed", f"{self.seed.id}@{self.seed.endpoint}"])

    async def _begin(self, number: int) -> None:
        node = self.nodes[number]
        await node.start()
        await node.ask("expose", name="db", target=f"tcp://127.0.0.1:{self.ports[number]}", allow=["any"])

    async def kill(self, number: int) -> int:
        """kill -9 of one instance's node; its TCP server lives, but cannot be reached."""
        self.nodes[number].kill()
        return number

    async def restart(self, number: int, run: int) -> None:
        """Start a killed instance again."""
        await self.nodes[number].stop()
        self.nodes[number] = self._process(number, run)
        await self.nodes[number].start()


class Calls:
    """A client in this process. ``last_served`` is the instance that answered last."""

    def __init__(self, mesh: Instances, how: str) -> None:
        self._mesh = mesh
        self._how = how
        self._node = Node(
            Config(
                home=mesh.root / f"client-{how}",
                listen="127.0.6.200:0",
                mdns=False,
                seeds=(f"{mesh.seed.id}@{mesh.seed.endpoint}",),
            )
        )
        self._streams: tuple[Any, Any] | None = None
        self._where = ("", 0)
        self._forward: Any = None
        self.last_served = -1
        self.answered = 0
        self.errors = 0
        self.longest_silence = 0.0
        self.served_recently: dict[int, None] = {}

    async def __aenter__(self) -> Calls:
        from meshnode.services.forward import Forward

        await self._node.start()
        async with asyncio.timeout(20):
            while len(await self._node.find("db")) < self._mesh.count:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        self._forward = Forward(self._node, "127.0.0.1:0", None, "db", trusted=("any",))
        host, _, port = (await self._forward.start()).rpartition(":")
        self._where = host, int(port)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._forward.close()
        await self._node.close()

    async def wait_for(self, count: int) -> None:
        """Wait until so many instances are believed to be well."""
        async with asyncio.timeout(60):
            while sum(i.state == "up" for i in await self._node.find("db")) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def run(self, seconds: float) -> None:
        """Call for that time; afterwards ``longest_silence`` is of this time."""
        self.longest_silence = 0.0
        end = time.perf_counter() + seconds
        last = due = time.perf_counter()
        while time.perf_counter() < end:
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    self.last_served = await self._call()
                now = time.perf_counter()
                self.longest_silence = max(self.longest_silence, now - last)
                last = now
                self.answered += 1
                self.served_recently.pop(self.last_served, None)
                self.served_recently[self.last_served] = None
                while len(self.served_recently) > 1 and seconds > 2 and end - now < seconds - 2:
                    self.served_recently.pop(next(iter(self.served_recently)))
            except (MeshError, OSError, TimeoutError, asyncio.IncompleteReadError):
                self.errors += 1
                self._drop()
            due = max(due + INTERVAL_S, time.perf_counter() - INTERVAL_S)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        self.longest_silence = max(self.longest_silence, time.perf_counter() - last)

    def _drop(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _call(self) -> int:
        if self._streams is None:
            if self._how == "forward":
                self._streams = await asyncio.open_connection(*self._where)
            else:
                self._streams = await self._node.open_any("db", trusted="any")
        reader, writer = self._streams
        writer.write(b"?\n")
        await writer.drain()
        line = await reader.readline()
        if not line:
            raise ConnectionResetError("ended")
        if self._how == "open":
            self._drop()
        return int(line)


async def _measure(how: str, runs: int) -> list[float]:
    gaps = []
    with tempfile.TemporaryDirectory(prefix="mesh") as directory:
        async with Instances(Path(directory), 3) as mesh, Calls(mesh, how) as calls:
            for run in range(1, runs + 1):
                await calls.wait_for(3)
                await calls.run(1.0)
                victim = await mesh.kill(calls.last_served)
                await calls.run(2.0)
                gaps.append(calls.longest_silence * 1000)
                if run < runs:
                    await mesh.restart(victim, run)
    return gaps


def run(runs: int = 10) -> dict[str, Any]:
    """Silences in ms, for each way to call."""
    found = {}
    for how in HOWS:
        gaps = sorted(asyncio.run(_measure(how, runs)))
        found[how] = {"p50_ms": round(gaps[len(gaps) // 2], 1), "max_ms": round(gaps[-1], 1), "all_ms": gaps}
    return found


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else 10), indent=1))
