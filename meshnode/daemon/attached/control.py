"""Questions to the running node of a home, on asyncio; each has a connection of its own to the control socket."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import cache
from pathlib import Path

from meshnode import errors
from meshnode.daemon.client import STOPPED_HINT, RemoteError, connect
from meshnode.daemon.request import Json, Request, encode
from meshnode.errors import MeshError, NotRunning, StreamMisused

MAX_ANSWER = 1 << 22  # bytes of a line: what the status of a node with 2,000 peers has
CONNECT_S = 5.0  # for the node to take a connection; it is on this host


class Answers:
    """The answers of a node to one request, as they come. A wait for the next one may be cancelled, and made again."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._is_over = False

    def __aiter__(self) -> Answers:
        return self

    async def __anext__(self) -> Json:
        """Return the next answer.

        Raises StopAsyncIteration behind the last one and after ``close``; NotRunning: the node has stopped;
        StreamMisused: another coroutine waits already; and what the node answered.
        """
        line = b"" if self._is_over else await self._line()
        if self._is_over:
            raise StopAsyncIteration
        if not line.endswith(b"\n"):
            self.close()
            raise NotRunning("the node has stopped", hint=STOPPED_HINT)
        answer = json.loads(line)
        if "result" not in answer:  # the end, or an error
            self.close()
        if answer.get("end"):
            raise StopAsyncIteration
        return result(answer)

    async def _line(self) -> bytes:
        try:
            return await self._reader.readline()
        except ConnectionError:
            return b""
        except RuntimeError as error:  # what asyncio says of it
            raise StreamMisused("another coroutine waits for the next one", hint="let one coroutine read it") from error

    def close(self) -> None:
        """Ask no more; a wait for the next answer ends. Safe to call twice."""
        self._is_over = True
        self._writer.close()

    def __del__(self) -> None:
        if not self._is_over and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._writer.close)


async def begin(home: Path, asked: Request) -> Answers:
    """Ask the node. Raises NotRunning."""
    sock = connect(home, CONNECT_S)
    sock.setblocking(False)
    try:
        await send(sock, asked)
        return Answers(*await asyncio.open_unix_connection(sock=sock, limit=MAX_ANSWER))
    except BaseException:
        sock.close()
        raise


async def send(sock: socket.socket, asked: Request) -> None:
    """Send a question. A node that has closed the connection before has said why, which is to be read."""
    with suppress(ConnectionError):
        await asyncio.get_running_loop().sock_sendall(sock, encode(asked))


async def ask(home: Path, asked: Request) -> AsyncGenerator[Json, None]:
    """Yield the answers of the node.

    Raises NotRunning, and what the node answered.
    """
    answers = await begin(home, asked)
    try:
        async for answer in answers:
            yield answer
    finally:
        answers.close()


async def ask_one(home: Path, asked: Request) -> Json:
    """Return the one answer.

    Raises as ``ask``.
    """
    answers = [answer async for answer in ask(home, asked)]
    return answers[0]


def result(answer: Json) -> Json:
    """Return what an answer holds.

    Raises the error that it tells.
    """
    if "error" in answer:
        raise error_of(answer)
    found: Json = answer["result"]
    return found


def error_of(answer: Json) -> MeshError:
    """Return the error that an answer tells, of the class that a node of this process would have raised.

    Attributes beside the message and the hint have their defaults. A code that is not known gives a RemoteError.
    """
    told = answer["error"]
    kind = _kinds().get(told["code"])
    if kind is None:
        return RemoteError(told["code"], told["message"], told["hint"])
    return kind(told["message"], hint=told["hint"])


@cache
def _kinds() -> dict[str, type[MeshError]]:
    """Return the classes of errors by their codes, as far as they are made of a message and a hint."""
    return {
        kind.code: kind
        for kind in vars(errors).values()
        if inspect.isclass(kind) and issubclass(kind, MeshError)
        if list(inspect.signature(kind).parameters)[:2] == ["message", "hint"] or kind.__init__ is MeshError.__init__
    }
