"""The control socket's client: plain, synchronous and cheap to import. One JSON object a line."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

from meshnode.daemon.paths import is_private, socket_path
from meshnode.daemon.request import Json, Request, encode
from meshnode.errors import MeshError, NotRunning


class RemoteError(MeshError):
    """An error that the running node reported; it keeps that error's code."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.code = code


def call(home: Path, asked: Request) -> Iterator[Json]:
    """Ask the node of ``home`` and yield its answers. Raises NotRunning, RemoteError."""
    path = socket_path(home)
    if not is_private(path):
        raise NotRunning(f"the node in {home} belongs to another user", hint="use your own --home")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            connection.connect(str(path))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            raise NotRunning(f"no node runs in {home}", hint=f"start one: meshnode --home {home} up") from error
        except PermissionError as error:
            raise NotRunning(f"the node in {home} belongs to another user", hint="use your own --home") from error
        connection.sendall(encode(asked))
        answered = False
        with connection.makefile("rb") as lines:
            for line in lines:
                answer = json.loads(line)
                if "error" in answer:
                    error_ = answer["error"]
                    raise RemoteError(error_["code"], error_["message"], error_["hint"])
                if answer.get("end"):
                    return
                answered = True
                yield answer["result"]
        gone = "the node has stopped" if answered else "the node went away before it answered"
        raise NotRunning(gone, hint="see its own output for the reason")
    finally:
        connection.close()
