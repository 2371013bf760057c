"""MCP sessions over mesh streams: the SDK's clients and servers, FastMCP's, moves, hostile ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import fastmcp
import mcp
import pytest
from fastmcp.server.dependencies import get_access_token as fast_token
from mcp.server import MCPServer
from mcp.server.auth.middleware.auth_context import get_access_token

import meshnode
from meshnode.ext import mcp as adapter
from meshnode.ext.fastmcp import MeshTransport
from meshnode.ext.mcp_session import MAX_MESSAGE
from tests.conftest import MakeNode
from tests.given_time import wait_for
from tests.live.ext_mesh import Pair, pair


@pytest.fixture
async def nodes(make_node: MakeNode) -> Pair:
    return await pair(make_node)


def sdk_server(ended: asyncio.Event | None = None) -> MCPServer:
    """A server of the SDK with tools that take their time, and tell of their caller."""
    server = MCPServer("tools")

    @server.tool()
    async def count(to: int, ctx: mcp.server.mcpserver.Context[Any]) -> str:
        for number in range(to):
            await ctx.report_progress(number, to)
            await asyncio.sleep(0.01)
        return f"counted to {to}"

    @server.tool()
    def caller() -> str:
        token = get_access_token()
        assert token is not None
        return json.dumps([str(adapter.caller()), token.client_id, token.subject, token.token, token.scopes])

    @server.tool()
    async def hang() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            if ended is not None:
                ended.set()
        return "never"

    @server.tool()
    def large(size: int) -> str:
        return "x" * size

    return server


def text(result: Any) -> str:
    found: str = result.content[0].text
    return found


async def test_a_tool_call_goes_on_while_both_ends_move(nodes: Pair) -> None:
    steps: list[float] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        steps.append(done)

    serving = adapter.serve(nodes.there, sdk_server(), "tools", allow=[nodes.here.id])
    client = mcp.Client(adapter.client(nodes.here, nodes.there.id, "tools"))
    async with serving, client as tools, nodes.moving():
        assert text(await tools.call_tool("count", {"to": 100}, progress_callback=progress)) == "counted to 100"
    assert steps == list(range(100))


async def test_the_callers_node_is_the_principal_whatever_it_says(nodes: Pair) -> None:
    async with adapter.serve(nodes.there, sdk_server(), "tools", allow="any"):
        for node in (nodes.here, nodes.there):
            info = mcp.Implementation(name=str(nodes.there.id), version="1")
            client = mcp.Client(adapter.client(nodes.here, "there", "tools"), client_info=info)
            async with client as tools:
                meta = {"client_id": str(node.id), "authorization": f"Bearer {nodes.there.id}"}
                found = json.loads(text(await tools.call_tool("caller", {}, meta=meta)))
            assert found == [str(nodes.here.id), str(nodes.here.id), str(nodes.here.id), "", []]
    assert adapter.caller() is None


async def test_a_hanging_tool_blocks_no_other_call_and_ends_with_its_session(nodes: Pair) -> None:
    ended = asyncio.Event()
    async with adapter.serve(nodes.there, sdk_server(ended), "tools", allow="any"):
        async with mcp.Client(adapter.client(nodes.here, "there", "tools")) as tools:
            hanging = asyncio.create_task(tools.call_tool("hang", {}))
            assert text(await tools.call_tool("large", {"size": 5})) == "xxxxx"
            assert not ended.is_set()
        await wait_for(ended.wait(), 10)
        with pytest.raises(mcp.MCPError):
            await hanging


async def test_messages_are_larger_than_a_line_of_the_readers_limit(nodes: Pair) -> None:
    serving = adapter.serve(nodes.there, sdk_server(), "tools", allow="any")
    async with serving, mcp.Client(adapter.client(nodes.here, "there", "tools")) as tools:
        assert len(text(await tools.call_tool("large", {"size": 1_000_000}))) == 1_000_000


async def test_a_node_that_is_not_allowed_has_no_session(nodes: Pair) -> None:
    async with adapter.serve(nodes.there, sdk_server(), "tools"):
        with pytest.raises(meshnode.PolicyDenied):
            async with adapter.client(nodes.here, "there", "tools"):
                pass


async def test_a_session_whose_server_goes_is_an_error_of_each_call_and_no_hang(nodes: Pair) -> None:
    serving = adapter.serve(nodes.there, sdk_server(), "tools", allow="any")
    async with serving, mcp.Client(adapter.client(nodes.here, "there", "tools")) as tools:
        calling = asyncio.create_task(tools.call_tool("hang", {}))
        await asyncio.sleep(0.2)
        (await nodes.here.connect("there")).close()
        with pytest.raises(mcp.MCPError, match="closed"):
            await wait_for(calling, 10)


async def test_lines_that_are_no_messages_end_nothing_and_a_line_without_an_end_ends_its_session(nodes: Pair) -> None:
    async with adapter.serve(nodes.there, sdk_server(), "tools", allow="any"):
        reader, writer = await nodes.here.open("there", "tools")
        for junk in (b"junk\n", b"\n", b"[]\n", b'{"jsonrpc": "1.0"}\n', b"\xff\xfe\n", b"[" * 5000 + b"\n"):
            writer.write(junk)
        writer.write(b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
        answer = json.loads(await wait_for(reader.readline(), 10))
        while answer.get("id") != 1:
            answer = json.loads(await wait_for(reader.readline(), 10))
        writer.write(b"x" * (MAX_MESSAGE + 70_000))
        with pytest.raises(meshnode.ConnectionLost):
            while await wait_for(reader.read(65_536), 10):
                pass
        async with mcp.Client(adapter.client(nodes.here, "there", "tools")) as tools:
            assert text(await tools.call_tool("large", {"size": 1})) == "x"


async def test_what_is_no_server_is_refused(nodes: Pair) -> None:
    with pytest.raises(meshnode.ConfigError, match="not str"):
        adapter.serve(nodes.there, "server", "tools")
    with pytest.raises(meshnode.ServiceNotFound):
        await nodes.here.open(nodes.there.id, "tools")


# ---- FastMCP


class Life:
    """Counts how often a FastMCP server has begun and ended."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @asynccontextmanager
    async def __call__(self, server: Any) -> AsyncIterator[dict[str, Any]]:
        self.log.append("begun")
        yield {"word": "hello"}
        self.log.append("ended")


