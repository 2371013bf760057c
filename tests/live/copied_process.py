"""Nodes and commands for asyncio, as copies of a process that has loaded everything (``tests/forked.py``)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from meshnode.demo import stage
from tests.forked import Forked
from tests.given_time import output_of
from tests.homes import make_home

ENV = {name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")}


async def command(home: Path, *args: str, stdin: bytes = b"", seconds: float = 30.0) -> tuple[int, bytes, bytes]:
    """Run a command of a home to its end, in so much given time; return its exit code, output and errors."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)

    def run() -> tuple[int, bytes, bytes]:
        with Forked(["--home", str(home), *args], env=ENV, **pipes) as process:
            try:
                out, err = output_of(process, seconds, stdin)
            except BaseException:
                process.kill()
                raise
        return process.returncode, out, err

    return await asyncio.to_thread(run)


class Awaited:
    """What the demo uses of ``asyncio.subprocess.Process``, of a copy."""

    def __init__(self, process: Forked) -> None:
        self._process = process
        self.pid = process.pid
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(process.told, self._end)

    def _end(self) -> None:
        self._loop.remove_reader(self._process.told)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._ended.set_result(self._process.wait())

    @property
    def returncode(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._ended.result() if self._ended.done() else None

    def send_signal(self, number: int) -> None:
        """Send it a signal; it may have ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for its end, and return the exit code."""
        return await asyncio.shield(self._ended)


class Process(stage.Process):
    """A node process; it starts in a seventh of the CPU time."""

    async def start(self) -> None:
        """Start it and wait for its ready line."""
        make_home(self.home)
        line = [self.args[0], "--home", str(self.home), "--json", "--no-mdns", "--listen", f"{self.address}:0"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        started = await asyncio.to_thread(Forked, [*line, *self.args[1:]], env=ENV, text=True, **pipes)
        awaited: Any = Awaited(started)
        self._process = awaited
        assert started.stdout is not None
        ready = json.loads(await asyncio.to_thread(started.stdout.readline))
        self.id, self.endpoint = ready["id"], ready["endpoints"][0]
