"""Questions to the running node of a home, on asyncio; each has a connection of its own to the control socket."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncGenerator
from functools import cache
from pathlib import Path

from meshnode import errors
from meshnode.daemon.client import STOPPED_HINT, RemoteError, connect
from meshnode.daemon.request import Json, Request, encode
from meshnode.errors import MeshError, NotRunning

MAX_ANSWER = 1 << 22  # bytes of a line: what the status of a node with 2,000 peers has
CONNECT_S = 5.0  # for the node to take a connection; it is on this host


async def ask(home: Path, asked: Request) -> AsyncGenerator[Json, None]:
    """Yield the answers of the node.

    Raises NotRunning, and what the node answered.
    """
    sock = connect(home, CONNECT_S)
    sock.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=sock, limit=MAX_ANSWER)
    try:
        writer.write(encode(asked))
        while line := await reader.readline():
            answer = json.loads(line)
            if answer.get("end"):
                return
            yield result(answer)
    except ConnectionError as error:
        if isinstance(error, MeshError):
            raise
    finally:
        writer.close()
    raise NotRunning("the node has stopped", hint=STOPPED_HINT)


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
