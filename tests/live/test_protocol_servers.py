"""Servers of asyncio's protocols on mesh streams: a web server that knows no mesh, and how they are ended."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from meshnode.errors import ConnectionLost
from tests.conftest import MakeNode
from tests.given_time import wait_for
from tests.live.test_transports import Talk, pair, soon


async def test_a_web_server_that_knows_no_mesh_answers_and_is_shut_down(make_node: MakeNode) -> None:
    listener, dialler = await pair(make_node)

    async def app(scope: dict[str, object], receive: object, send: object) -> None:
        assert callable(send)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000000")]})
        await send({"type": "http.response.body", "body": bytes(1_000_000)})

    config, state = uvicorn.Config(app, lifespan="off", log_config=None), ServerState()
    config.load()

    def factory() -> H11Protocol:
        return H11Protocol(config=config, server_state=state, app_state={})

    server = await listener.create_server(factory, "web", allow=["any"])
    reader, writer = await dialler.open(listener.id, "web")
    for _ in range(3):  # the connection is kept alive
        writer.write(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        head = await wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert len(await wait_for(reader.readexactly(1_000_000), 10)) == 1_000_000
    assert len(state.connections) == 1
    server.close()
    for connection in list(state.connections):
        connection.shutdown()
    assert await wait_for(reader.read(), 5) == b""
    writer.close()
    await wait_for(server.wait_closed(), 5)
    assert not state.connections


async def test_a_server_serves_forever_until_it_is_closed_and_ends_its_clients(make_node: MakeNode) -> None:
    listener, dialler = await pair(make_node)
    server = await listener.create_server(Talk, "talk", allow=["any"])
    serving = asyncio.create_task(server.serve_forever())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="runs already"):
        await server.serve_forever()
    talks = [(await dialler.create_connection(Talk, listener.id, "talk"))[1] for _ in range(2)]
    server.close()
    with pytest.raises(asyncio.CancelledError):
        await serving
    with pytest.raises(RuntimeError, match="closed"):
        await server.serve_forever()
    assert not any(talk.over.done() for talk in talks)
    server.close_clients()
    assert [await soon(talk.over) for talk in talks] == [None, None]
    await wait_for(server.wait_closed(), 5)


async def test_a_program_that_served_forever_goes_on_as_one_that_was_not_cancelled(make_node: MakeNode) -> None:
    server = await (await make_node()).create_server(Talk, "talk", allow=["any"])

    async def serve() -> int:
        with contextlib.suppress(asyncio.CancelledError):
            await server.serve_forever()
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    serving = asyncio.create_task(serve())
    await asyncio.sleep(0)
    server.close()
    assert await wait_for(serving, 5) == 0


async def test_clients_that_are_aborted_see_a_reset(make_node: MakeNode) -> None:
    listener, dialler = await pair(make_node)
    server = await listener.create_server(Talk, "talk", allow=["any"])
    _, talk = await dialler.create_connection(Talk, listener.id, "talk")
    server.abort_clients()
    assert isinstance(await soon(talk.over), ConnectionLost)
