"""The demo: a mesh of eight real processes, and a TCP connection that lives through every kind of move."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from meshnode.cli.options import json_option
from meshnode.daemon.client import call
from meshnode.errors import MeshError

PEERS = 7
INTERVAL_S = 0.01
SETTLE_S = 0.7
READY_S = 30.0
MOVES = ("dialler", "listener", "both")
Say = Callable[[str], None]


@dataclass
class Echo:
    """A 100 Hz counter through a TCP connection: every number must come back, once and in order."""

    sent: int = 0
    received: int = 0
    disordered: int = 0
    last: float = field(default_factory=time.perf_counter)
    gap: float = 0.0
    over: str = ""

    async def write(self, writer: asyncio.StreamWriter) -> None:
        """Send the next number every 10 ms, whether or not the last one is back."""
        due = time.perf_counter()
        while True:
            writer.write(self.sent.to_bytes(8, "big"))
            await writer.drain()
            self.sent += 1
            due += INTERVAL_S
            await asyncio.sleep(max(0.0, due - time.perf_counter()))

    async def read(self, reader: asyncio.StreamReader) -> None:
        """Check what comes back and keep the longest silence."""
        try:
            while True:
                number = int.from_bytes(await reader.readexactly(8), "big")
                now = time.perf_counter()
                self.gap = max(self.gap, now - self.last)
                self.last = now
                self.disordered += number != self.received
                self.received += 1
        except (asyncio.IncompleteReadError, OSError) as error:
            self.over = repr(error)

    async def settle(self, deadline: float = 10.0) -> int:
        """Wait until what was sent by now is back; returns how many numbers are missing after ``deadline``."""
        goal, until = self.sent, time.perf_counter() + deadline
        while self.received < goal and time.perf_counter() < until and not self.over:
            await asyncio.sleep(INTERVAL_S)
        return max(0, goal - self.received)


class Process:
    """One node process of the demo."""

    def __init__(self, home: Path, address: str, args: list[str]) -> None:
        self.home, self.address, self.args = home, address, args
        self.id = ""
        self.endpoint = ""
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start and wait for the ready line. Raises MeshError."""
        command = [sys.executable, "-m", "meshnode", self.args[0], "--home", str(self.home), "--json", "--no-mdns"]
        command += ["--listen", f"{self.address}:0", *self.args[1:]]
        env = {k: v for k, v in os.environ.items() if not k.startswith("MESHNODE_")}
        self._process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=env
        )
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), READY_S)
            ready = json.loads(line)
            self.id, self.endpoint = ready["id"], ready["endpoints"][0]
        except (TimeoutError, ValueError, KeyError, IndexError) as error:
            raise MeshError("a node of the demo did not start", hint="try `meshnode up` to see why") from error

    async def ask(self, method: str, **arguments: Any) -> dict[str, Any]:
        """One request over the control socket, as the command line does it."""
        results = await asyncio.to_thread(lambda: list(call(self.home, method, **arguments)))
        return results[0]

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self) -> None:
        """End the process, politely first."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), 3)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


async def _serve_echo() -> tuple[asyncio.Server, int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # the demo is over
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def run_demo(rounds: int, say: Say) -> dict[str, Any]:
    """Run the whole demo; returns ``{"nodes", "moves": [{"who", "gap_ms", "lost"}]}``. Raises MeshError."""
    with tempfile.TemporaryDirectory(prefix="mesh") as directory:
        root = Path(directory)
        processes: list[Process] = []
        tasks: list[asyncio.Task[None]] = []
        server, port = await _serve_echo()
        try:
            return await _mesh(root, processes, tasks, port, rounds, say)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            server.close()
            await asyncio.gather(*(p.stop() for p in processes))


async def _mesh(
    root: Path, processes: list[Process], tasks: list[asyncio.Task[None]], port: int, rounds: int, say: Say
) -> dict[str, Any]:
    seed = Process(root / "seed", "127.0.1.1", ["seed"])
    processes.append(seed)
    await seed.start()
    peers = [
        Process(root / f"n{i}", f"127.0.1.{i + 2}", ["up", "--seed", f"{seed.id}@{seed.endpoint}"])
        for i in range(PEERS)
    ]
    processes.extend(peers)
    await asyncio.gather(*(p.start() for p in peers))
    say(f"{len(processes)} nodes are up; each knows only the seed")
    for here, there in zip(peers, peers[1:] + peers[:1], strict=True):
        echo = await here.ask("ping", id=there.id, count=1)
        say(f"{here.id[:8]} pings {there.id[:8]} by its key: {echo['rtt_ms']} ms")
    dialler, listener = peers[0], peers[1]
    await listener.ask("expose", name="echo", target=f"tcp://127.0.0.1:{port}", allow=[dialler.id])
    forward = await dialler.ask("forward", listen="127.0.0.1:0", to=f"{listener.id}/echo")
    host, _, tcp_port = forward["listen"].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(tcp_port))
    stats = Echo()
    tasks += [asyncio.create_task(stats.write(writer)), asyncio.create_task(stats.read(reader))]
    await asyncio.sleep(SETTLE_S)
    say("a TCP connection through the mesh counts at 100 Hz; now its ends move")
    moves: list[dict[str, Any]] = []
    place = 10
    for number in range(rounds):
        if number == 1:
            seed.kill()
            say("the seed is killed (-9); nothing depends on it any more")
        for who in MOVES:
            place += 2
            await stats.settle()
            stats.gap, before = 0.0, stats.disordered
            movers = [p for p, name in ((dialler, "dialler"), (listener, "listener")) if who in (name, "both")]
            await asyncio.gather(*(p.ask("rebind", address=f"127.0.2.{place + i}:0") for i, p in enumerate(movers)))
            await asyncio.sleep(SETTLE_S)
            lost = await stats.settle() + stats.disordered - before
            moves.append({"who": who, "gap_ms": round(stats.gap * 1000, 1), "lost": lost})
            say(f"{who} moved: longest silence {moves[-1]['gap_ms']} ms, {lost} lost")
            if stats.over:
                raise MeshError(f"the connection ended: {stats.over}", hint="this is a defect; please report it")
    writer.close()
    return {"nodes": len(processes), "moves": moves}


def _table(result: dict[str, Any]) -> str:
    lines = ["", "  who moved    runs   gap median    worst   lost"]
    for who in MOVES:
        found = sorted(m["gap_ms"] for m in result["moves"] if m["who"] == who)
        lost = sum(m["lost"] for m in result["moves"] if m["who"] == who)
        lines.append(f"  {who:10} {len(found):6} {found[len(found) // 2]:9.1f} ms {found[-1]:6.1f} ms {lost:5}")
    return "\n".join(lines)


def _rich_table(result: dict[str, Any]) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return False
    table = Table(title="One TCP connection, both ends moving")
    for name in ("who moved", "runs", "gap, median", "gap, worst", "lost"):
        table.add_column(name, justify="left" if name == "who moved" else "right")
    for who in MOVES:
        found = sorted(m["gap_ms"] for m in result["moves"] if m["who"] == who)
        lost = sum(m["lost"] for m in result["moves"] if m["who"] == who)
        table.add_row(who, str(len(found)), f"{found[len(found) // 2]:.1f} ms", f"{found[-1]:.1f} ms", str(lost))
    Console().print(table)
    return True


@click.command("demo")
@click.option("--rounds", default=4, show_default=True, type=click.IntRange(1, 50), help="Times each kind of move.")
@json_option
def demo_command(rounds: int, as_json: bool) -> int:
    """Start eight nodes on loopback addresses and move both ends of a live TCP connection.

    \b
    Example: meshnode demo --json
    """
    started = time.perf_counter()

    def say(text: str) -> None:
        click.echo(f"{time.perf_counter() - started:5.1f} s  {text}", err=as_json)

    result = asyncio.run(run_demo(rounds, say))
    if as_json:
        click.echo(json.dumps(result))
    elif not (sys.stdout.isatty() and _rich_table(result)):
        click.echo(_table(result))
    return 1 if any(move["lost"] for move in result["moves"]) else 0
