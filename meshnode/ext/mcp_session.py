"""Sessions of the Model Context Protocol on mesh streams: messages in JSON, one a line, as in its stdio transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from meshnode.errors import MeshError

MAX_MESSAGE = 4 << 20  # bytes of one message, as the SDK takes in a request over HTTP
CHUNK = 1 << 16
FLUSH_S = 0.5  # how long the end of a session waits for its last message to be written


@asynccontextmanager
async def messages(stream: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> AsyncIterator[tuple[Any, Any]]:
    """Carry a session's messages over a stream, which is closed at the end."""
    reader, writer = stream
    incoming, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write, outgoing = anyio.create_memory_object_stream[SessionMessage](0)
    flushed = anyio.Event()

    async def receive() -> None:
        async with incoming:
            try:
                async for line in _lines(reader):
                    await incoming.send(_parsed(line))
            except (MeshError, ValueError, anyio.BrokenResourceError):
                writer.transport.abort()  # the session sees its end; the peer that of the stream

    async def send() -> None:
        try:
            async for message in outgoing:
                text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                writer.write(text.encode() + b"\n")
                await writer.drain()
        except MeshError:
            outgoing.close()  # the reader meets the same error, and ends the session
        finally:
            flushed.set()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            group.start_soon(send)
            try:
                yield read, write
            finally:
                write.close()
                with anyio.move_on_after(FLUSH_S):
                    await flushed.wait()
                group.cancel_scope.cancel()
    finally:
        read.close()
        writer.close()


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the lines that have an end; a reader's own limit is of no account.

    Raises ValueError for one that is too long.
    """
    held = bytearray()
    while data := await reader.read(CHUNK):
        *ended, rest = data.split(b"\n")
        for part in ended:
            yield bytes(held + part)
            held.clear()
        held += rest
        if len(held) > MAX_MESSAGE:
            raise ValueError("a message is too long")


def _parsed(line: bytes) -> SessionMessage | Exception:
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    except ValueError as error:
        return error
