"""A peer's program as the bench sees it: orders go in, answers come out, and it may die or say nothing at any time."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

WAIT_S = 60.0


class PeerFailedError(Exception):
    """The peer did not do as it was told; the text says why."""


class Program:
    """One process of a peer's. Raises PeerFailedError where it does not answer."""

    def __init__(self, command: list[str], env: dict[str, str], cwd: Path) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with it
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1].strip() if lines else "it says nothing"

    def line(self, patience: float = WAIT_S) -> dict[str, Any]:
        """Return the next answer."""
        try:
            text = self._lines.get(timeout=patience)
        except queue.Empty:
            raise PeerFailedError(f"no answer in {patience:g} s") from None
        if not text:
            raise PeerFailedError(f"it ended: {self._last_words()}")
        try:
            found: dict[str, Any] = json.loads(text)
        except ValueError:
            raise PeerFailedError(f"it printed {text[:60]!r}") from None
        for key in ("missing", "error"):
            if found.get(key) and "gap_ms" not in found:
                raise PeerFailedError(str(found[key]))
        return found

    def ask(self, do: str, patience: float = WAIT_S, **order: Any) -> dict[str, Any]:
        """Give an order and return the answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended: what it said before tells why
            self._process.stdin.write(json.dumps({"do": do, **order}) + "\n")
            self._process.stdin.flush()
        return self.line(patience)

    def close(self) -> None:
        """End it, with what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._log.close()


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process in MB (10^6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0
