"""The demo: a mesh of eight real processes, and a TCP connection that lives through every kind of move."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshnode.demo.show import ENDS, Move, Show
from meshnode.demo.stage import PREFIX, Process, Stage, open_stage
from meshnode.errors import MeshError

PEERS = 7
INTERVAL_S = 0.01
SETTLE_S = 0.7
SILENT_S = 10.0  # of a connection on which numbers are missing: a busy machine is slow, but it goes on
SLOW_S = 10.0  # of a start, between lines that say how far it is


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
        """Send the next number every 10 ms, whether or not the last one is back, until cancelled.

        A send that blocks delays the following ones, which then come at once until the count has caught up.
        """
        due = time.perf_counter()
        while True:
            writer.write(self.sent.to_bytes(8, "big"))
            await writer.drain()
            self.sent += 1
            due += INTERVAL_S
            await asyncio.sleep(max(0.0, due - time.perf_counter()))

    async def read(self, reader: asyncio.StreamReader) -> None:
        """Check what comes back and keep the longest silence, until the connection ends.

        ``over`` says then why; nothing is raised.
        """
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

    async def settle(self) -> int:
        """Wait until what was sent by now is back; returns how many numbers are missing then.

        It waits while numbers come, however slowly, ``SILENT_S`` for the next one, and no longer than the connection
        lives.
        """
        goal, began = self.sent, time.perf_counter()
        while self.received < goal and time.perf_counter() - max(began, self.last) < SILENT_S and not self.over:
            await asyncio.sleep(INTERVAL_S)
        return max(0, goal - self.received)

    def now(self) -> tuple[int, float]:
        """Return how many numbers are back, and the seconds since the last one."""
        return self.received, time.perf_counter() - self.last


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # the demo is over
    finally:
        writer.close()


async def run_demo(rounds: int, show: Show, *, netns: bool = False) -> list[Move]:
    """Run the whole demo with ``rounds`` moves of each kind; the mesh has ``PEERS + 1`` nodes.

    The seed is killed after the first round. Processes and files are removed however it ends. Raises MeshError when a
    node does not start, a namespace cannot be made, or the connection ends.
    """
    processes: list[Process] = []
    tasks: list[asyncio.Task[None]] = []
    servers: list[asyncio.Server] = []
    _remove_orphans()
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}-{os.getpid()}-") as directory:
        async with open_stage(netns=netns) as stage:
            try:
                peers = await _mesh(stage, Path(directory), processes, show)
                stats = await _connect(stage, peers[0], peers[1], tasks, servers, show)
                return await _moves(stage, stats, processes, rounds, show)
            finally:
                show.counting(None)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                for server in servers:
                    server.close()
                await asyncio.gather(*(p.stop() for p in processes))


def _remove_orphans() -> None:
    """Remove the homes of demos that were killed with -9."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*-*"):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not _lives(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # of another user
    return True


async def _mesh(stage: Stage, root: Path, processes: list[Process], show: Show) -> list[Process]:
    """Start a seed and the peers that know only the seed; each pings the next by its key."""
    show.say(f"starting {PEERS + 1} processes: {stage.title}")
    seed = stage.process(root / "seed", 0, ["seed"])
    processes.append(seed)
    await _start([seed], show)
    join = ["up", "--seed", f"{seed.id}@{seed.endpoint}"]
    peers = [stage.process(root / f"n{number}", number, join) for number in range(1, PEERS + 1)]
    processes.extend(peers)
    await _start(peers, show)
    show.say(f"{len(processes)} nodes are up; each knows only the seed")
    for here, there in zip(peers, peers[1:] + peers[:1], strict=True):
        echo = await here.ask("ping", id=there.id, count=1)
        show.say(f"{here.id[:8]} pings {there.id[:8]} by its key: {echo['rtt_ms']} ms")
    return peers


async def _start(processes: list[Process], show: Show) -> None:
    """Start them and wait until all are ready; says now and then how many are, for a busy machine takes long."""

    async def tell() -> None:
        while True:
            await asyncio.sleep(SLOW_S)
            ready = sum(bool(process.endpoint) for process in processes)
            show.say(f"{ready} of {len(processes)} have started; a busy machine takes longer")

    telling = asyncio.create_task(tell())
    try:
        await asyncio.gather(*(process.start() for process in processes))
    finally:
        telling.cancel()


async def _connect(
    stage: Stage,
    dialler: Process,
    listener: Process,
    tasks: list[asyncio.Task[None]],
    servers: list[asyncio.Server],
    show: Show,
) -> Echo:
    """Expose an echo at the listener, forward it to the dialler, and count through a connection to it."""
    server = await asyncio.start_server(_echo, sock=stage.listen(listener))
    servers.append(server)
    port = server.sockets[0].getsockname()[1]
    await listener.ask("expose", name="echo", target=f"tcp://127.0.0.1:{port}", allow=[dialler.id])
    forward = await dialler.ask("forward", listen="127.0.0.1:0", to=f"{listener.id}/echo")
    host, _, tcp_port = forward["listen"].rpartition(":")
    reader, writer = await asyncio.open_connection(sock=await stage.connect(dialler, host, int(tcp_port)))
    stats = Echo()
    tasks += [asyncio.create_task(stats.write(writer)), asyncio.create_task(stats.read(reader))]
    show.say("a TCP connection through the mesh counts at 100 Hz; now its ends move")
    show.counting(stats.now)
    await asyncio.sleep(SETTLE_S)
    return stats


async def _moves(stage: Stage, stats: Echo, processes: list[Process], rounds: int, show: Show) -> list[Move]:
    """Move the ends, ``rounds`` times each way; the seed is killed after the first round."""
    seed, dialler, listener = processes[:3]
    moves: list[Move] = []
    for number in range(rounds):
        if number == 1:
            seed.kill()
            show.say("the seed is killed (-9); nothing depends on it any more")
        for end in ENDS:
            await stats.settle()
            stats.gap, before = 0.0, stats.disordered
            show.moving(end)
            await stage.move([p for p, name in ((dialler, "dialler"), (listener, "listener")) if end in (name, "both")])
            await asyncio.sleep(SETTLE_S)
            lost = await stats.settle() + stats.disordered - before
            moves.append(Move(end, round(stats.gap * 1000, 1), lost))
            show.moved(moves[-1])
            if stats.over:
                raise MeshError(f"the connection ended: {stats.over}", hint="this is a defect; please report it")
    return moves


def to_json(moves: list[Move]) -> dict[str, Any]:
    """Return ``{"nodes", "moves": [{"who", "gap_ms", "lost"}]}``."""  # public keys; words: ok
    return {
        "nodes": PEERS + 1,
        "moves": [{"who": move.end, "gap_ms": move.gap_ms, "lost": move.lost} for move in moves],  # words: ok
    }


def play(rounds: int, show: Show, netns: bool) -> list[Move]:
    """Run the demo so that SIGTERM and SIGHUP clear up as Ctrl-C does.

    Blocks until the end. Raises MeshError, or KeyboardInterrupt after a signal.
    """
    try:
        return asyncio.run(_play(rounds, show, netns))
    except asyncio.CancelledError as error:
        raise KeyboardInterrupt from error


async def _play(rounds: int, show: Show, netns: bool) -> list[Move]:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        with suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await run_demo(rounds, show, netns=netns)
