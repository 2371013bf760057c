"""ASGI applications as services, by uvicorn and by hypercorn: identity, lifespan, moves, hostile requests."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

import httpx
import pytest
from hypercorn.config import Config
from hypercorn.utils import LifespanTimeoutError
from websockets.asyncio.client import ClientConnection
from websockets.client import ClientProtocol
from websockets.uri import parse_uri

import meshnode
from meshnode.ext import hypercorn
from meshnode.ext.httpx import MeshTransport
from meshnode.ext.protocols import create_connection
from meshnode.ext.serving import Serving
from tests.conftest import MakeNode
from tests.given_time import HANG_S, wait_for, within
from tests.live.asgi_app import LINES, App
from tests.live.ext_mesh import Pair, pair

Serve = Callable[..., Serving]


@pytest.fixture
async def nodes(make_node: MakeNode) -> Pair:
    return await pair(make_node)


@pytest.fixture(params=["asgi", "hypercorn"])
def serve(request: pytest.FixtureRequest) -> Serve:
    found: Serve = import_module(f"meshnode.ext.{request.param}").serve
    return found


def client(nodes: Pair) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=MeshTransport(nodes.here), base_url="http://web.there.mesh", timeout=HANG_S)


async def raw(nodes: Pair, request: bytes, *, end: bool) -> bytes:
    """Return all that a server answers to these bytes, and to their end."""
    reader, writer = await nodes.here.open("there", "web")
    writer.write(request)
    if end:
        writer.write_eof()
    try:
        return await wait_for(reader.read(), 10)
    except meshnode.ConnectionLost:
        return b"reset"


async def test_events_stream_on_while_both_ends_move(nodes: Pair, serve: Serve) -> None:
    serving = serve(nodes.there, App().app, "web", allow=[nodes.here.id])
    async with serving, client(nodes) as http, http.stream("GET", "/events") as got, nodes.moving():
        found = [int(line[6:]) async for line in got.aiter_lines() if line]
    assert found == list(range(LINES))


async def test_the_application_is_told_the_proven_caller_and_no_header_changes_it(nodes: Pair, serve: Serve) -> None:
    os.environ["FORWARDED_ALLOW_IPS"] = "*"
    forged = {
        "x-forwarded-for": str(nodes.there.id),
        "x-forwarded-proto": "https",
        "forwarded": f"for={nodes.there.id};proto=https",
        "x-real-ip": str(nodes.there.id),
        "client": str(nodes.there.id),
        "meshnode-id": str(nodes.there.id),
        "Meshnode_Name": "there",
        "MESHNODE-ROLES": "admin",
    }
    try:
        async with serve(nodes.there, App().app, "web", allow=[nodes.here.id]), client(nodes) as http:
            found = (await http.get("/caller", headers=forged)).json()
    finally:
        del os.environ["FORWARDED_ALLOW_IPS"]
    here = str(nodes.here.id)
    assert found["client"] == [here, 0]
    assert found["caller"] == {"id": here, "name": "here", "roles": []}
    assert (found["scheme"], found["word"]) == ("http", "hello")
    assert not [name for name in found["headers"] if name.startswith("meshnode")]
    assert "x-real-ip" in found["headers"], "others are the application's"


async def test_a_node_that_is_not_allowed_reaches_nothing_of_the_application(nodes: Pair, serve: Serve) -> None:
    async with serve(nodes.there, App().app, "web"), client(nodes) as http:
        with pytest.raises(httpx.ConnectError) as error:
            await http.get("/caller")
    assert isinstance(error.value.__cause__, meshnode.PolicyDenied)


async def test_a_body_of_16_mib_arrives_while_both_ends_move(nodes: Pair, serve: Serve) -> None:
    size = 64

    async def body() -> Any:
        for _ in range(size):
            yield b"x" * 262_144
            await asyncio.sleep(0.015)

    async with serve(nodes.there, App().app, "web", allow=[nodes.here.id]), client(nodes) as http, nodes.moving():
        assert (await http.post("/count", content=body())).json() == size * 262_144


async def test_a_websocket_goes_on_while_both_ends_move(nodes: Pair, serve: Serve) -> None:
    async with serve(nodes.there, App().app, "web", allow=[nodes.here.id]):
        uri = parse_uri("ws://web.there.mesh/ws")
        transport, connection = await create_connection(
            nodes.here, lambda: ClientConnection(ClientProtocol(uri)), "there", "web"
        )
        await connection.handshake()
        assert await connection.recv() == f"{nodes.here.id} {nodes.here.id}"
        async with nodes.moving():
            for number in range(LINES):
                await connection.send(str(number))
                assert await connection.recv() == str(number)
                await asyncio.sleep(0.01)
        await connection.close()
        assert transport.is_closing()


async def test_lifespan_begins_before_the_first_request_and_ends_once_the_last_is_answered(
    nodes: Pair, serve: Serve
) -> None:
    app = App()
    serving = serve(nodes.there, app.app, "web", allow=[nodes.here.id])
    async with client(nodes) as http:
        slow = asyncio.create_task(http.get("/slow"))
        async with within(10):
            while "slow" not in app.log:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        serving.close()
        with pytest.raises(meshnode.ServiceNotFound):
            await nodes.here.open(nodes.there.id, "web")
        assert (await slow).json() == "done"
        await serving.wait_closed()
    assert app.log == ["begun", "slow", "ended"]


async def test_an_application_that_does_not_begin_in_time_is_ended(nodes: Pair) -> None:
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    config = Config()
    config.startup_timeout = 0.1
    with pytest.raises(LifespanTimeoutError):
        await hypercorn.serve(nodes.there, app, "web", config=config)
    await wait_for(ended.wait(), 10)


async def test_an_application_that_does_not_start_up_is_an_error_and_no_service(nodes: Pair, serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with pytest.raises(Exception, match=r"start|no database"):
        await serve(nodes.there, app, "web", allow="any")
    with pytest.raises(meshnode.ServiceNotFound):
        await nodes.here.open(nodes.there.id, "web")


async def test_an_application_that_hangs_holds_no_other_request_and_no_end(nodes: Pair, serve: Serve) -> None:
    app = App()
    async with serve(nodes.there, app.app, "web", allow="any") as serving, client(nodes) as http:
        hanging = asyncio.create_task(http.get("/hang"))
        await asyncio.sleep(0.3)
        assert (await http.get("/caller")).status_code == 200
        serving.close()
        await wait_for(serving.wait_closed(), 20)
        with pytest.raises(httpx.HTTPError):
            (await hanging).raise_for_status()
    assert app.log == ["begun", "cancelled", "ended"]


async def test_a_node_that_closes_ends_its_application(nodes: Pair, serve: Serve) -> None:
    app = App()
    await serve(nodes.there, app.app, "web", allow="any")
    async with client(nodes) as http:
        assert (await http.get("/caller")).status_code == 200
        await wait_for(nodes.there.close(), 20)
    assert app.log == ["begun", "ended"]


async def test_an_error_of_the_application_is_an_answer(nodes: Pair, serve: Serve) -> None:
    async with serve(nodes.there, App().app, "web", allow="any"), client(nodes) as http:
        assert (await http.get("/fail")).status_code == 500
        assert (await http.get("/caller")).status_code == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /caller HTTP/1.1\r\nhost: x\r\nx-a: b\x00c\r\n\r\n",
        b"GET /caller HTTP/1.1\r\nhost: x\r\nx-a : b\r\n\r\n",
        b"GET /caller HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        b"POST /count HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /caller\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\n" + b"a" * 200_000,
    ],
)
async def test_a_malformed_request_is_refused_and_the_next_client_is_served(
    nodes: Pair, serve: Serve, request_: bytes
) -> None:
    async with serve(nodes.there, App().app, "web", allow="any"), client(nodes) as http:
        answer = await raw(nodes, request_, end=True)
        assert answer in (b"", b"reset") or answer.startswith(b"HTTP/1.1 4")
        assert (await http.get("/caller")).status_code == 200


async def test_a_request_in_the_body_of_another_is_no_request_of_its_own(nodes: Pair, serve: Serve) -> None:
    inner = b"GET /fail HTTP/1.1\r\nhost: x\r\n\r\n"
    start = b"POST /count HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: "
    chunked = b"4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    async with serve(nodes.there, App().app, "web", allow="any"):
        head, _, body = (await raw(nodes, start + b"%d\r\n\r\n" % len(inner) + inner, end=False)).partition(b"\r\n\r\n")
        assert (head.split()[1], json.loads(body)) == (b"200", len(inner))
        assert (await raw(nodes, start + chunked + inner, end=False)).count(b"HTTP/1.1 ") == 1


async def test_a_protocol_that_fails_at_its_beginning_leaves_no_stream(nodes: Pair) -> None:
    lost = asyncio.Event()

    async def server(reader: meshnode.MeshReader, writer: meshnode.MeshWriter, peer: meshnode.NodeId) -> None:
        with pytest.raises(meshnode.ConnectionLost):
            await reader.read()
        lost.set()

    class Failing(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            raise ZeroDivisionError

    nodes.there.serve("web", server, allow=[nodes.here.id])
    with pytest.raises(ZeroDivisionError):
        await create_connection(nodes.here, Failing, "there", "web")
    await wait_for(lost.wait(), 10)
