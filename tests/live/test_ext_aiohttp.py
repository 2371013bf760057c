"""aiohttp over mesh streams: its client and its server, moves, the caller's identity, hostile requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

import meshnode
from meshnode.ext import aiohttp as adapter
from tests.conftest import MakeNode
from tests.given_time import wait_for
from tests.live.ext_mesh import LINES, PAUSE_S, HttpServer, Pair, pair


@pytest.fixture
async def nodes(make_node: MakeNode) -> Pair:
    return await pair(make_node)


@pytest.fixture
async def http(nodes: Pair) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=adapter.MeshConnector(nodes.here)) as session:
        yield session


def application(log: list[str]) -> web.Application:
    async def life(app: web.Application) -> AsyncIterator[None]:
        log.append("begun")
        yield
        log.append("ended")

    async def caller(request: web.Request) -> web.Response:
        return web.Response(text=str(request.remote))

    async def lines(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for number in range(LINES):
            await response.write(b"%d\n" % number)
            await asyncio.sleep(PAUSE_S)
        return response

    async def echo(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    async def hang(request: web.Request) -> web.Response:
        log.append("hangs")
        await asyncio.Event().wait()
        return web.Response()

    app = web.Application()
    app.cleanup_ctx.append(life)
    app.add_routes(
        [web.get("/caller", caller), web.get("/lines", lines), web.get("/echo", echo), web.get("/hang", hang)]
    )
    return app


async def test_a_response_streams_on_while_both_ends_move(nodes: Pair, http: aiohttp.ClientSession) -> None:
    serving = adapter.serve(nodes.there, application([]), "web", allow=[nodes.here.id])
    async with serving, http.get(f"http://web.{nodes.there.id}.mesh/lines") as got, nodes.moving():
        assert [int(line) async for line in got.content] == list(range(LINES))


async def test_a_websocket_goes_on_while_both_ends_move(nodes: Pair, http: aiohttp.ClientSession) -> None:
    serving = adapter.serve(nodes.there, application([]), "web", allow=[nodes.here.id])
    async with serving, http.ws_connect("ws://web.there.mesh/echo") as socket, nodes.moving():
        for number in range(LINES):
            await socket.send_str(str(number))
            assert (await socket.receive()).data == str(number)
            await asyncio.sleep(PAUSE_S)


async def test_the_remote_of_a_request_is_the_proven_id_whatever_headers_say(
    nodes: Pair, http: aiohttp.ClientSession
) -> None:
    forged = {"x-forwarded-for": str(nodes.there.id), "forwarded": f"for={nodes.there.id}"}
    async with (
        adapter.serve(nodes.there, application([]), "web", allow="any"),
        http.get("http://web.there.mesh/caller", headers=forged) as got,
    ):
        assert await got.text() == str(nodes.here.id)


async def test_an_application_that_hangs_ends_with_its_service(nodes: Pair, http: aiohttp.ClientSession) -> None:
    log: list[str] = []
    async with adapter.serve(nodes.there, application(log), "web", allow="any", graceful_s=0.3):
        hanging = asyncio.create_task(http.get("http://web.there.mesh/hang").__aenter__())
        async with http.get("http://web.there.mesh/caller") as got:
            assert got.status == 200
        while "hangs" not in log:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert log == ["begun", "hangs", "ended"]
    with pytest.raises(aiohttp.ClientError):
        await wait_for(hanging, 10)


async def test_requests_after_one_another_share_a_stream(nodes: Pair, http: aiohttp.ClientSession) -> None:
    server = HttpServer()
    nodes.there.serve("web", server, allow=[nodes.here.id])
    for path in ("/a", "/b"):
        async with http.get(f"http://web.there.mesh{path}") as got:
            assert await got.text() == path
    assert server.streams == 1


async def test_no_proxy_of_the_environment_is_asked_or_written_to(nodes: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    server = HttpServer()
    nodes.there.serve("web", server, allow=[nodes.here.id])
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with aiohttp.ClientSession(connector=adapter.MeshConnector(nodes.here), trust_env=True) as http:
        for path in ("/a", "/b"):
            async with http.get(f"http://web.there.mesh{path}") as got:
                assert await got.text() == path
    assert [head.split()[1] for head in server.requests] == [b"/a", b"/b"]


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("http://nothing.there.mesh/", meshnode.ServiceNotFound),
        ("http://mine.there.mesh/", meshnode.PolicyDenied),
        ("http://example.org/", meshnode.InvalidId),
    ],
)
async def test_what_cannot_be_reached_is_aiohttps_error_with_the_meshs_as_its_cause(
    nodes: Pair, http: aiohttp.ClientSession, url: str, cause: type[Exception]
) -> None:
    nodes.there.serve("mine", HttpServer(), allow=[nodes.there.id])
    with pytest.raises(aiohttp.ClientConnectionError) as error:
        await http.get(url)
    assert type(error.value.__cause__) is cause


async def test_https_is_refused_for_the_stream_is_encrypted_already(http: aiohttp.ClientSession) -> None:
    with pytest.raises(aiohttp.NonHttpUrlClientError):
        await http.get("https://web.there.mesh/")


async def test_a_body_that_breaks_off_is_no_clean_end(nodes: Pair, http: aiohttp.ClientSession) -> None:
    nodes.there.serve("web", HttpServer(), allow="any")
    with pytest.raises(aiohttp.ClientError):
        async with http.get("http://web.there.mesh/half") as got:
            await got.read()


@pytest.mark.parametrize("value", ["a\r\nx-forged: 1", "a\nb", "a\0b"])
async def test_no_header_is_injected_by_the_value_of_another(
    nodes: Pair, http: aiohttp.ClientSession, value: str
) -> None:
    server = HttpServer()
    nodes.there.serve("web", server, allow="any")
    with pytest.raises((aiohttp.ClientError, ValueError)):
        await http.get("http://web.there.mesh/", headers={"x-value": value})
    assert server.requests == []
