"""The control socket's client: plain, synchronous and cheap to import. One JSON object a line."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

from meshnode.base.refusals import refusal
from meshnode.daemon.paths import socket_path, why_open
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
    if (unsafe := why_open(path)) is not None:
        raise NotRunning(unsafe[0], hint=unsafe[1])
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            connection.connect(str(path))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            raise NotRunning(f"no node runs in {home}", hint=f"start one: meshnode --home {home} up") from error
        except PermissionError as error:
            reason, hint = refusal(error, path)
            raise NotRunning(f"cannot ask the node in {home}: {reason}", hint=hint) from error
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
        gone = "the node has stopped" if answered else "the node stopped before it answered"
        raise NotRunning(gone, hint="its own output says why; `meshnode up` starts it again")
    finally:
        connection.close()
