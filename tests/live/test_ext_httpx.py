"""httpx and httpx2 over mesh streams: real requests between two nodes, with moves in the middle."""

from __future__ import annotations

import asyncio
import errno
import os
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

import meshnode
from tests.conftest import MakeNode
from tests.given_time import wait_for
from tests.live.ext_mesh import LINES, HttpServer, Pair, pair


@pytest.fixture
async def nodes(make_node: MakeNode) -> Pair:
    return await pair(make_node)


@pytest.fixture(params=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> ModuleType:
    return import_module(request.param)


def client(library: ModuleType, pair: Pair, **options: Any) -> Any:
    transport = import_module(f"meshnode.ext.{library.__name__}").MeshTransport(pair.here)
    return library.AsyncClient(transport=transport, **options)


async def test_a_response_streams_on_while_both_ends_move(nodes: Pair, library: ModuleType) -> None:
    server = HttpServer()
    nodes.there.serve("web", server, allow=[nodes.here.id])
    url = f"http://web.{nodes.there.id}.mesh/lines"
    async with client(library, nodes) as http, http.stream("GET", url) as got, nodes.moving():
        lines = [int(line) async for line in got.aiter_lines()]
    assert lines == list(range(LINES))
    assert (server.streams, len(server.requests)) == (1, 1)


async def test_requests_after_one_another_share_a_stream_and_end_with_the_client(
    nodes: Pair, library: ModuleType
) -> None:
    server = HttpServer()
    nodes.there.serve("web", server, allow=[nodes.here.id])
    async with client(library, nodes, base_url="http://web.there.mesh") as http:
        assert [(await http.get(path)).text for path in ("/a", "/b")] == ["/a", "/b"]
    assert server.streams == 1
    assert server.requests[0].lower().count(b"host: web.there.mesh\r\n") == 1


async def test_a_stream_that_the_server_has_ended_is_not_used_again(nodes: Pair, library: ModuleType) -> None:
    server = HttpServer()
    nodes.there.serve("web", server, allow=[nodes.here.id])
    async with client(library, nodes, base_url="http://web.there.mesh") as http:
        assert (await http.get("/end")).text == "last"
        assert (await http.get("/next")).text == "/next"
    assert server.streams == 2


async def test_what_a_server_says_between_two_requests_answers_none(nodes: Pair, library: ModuleType) -> None:
    ends, said = asyncio.Event(), asyncio.Event()

    async def server(reader: meshnode.MeshReader, writer: meshnode.MeshWriter, peer: meshnode.NodeId) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await ends.wait()
        writer.write(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        while writer.transport.get_write_buffer_size():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        said.set()

    nodes.there.serve("web", server, allow=[nodes.here.id])
    async with client(library, nodes, base_url="http://web.there.mesh") as http:
        assert (await http.get("/first")).status_code == 200
        ends.set()
        await wait_for(said.wait(), 10)
        assert (await http.get("/next")).status_code == 200


async def test_a_stream_that_the_server_reads_no_more_is_not_used_again(nodes: Pair, library: ModuleType) -> None:
    ends, streams = asyncio.Event(), []

    async def server(reader: meshnode.MeshReader, writer: meshnode.MeshWriter, peer: meshnode.NodeId) -> None:
        streams.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        reader.feed_eof()  # what a reset begins with
        await ends.wait()

    nodes.there.serve("web", server, allow=[nodes.here.id])
    async with client(library, nodes, base_url="http://web.there.mesh") as http:
        assert (await http.get("/first")).status_code == 200
        await asyncio.sleep(0.2)
        assert (await wait_for(http.get("/next"), 10)).status_code == 200
    assert len(streams) == 2
    ends.set()


async def test_a_host_without_a_service_means_http_or_the_port(nodes: Pair, library: ModuleType) -> None:
    servers = {name: HttpServer() for name in ("http", "8000")}
    for name, server in servers.items():
        nodes.there.serve(name, server, allow=[nodes.here.id])
    async with client(library, nodes) as http:
        for host in ("there.mesh", f"{nodes.there.id}.mesh", "there.mesh:8000"):
            assert (await http.get(f"http://{host}/{host}")).text == f"/{host}"
    assert [len(server.requests) for server in servers.values()] == [2, 1]


@pytest.mark.parametrize(
    ("url", "kind", "cause", "words"),
    [
        ("http://nothing.there.mesh/", "ConnectError", meshnode.ServiceNotFound, "no service 'nothing'"),
        ("http://mine.there.mesh/", "ConnectError", meshnode.PolicyDenied, "--allow"),
        ("http://web.unknown.mesh/", "ConnectError", meshnode.NotFound, "unknown"),
        ("http://example.org/", "ConnectError", meshnode.InvalidId, "SERVICE.NAME.mesh"),
        ("https://web.there.mesh/", "UnsupportedProtocol", None, "http://"),
    ],
)
async def test_what_cannot_be_reached_is_the_librarys_error_with_the_meshs_as_its_cause(
    nodes: Pair, library: ModuleType, url: str, kind: str, cause: type[Exception] | None, words: str
) -> None:
    nodes.there.serve("mine", HttpServer(), allow=[nodes.there.id])
    async with client(library, nodes) as http:
        with pytest.raises(getattr(library, kind), match=words) as error:
            await http.get(url)
    assert type(error.value.__cause__) is (cause or type(None))


async def test_a_program_without_a_descriptor_left_meets_the_librarys_error(library: ModuleType) -> None:
    class Full:
        async def open(self, peer: object, service: str) -> object:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    transport = import_module(f"meshnode.ext.{library.__name__}").MeshTransport(Full())
    async with library.AsyncClient(transport=transport) as http:
        with pytest.raises(library.ConnectError, match="Too many open files"):
            await http.get("http://web.there.mesh/")


async def test_a_server_that_hangs_is_a_timeout_and_blocks_no_other_request(nodes: Pair, library: ModuleType) -> None:
    nodes.there.serve("web", HttpServer(), allow=[nodes.here.id])
    async with client(library, nodes, base_url="http://web.there.mesh") as http:
        hanging = asyncio.create_task(http.get("/hang", timeout=0.5))
        assert (await http.get("/other")).text == "/other"
        with pytest.raises(library.ReadTimeout):
            await hanging


async def test_a_body_that_breaks_off_is_no_clean_end(nodes: Pair, library: ModuleType) -> None:
    nodes.there.serve("web", HttpServer(), allow=[nodes.here.id])
    async with client(library, nodes) as http:
        with pytest.raises(library.ReadError):
            await http.get("http://web.there.mesh/half")


@pytest.mark.parametrize("value", ["a\r\nx-forged: 1", "a\nb", "a\0b"])
async def test_no_header_is_injected_by_the_value_of_another(nodes: Pair, library: ModuleType, value: str) -> None:
    server = HttpServer()
    nodes.there.serve("web", server, allow=[nodes.here.id])
    async with client(library, nodes) as http:
        with pytest.raises((library.LocalProtocolError, ValueError)):
            await http.get("http://web.there.mesh/", headers={"x-value": value})
    assert server.requests == []
