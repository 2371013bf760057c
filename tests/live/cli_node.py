"""A node in a process of its own, as a person runs it, and the commands of its home."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meshnode.quic.engines import VARIABLE
from tests import forked
from tests.forked import Forked
from tests.given_time import HANG_S, status_of
from tests.homes import make_home

Json = dict[str, Any]


def clean_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without settings of meshnode but the engine, and with ``more``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_") or name == VARIABLE}
    return kept | more


class CliNode:
    """A node on loopback, without mDNS; ``log`` is what it has written on stderr."""

    def __init__(self, home: Path, *args: str, seed: CliNode | None = None, command: str = "up") -> None:
        self.home = home
        make_home(home)
        line = ["--home", str(home), command, "--json", "--no-mdns"]
        line += ["--listen", "127.0.0.1:0", "--no-port-mapping", *args]
        if seed is not None:
            line += ["--seed", f"{seed.id}@{seed.endpoint}"]
        self.process = Forked(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment())
        assert self.process.stdout is not None
        self.ready: Json = json.loads(self.process.stdout.readline())
        self.id: str = self.ready["id"]
        self.endpoint: str = self.ready["endpoints"][0]
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.append(line)

    @property
    def log(self) -> str:
        """Everything that it has written on stderr so far."""
        return "".join(self._lines)

    def run(self, *args: str, timeout: float = HANG_S, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in this home."""
        return run(self.home, *args, timeout=timeout, **more)

    def ask(self, *args: str) -> Json:
        """Return what a command prints with ``--json``, which must succeed."""
        done = self.run(*args, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        found: Json = json.loads(done.stdout.splitlines()[0])
        return found

    def error(self, *args: str) -> Json:
        """Return the error of a command, which must fail without a traceback."""
        done = self.run(*args, "--json")
        assert done.returncode in (1, 2), done.stdout
        assert "Traceback" not in done.stderr
        found: Json = json.loads(done.stdout.splitlines()[-1])["error"]
        return found

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        self.process.kill()
        status_of(self.process, 10)
        self._end()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            status_of(self.process, 10)
        self._end()
        return self.process.returncode

    def _end(self) -> None:
        self._reader.join(5)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def run(home: Path, *args: str, timeout: float = HANG_S, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in a home, in a process of its own."""
    if args[0] == "join":
        make_home(home)
    return forked.run(["--home", str(home), *args], timeout, env=clean_environment(), **more)


@contextmanager
def stopping(*nodes: CliNode) -> Iterator[None]:
    """Stop the nodes at the end."""
    try:
        yield
    finally:
        for node in nodes:
            node.stop()