def fast_server(life: Life) -> fastmcp.FastMCP[Any]:
    server: fastmcp.FastMCP[Any] = fastmcp.FastMCP("fast", lifespan=life)

    @server.tool
    async def wait(seconds: float) -> str:
        await asyncio.sleep(seconds)
        token = fast_token()
        assert token is not None
        return f"{adapter.caller()} {token.client_id}"

    return server


async def test_fastmcp_at_both_ends_with_one_lifespan_for_all_sessions(nodes: Pair) -> None:
    life, here = Life(), nodes.here.id
    serving = adapter.serve(nodes.there, fast_server(life), "fast", allow=[nodes.here.id])
    async with serving, fastmcp.Client(MeshTransport(nodes.here, nodes.there.id, "fast")) as one:
        async with fastmcp.Client(MeshTransport(nodes.here, "there", "fast")) as two, nodes.moving():
            for result in await asyncio.gather(*(c.call_tool("wait", {"seconds": 1.5}) for c in (one, two))):
                assert result.data == f"{here} {here}"
        assert life.log == ["begun"]
        assert (await one.call_tool("wait", {"seconds": 0})).data == f"{here} {here}"
    assert life.log == ["begun", "ended"]


async def test_a_server_that_cannot_begin_raises_and_is_not_served(nodes: Pair) -> None:
    @asynccontextmanager
    async def broken(server: Any) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    server: fastmcp.FastMCP[Any] = fastmcp.FastMCP("broken", lifespan=broken)
    with pytest.raises(RuntimeError, match="no database"):
        await adapter.serve(nodes.there, server, "broken", allow="any")
    with pytest.raises(meshnode.ServiceNotFound):
        await nodes.here.open(nodes.there.id, "broken")


async def test_a_node_that_is_closed_ends_the_servers_lifespan(nodes: Pair) -> None:
    life = Life()
    await adapter.serve(nodes.there, fast_server(life), "fast", allow="any")
    await nodes.there.close()
    assert life.log == ["begun", "ended"]
