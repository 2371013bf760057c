"""The reader of a local program's connection: pieces in order, ends, errors, and how much it holds."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from meshnode.services.local import PIECE, Local, connection
from tests.given_time import wait_for

DEADLINE_S = 10.0


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Local, socket.socket]]:
    """A connection, and the program's end of it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    accepted.setblocking(False)
    program.settimeout(DEADLINE_S)
    local = await connection(accepted)
    yield local, program
    local[1].close()
    program.close()


async def test_bytes_come_in_order_and_no_more_at_once_than_asked_for(ends: tuple[Local, socket.socket]) -> None:
    (reader, _), program = ends
    sent = bytes(range(256)) * 8_192
    sending = asyncio.create_task(asyncio.to_thread(program.sendall, sent))
    got = b""
    while len(got) < len(sent):
        got += (piece := await wait_for(reader.read(10_000), DEADLINE_S))
        assert 0 < len(piece) <= 10_000
    await sending
    assert got == sent
    assert not reader.at_eof()


async def test_an_end_comes_behind_everything(ends: tuple[Local, socket.socket]) -> None:
    (reader, writer), program = ends
    program.sendall(b"last")
    program.shutdown(socket.SHUT_WR)
    await asyncio.sleep(0.1)
    assert not reader.at_eof()
    assert await reader.read(4) == b"last"
    assert await wait_for(reader.read(4), DEADLINE_S) == b""
    assert reader.at_eof()
    writer.write(b"answer")  # the other direction goes on
    assert await asyncio.to_thread(program.recv, 6) == b"answer"


async def test_a_reset_is_an_error_behind_what_came_before_it(ends: tuple[Local, socket.socket]) -> None:
    (reader, _), program = ends
    program.sendall(b"half")
    await asyncio.sleep(0.1)
    program.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    program.close()
    await asyncio.sleep(0.1)
    assert await wait_for(reader.read(10), DEADLINE_S) == b"half"
    assert not reader.at_eof()
    with pytest.raises(ConnectionResetError):
        await wait_for(reader.read(4), DEADLINE_S)


async def test_a_reader_that_waits_is_woken_by_an_error(ends: tuple[Local, socket.socket]) -> None:
    (reader, _), program = ends
    reading = asyncio.create_task(reader.read(4))
    await asyncio.sleep(0.05)
    program.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    program.close()
    with pytest.raises(ConnectionResetError):
        await wait_for(reading, DEADLINE_S)


async def test_a_program_that_is_not_read_is_held_back(ends: tuple[Local, socket.socket]) -> None:
    (reader, writer), program = ends
    program.setblocking(False)
    for _ in range(50):  # until the kernel's buffers are full too
        try:
            while True:
                program.send(bytes(PIECE))
        except BlockingIOError:
            await asyncio.sleep(0.01)
    assert PIECE <= reader._unread.size <= 2 * PIECE
    program.settimeout(DEADLINE_S)
    sending = asyncio.create_task(asyncio.to_thread(program.sendall, b"more"))
    rest = b""
    while not rest.endswith(b"more"):
        rest = await wait_for(reader.read(PIECE), DEADLINE_S)
    await sending
    assert not writer.is_closing()
