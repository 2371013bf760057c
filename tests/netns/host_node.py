"""``meshnode up`` in a namespace, asked by its commands."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import forked
from tests.homes import make_home
from tests.netns.lab import Host

PATIENCE_S = 40.0


class HostNode:
    """A node in a home of its own; ``env`` and ``options`` are those of its process alone."""

    def __init__(self, host: Host, *options: str, home: Path | None = None, env: dict[str, str] | None = None) -> None:
        self.host = host
        self.home = home or host.lab.scratch / f"{host.label}.home"
        make_home(self.home)
        self._options = options
        self._env = env or {}
        self.start()

    def start(self) -> None:
        """Start it, or start it again in the same home."""
        command = [sys.executable, "-m", "meshnode", "up", "--json", "--home", str(self.home), *self._options]
        self.program = self.host.start(*command, env=self._env)
        self.id: str = self.program.line(PATIENCE_S)["id"]

    def call(self, *command: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run one command of this home to its end; the control socket is a file, so from any namespace."""
        return forked.run([*command, "--home", str(self.home), "--json"], timeout)

    def ask(self, *command: str, timeout: float = 60.0) -> dict[str, Any]:
        """Return the last line of a command's answer; raises RuntimeError with what it complained of."""
        done = self.call(*command, timeout=timeout)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def echo(self, other: HostNode, within: float = PATIENCE_S) -> dict[str, Any]:
        """Return the first echo of another node that comes back."""

        def ping() -> dict[str, Any] | None:
            answer = self.ask("ping", other.id, "-c", "1")
            return answer if answer.get("rtt_ms") is not None else None

        return wait(ping, within)

    def said(self) -> str:
        """Return what it has written to standard error since its last start."""
        return self.program._stderr.read_text()


def wait(probe: Callable[[], Any], within: float = PATIENCE_S) -> Any:
    """Return the first true result of ``probe``, which may raise RuntimeError until then; raises it at the end."""
    until = time.monotonic() + within
    while True:
        try:
            if found := probe():
                return found
            failed: Exception = AssertionError(f"nothing came of it in {within:g} s")
        except RuntimeError as error:
            failed = error
        if time.monotonic() > until:
            raise failed
        time.sleep(0.05)
