"""One process for each connection of a Unix socket: a server that speaks on stdin and stdout, many times over."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from meshnode.base.files import short_folder
from meshnode.cli.output import say

CALLER = "MESH_CALLER_ID"  # the variable by which a program learns which node calls
MAX_LINE = 64  # bytes of the line that says it
GRACE_S = 5.0  # how long a program may take to end once its connection is gone, and again after SIGTERM


class Sessions:
    """Listens in a folder that only this user may enter, until it is closed."""

    def __init__(
        self, command: Sequence[str], on_failure: Callable[[str], None] = lambda text: say(text, err=True)
    ) -> None:
        self._command = list(command)
        self._on_failure = on_failure
        self._folder = tempfile.TemporaryDirectory(prefix="meshnode-", dir=short_folder())
        self.path = str(Path(self._folder.name) / "stdio")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._running: set[subprocess.Popen[Any]] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Sessions:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        """End every program, and remove the folder."""
        self._listener.close()
        with self._lock:
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            _end(process)
        self._folder.cleanup()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # it was closed
            threading.Thread(target=self._session, args=(connection,), daemon=True).start()

    def _session(self, connection: socket.socket) -> None:
        with connection:
            caller = _first_line(connection)
            if not caller:
                return
            environment = os.environ | {CALLER: caller}
            try:
                both = connection.fileno()
                process = subprocess.Popen(self._command, stdin=both, stdout=both, env=environment)
            except OSError as error:
                self._on_failure(f"error: cannot run {self._command[0]}: {(error.strerror or str(error)).lower()}")
                return
            with self._lock:
                self._running.add(process)
            watching = threading.Thread(target=_end_when_gone, args=(connection, process), daemon=True)
            watching.start()
            process.wait()
            with self._lock:
                self._running.discard(process)
            connection.shutdown(socket.SHUT_RDWR)
            watching.join()


def _first_line(connection: socket.socket) -> str:
    """Read the caller's id, and not one byte of what follows."""
    line = b""
    connection.settimeout(GRACE_S)
    try:
        while not line.endswith(b"\n") and len(line) < MAX_LINE and (byte := connection.recv(1)):
            line += byte
    except OSError:
        return ""
    connection.settimeout(None)
    return line[:-1].decode("ascii", "replace") if line.endswith(b"\n") else ""


def _end_when_gone(connection: socket.socket, process: subprocess.Popen[Any]) -> None:
    """Wait until nothing is at the other end of a connection, and end the program if it does not notice."""
    gone = select.poll()
    gone.register(connection, 0)  # POLLHUP and POLLERR are told always
    gone.poll()
    _end(process)


def _end(process: subprocess.Popen[Any]) -> None:
    for stop in (process.terminate, process.kill):
        try:
            process.wait(GRACE_S)
            return
        except subprocess.TimeoutExpired:
            stop()
    process.wait()
