"""The control socket's client: plain, synchronous and cheap to import. One JSON object a line."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from meshnode.base.files import why_unsafe
from meshnode.base.refusals import as_user, in_shell, refusal, user_name
from meshnode.daemon.paths import socket_path, stand_in
from meshnode.daemon.request import Json, Request, encode
from meshnode.errors import MeshError, NotRunning

UCRED = struct.Struct("iII")  # unix(7): process, user, group

STOPPED_HINT = "its own output says why; `meshnode up` starts it again"


class RemoteError(MeshError):
    """An error that the running node reported; it keeps that error's code."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.code = code


def _check_owner(connection: socket.socket, home: Path) -> None:
    """Ask the kernel whose process listens: in a volume that others may write in they can put a socket. Raises."""
    if hasattr(socket, "SO_PEERCRED"):
        user = UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))[1]
        if user not in (0, os.geteuid()):
            raise NotRunning(f"the node in {home} is one of user {user_name(user)}", hint=as_user(user, home))


def call(home: Path, asked: Request, timeout: float | None = None) -> Iterator[Json]:
    """Ask the node of ``home`` and yield its answers; each may take ``timeout`` seconds.

    Raises NotRunning, also when no answer comes in time, and RemoteError.
    """
    answered = False
    try:
        with _connected(home, asked, timeout) as (_, lines):
            for line in lines:
                if not line.endswith(b"\n"):
                    break  # it was killed while it wrote
                answer = json.loads(line)
                if answer.get("end"):
                    return
                yield _result(answer)
                answered = True
    except TimeoutError as error:
        raise _silent(home) from error
    except (ConnectionResetError, BrokenPipeError):
        pass  # it was killed
    gone = "the node has stopped" if answered else "the node stopped before it answered"
    raise NotRunning(gone, hint=STOPPED_HINT)


def hold(home: Path, asked: Request, timeout: float | None = None) -> tuple[socket.socket, Json]:
    """Ask the node of ``home`` for what it does as long as the connection is open; return that, and its first answer.

    Raises as ``call``.
    """
    connection = connect(home, timeout)
    try:
        with connection.makefile("rb") as lines:
            connection.sendall(encode(asked))
            line = lines.readline()
        if not line.endswith(b"\n"):
            raise NotRunning("the node stopped before it answered", hint=STOPPED_HINT)
        return connection, _result(json.loads(line))
    except BaseException as error:
        connection.close()
        if isinstance(error, TimeoutError):
            raise _silent(home) from error
        if isinstance(error, ConnectionError) and not isinstance(error, MeshError):
            raise NotRunning("the node stopped before it answered", hint=STOPPED_HINT) from error
        raise


@contextmanager
def open_stream(home: Path, asked: Request) -> Iterator[tuple[socket.socket, BinaryIO]]:
    """Ask the node of ``home`` for a stream; once the service has accepted, give the socket, and what is read from it.

    From then on both sides speak frames (``daemon/frames.py``). Raises NotRunning, and RemoteError with what the
    service or the node answered.
    """
    with _connected(home, asked) as (connection, lines):
        line = lines.readline()
        if not line.endswith(b"\n"):
            raise NotRunning("the node stopped before it answered", hint=STOPPED_HINT)
        _result(json.loads(line))
        yield connection, lines


def connect(home: Path, timeout: float | None = None) -> socket.socket:
    """Return a connection to the node of ``home``, whose calls may take ``timeout`` seconds.

    Raises NotRunning, also when the node takes no connection in time.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        if not any(_connects(connection, place(home), home) for place in (socket_path, stand_in)):
            raise NotRunning(f"no node runs in {home}", hint=f"start one: meshnode --home {in_shell(home)} up")
        _check_owner(connection, home)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _connected(home: Path, asked: Request, timeout: float | None = None) -> Iterator[tuple[socket.socket, BinaryIO]]:
    with connect(home, timeout) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # a node that has closed it before has said why
            connection.sendall(encode(asked))
        with connection.makefile("rb") as lines:
            yield connection, lines


def _connects(connection: socket.socket, path: Path, home: Path) -> bool:
    """Connect to a socket; False when no process listens there. Raises NotRunning: it must or can not be asked."""
    if (unsafe := why_unsafe(path.parent)) is not None:
        raise NotRunning(unsafe[0], hint=unsafe[1])
    try:
        connection.connect(str(path))
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        return False
    except (TimeoutError, BlockingIOError) as error:  # as many wait as the system lets
        raise _silent(home) from error
    except PermissionError as error:
        reason, hint = refusal(error, path)
        raise NotRunning(f"cannot ask the node in {home}: {reason}", hint=hint) from error
    return True


def _silent(home: Path) -> NotRunning:
    return NotRunning(f"the node in {home} does not answer", hint="is its process stopped, or very busy?")


def _result(answer: Json) -> Json:
    if "error" in answer:
        raise error_of(answer)
    result: Json = answer["result"]
    return result


def error_of(answer: Json) -> RemoteError:
    """Return the error that an answer of the node tells.

    ``answer`` is ``{"error": {"code", "message", "hint"}}``; ``--json`` prints the code as the
    node gave it.
    """
    found = answer["error"]
    return RemoteError(found["code"], found["message"], found["hint"])
