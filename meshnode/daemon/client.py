"""The control socket's client: plain, synchronous and cheap to import. One JSON object a line."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from meshnode.base.files import why_unsafe
from meshnode.base.refusals import as_user, in_shell, refusal, user_name
from meshnode.daemon.paths import socket_path, stand_in
from meshnode.daemon.request import Json, Request, encode
from meshnode.errors import MeshError, NotRunning

QUIET_S = 20.0  # without an answer; then it is asked what a node that runs answers at once, and has as long again
READ = 1 << 16
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

    Without one an answer takes as long as the node answers others; one that waits for news (``endless``) as long as it
    will. Raises NotRunning, also when no answer comes in time, and RemoteError.
    """
    answered = False
    try:
        with connect(home, QUIET_S if timeout is None else timeout) as connection:
            if timeout is None and asked.endless:
                connection.settimeout(None)
            _send(connection, asked)
            for line in _lines(connection, lambda: _check_answers(home, timeout)):
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


def _lines(connection: socket.socket, on_silence: Callable[[], None]) -> Iterator[bytes]:
    """Yield what comes line by line, the last one perhaps cut short; ``on_silence`` raises, or it is waited on."""
    found = b""
    while True:
        try:
            more = connection.recv(READ)
        except TimeoutError:
            on_silence()
            continue
        if not more:
            break
        *whole, found = (found + more).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if found:
        yield found


def _check_answers(home: Path, timeout: float | None) -> None:
    """Raise TimeoutError when the time that was given is over, or the node does not answer anything: it is stopped."""
    if timeout is not None:
        raise TimeoutError
    from meshnode.daemon.requests.node import Status

    for _ in call(home, Status(), QUIET_S):
        pass


def _send(connection: socket.socket, asked: Request) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # a node that has closed it before has said why
        connection.sendall(encode(asked))


@contextmanager
def open_stream(home: Path, asked: Request) -> Iterator[tuple[socket.socket, BinaryIO]]:
    """Ask the node of ``home`` for a stream; once the service has accepted, give the socket, and what is read from it.

    From then on both sides speak frames (``daemon/frames.py``). Raises NotRunning, and RemoteError with what the
    service or the node answered.
    """
    with connect(home) as connection, connection.makefile("rb") as lines:
        _send(connection, asked)
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
