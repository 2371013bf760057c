"""Stages of the demo: real node processes on loopback addresses, or each in a network namespace of its own.

A stage starts processes, moves them, and gives the demo its two ends of TCP: an echo server beside one node and a
client beside another. ``Loopback`` moves by ``rebind``; ``Namespaces`` takes a host's address away and gives another.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

from meshnode.daemon.client import call
from meshnode.daemon.request import build
from meshnode.demo.netns import Host, Network, missing, renumber
from meshnode.errors import MeshError

CONNECT_S = 30.0  # to a socket of the same host, which the kernel accepts
STOP_S = 3.0
NET = "10.76.0"
PREFIX = "meshdemo"
PR_SET_PDEATHSIG = 1


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


LIBC = _libc()  # loaded before any fork: between fork and exec nothing may be imported


def _die_with_parent() -> None:
    """Have a node end with the demo, also one killed with -9 (Linux: prctl(2), PR_SET_PDEATHSIG)."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Process:
    """One node process of the demo; it ends with this one."""

    def __init__(self, home: Path, address: str, args: list[str], host: Host | None = None) -> None:
        self.home, self.address, self.args, self.host = home, address, args, host
        self.id = ""
        self.endpoint = ""  # until the ready line
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the process and wait for its ready line, which gives ``id`` and ``endpoint``.

        That takes as long as it takes: on a busy machine a start is slow, and no time tells it from one that fails.
        Raises MeshError when the process ends without the line.
        """
        command = [sys.executable, "-m", "meshnode", self.args[0], "--home", str(self.home), "--json", "--no-mdns"]
        command += ["--listen", f"{self.address}:0", *self.args[1:]]
        if self.host is not None:
            command = self.host.command(*command)
        env = {k: v for k, v in os.environ.items() if not k.startswith("MESHNODE_")}
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=env,
            preexec_fn=_die_with_parent,
        )
        assert self._process.stdout is not None
        try:
            ready = json.loads(await self._process.stdout.readline())
            self.id, self.endpoint = ready["id"], ready["endpoints"][0]
        except (ValueError, KeyError, IndexError) as error:
            raise MeshError("a node of the demo did not start", hint="try `meshnode up` to see why") from error

    @property
    def pid(self) -> int:
        """Return the process id.

        Raises MeshError before the start.
        """
        if self._process is None:
            raise MeshError("this process was not started")
        return self._process.pid

    async def ask(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Send one request over the control socket and return the first answer.

        Raises MeshError as the command of the same name fails.
        """
        asked = build(method, arguments)
        results = await asyncio.to_thread(lambda: list(call(self.home, asked)))
        return results[0]

    def kill(self) -> None:
        """End the process with SIGKILL."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self) -> None:
        """End the process and wait for that.

        It gets SIGTERM, and SIGKILL when it lives after ``STOP_S``.
        """
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), STOP_S)
        except TimeoutError:
            self.kill()
            await self._process.wait()


class Stage(Protocol):
    """Protocol of the places where the demo plays."""

    title: str

    def process(self, home: Path, number: int, args: list[str]) -> Process:
        """Make the process with that number (from 0), not yet started.

        ``args`` begin with the command; ``home`` is where it keeps its files.
        """
        ...

    async def move(self, processes: list[Process]) -> None:
        """Give each another address, all at the same moment."""
        ...

    def listen(self, beside: Process) -> socket.socket:
        """Return a TCP socket that listens on the loopback address of that node's host.

        The port is a free one.
        """
        ...

    async def connect(self, beside: Process, host: str, port: int) -> socket.socket:
        """Return a TCP connection made on that node's host.

        Raises OSError when it fails, or is not made within ``CONNECT_S``.
        """
        ...


class Loopback:
    """Nodes on loopback addresses of their own; a move is a ``rebind``. Needs no rights."""

    title = "loopback addresses, moves by rebind"

    def __init__(self) -> None:
        self._place = 10

    def process(self, home: Path, number: int, args: list[str]) -> Process:
        """Make the process with that number, not yet started."""
        return Process(home, f"127.0.1.{number + 1}", args)

    async def move(self, processes: list[Process]) -> None:
        """Rebind each to an address that no process had."""
        self._place += 2
        await asyncio.gather(
            *(p.ask("rebind", address=f"127.0.2.{self._place + i}:0") for i, p in enumerate(processes))
        )

    def listen(self, beside: Process) -> socket.socket:
        """Return a listening TCP socket."""
        return socket.create_server(("127.0.0.1", 0))

    async def connect(self, beside: Process, host: str, port: int) -> socket.socket:
        """Return a TCP connection."""
        return await asyncio.to_thread(socket.create_connection, (host, port), CONNECT_S)


class Namespaces:
    """Nodes on hosts of their own on one switch; a move takes the address away and gives another."""

    title = "network namespaces, real address changes"

    def __init__(self, net: Network) -> None:
        self._net = net
        self._switch = net.switch()
        self._place = 20

    def process(self, home: Path, number: int, args: list[str]) -> Process:
        """Make a host and its process, not yet started."""
        host = self._net.host(f"n{number}", self._switch, f"{NET}.{number + 1}/24")
        return Process(home, "[::]", args, host)

    async def move(self, processes: list[Process]) -> None:
        """Renumber the hosts, all at the same moment."""
        moves = {}
        for process in processes:
            self._place = 20 + (self._place - 19) % 230
            moves[_host_of(process)] = f"{NET}.{self._place}/24"
        await asyncio.to_thread(renumber, moves)

    def listen(self, beside: Process) -> socket.socket:
        """Return a listening TCP socket in the node's namespace."""
        return _host_of(beside).inside(lambda: socket.create_server(("127.0.0.1", 0)))

    async def connect(self, beside: Process, host: str, port: int) -> socket.socket:
        """Return a TCP connection made in the node's namespace."""
        make = _host_of(beside).inside
        return await asyncio.to_thread(make, lambda: socket.create_connection((host, port), CONNECT_S))


def _host_of(process: Process) -> Host:
    assert process.host is not None
    return process.host


@contextlib.asynccontextmanager
async def open_stage(*, netns: bool) -> AsyncIterator[Stage]:
    """Set the stage and clear it away, however the block ends.

    Raises MeshError where namespaces cannot be had.
    """
    if not netns:
        yield Loopback()
        return
    reason = missing()
    if reason is not None:
        hint = "install iproute2" if "install" in reason else "run it as root, or leave --netns out"
        raise MeshError(f"--netns cannot be had here: {reason}", hint=hint)
    try:
        with Network(PREFIX) as net:
            yield Namespaces(net)
    except RuntimeError as error:  # what `ip` complained of
        raise MeshError(str(error), hint="the demo without --netns needs none of this") from error
