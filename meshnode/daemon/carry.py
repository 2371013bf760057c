"""The node's end of a stream that the control socket carries: half-close both ways, back-pressure, bounded buffers."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

from meshnode.base.value import frozen
from meshnode.daemon.frames import BROKEN, END, LENGTH, MAX_FRAME, WHOLE, frame
from meshnode.errors import ConnectionLost, MeshError
from meshnode.sdk.streams import MeshReader, MeshWriter

GONE_S = 2.0  # for the client to go away once it was told how the stream ended
LOOK_S = 0.2  # between looks whether the service still reads, once it has ended its own direction


@frozen
class Carried:
    """A stream of the mesh that a handler hands to the control socket, as the last of its results."""

    reader: MeshReader
    writer: MeshWriter
    ended: asyncio.Event | None = None  # is set when it is carried no longer


async def carry(client: tuple[asyncio.StreamReader, asyncio.StreamWriter], mesh: Carried) -> None:
    """Carry bytes both ways until both directions have ended, and tell the client how it ended.

    A client that goes away before it ended its direction resets the stream: the service must not take what came for
    the whole. Errors of the stream are told to the client and not raised. Each direction holds at most ``MAX_FRAME``
    bytes beside the buffers of both ends.
    """
    is_whole, last = False, WHOLE
    try:
        async with asyncio.TaskGroup() as group:
            up = group.create_task(_up(client[0], mesh.writer))
            await _down(mesh.reader, client[1])
            ended = await _last_words(up, mesh.writer)
        if ended:
            await mesh.writer.wait_closed()  # raises when the connection was lost before the peer had everything
        is_whole = True
    except* MeshError as errors:
        last = BROKEN + _line(errors)
    except* (OSError, EOFError):  # the client has gone
        last = b""
    finally:
        if is_whole:
            mesh.writer.close()
        else:
            mesh.writer.reset()
        if mesh.ended is not None:
            mesh.ended.set()
    client[1].write(last)
    await _until_gone(client[0])


async def _until_gone(reader: asyncio.StreamReader) -> None:
    """Let the client close first: one that writes to a closed socket does not read what the socket still has for it."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(GONE_S):
            while await reader.read(MAX_FRAME):
                pass


async def _up(reader: asyncio.StreamReader, writer: MeshWriter) -> None:
    while (head := await reader.readexactly(LENGTH.size)) != END:
        if head == WHOLE:
            writer.close()
            return
        size = LENGTH.unpack(head)[0]
        if size > MAX_FRAME:
            raise EOFError("a frame is too long")
        writer.write(await reader.readexactly(size))
        await writer.drain()
    writer.write_eof()


async def _down(reader: MeshReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(MAX_FRAME):
        writer.write(frame(data))
        await writer.drain()
    writer.write(END)
    await writer.drain()


async def _last_words(up: asyncio.Task[None], writer: MeshWriter) -> bool:
    """Wait for the client's end, or give it up (False) when the service reads no more: a terminal would never end."""
    while not up.done() and not (writer._stream.fin_sent or writer._stream.over):
        await asyncio.wait([up], timeout=LOOK_S)
    return not up.cancel()


def _line(errors: BaseExceptionGroup[MeshError]) -> bytes:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    error = found if isinstance(found, MeshError) else ConnectionLost("the stream is over")
    return json.dumps(error.to_json()).encode() + b"\n"
