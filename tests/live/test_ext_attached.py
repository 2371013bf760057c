"""Client adapters on the running node of a home, by ``meshnode.attach``: HTTP and MCP, through moves of both nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import mcp
import pytest
from mcp.server import MCPServer

import meshnode
from meshnode.ext import mcp as mcp_adapter
from tests.conftest import MakeNode
from tests.given_time import HANG_S, wait_for
from tests.live.cli_node import CliNode, stopping
from tests.live.ext_mesh import LINES, PLACES, HttpServer


class Mesh(NamedTuple):
    """A node that serves in this process, and one that runs in another."""

    there: meshnode.Node
    here: CliNode

    async def move(self) -> None:
        """Move both, one after the other: nothing else knows where they are."""
        await self.there.rebind(f"127.0.4.{next(PLACES)}:0")
        await asyncio.sleep(0.2)
        await asyncio.to_thread(self.here.ask, "rebind", f"127.0.4.{next(PLACES)}:0")


@pytest.fixture
async def mesh(make_node: MakeNode, tmp_path: Path) -> AsyncIterator[Mesh]:
    there = await make_node(seed_role=True, name="there")
    seed: Any = SimpleNamespace(id=there.id, endpoint=there.record.endpoints[0])
    here = await asyncio.to_thread(lambda: CliNode(tmp_path / "here", seed=seed))
    with stopping(here):
        yield Mesh(there, here)


@pytest.mark.parametrize("name", ["httpx", "httpx2"])
async def test_a_response_streams_on_while_both_nodes_move(mesh: Mesh, name: str) -> None:
    server, library = HttpServer(), import_module(name)
    mesh.there.serve("web", server, allow=[mesh.here.id])
    async with meshnode.attach(mesh.here.home) as node:
        transport = import_module(f"meshnode.ext.{name}").MeshTransport(node)
        async with library.AsyncClient(transport=transport, timeout=HANG_S) as http:
            url = f"http://web.{mesh.there.id}.mesh"
            async with http.stream("GET", f"{url}/lines") as got:
                await mesh.move()
                assert [int(line) async for line in got.aiter_lines()] == list(range(LINES))
            with pytest.raises(library.ConnectError) as error:
                await http.get(f"http://nothing.{mesh.there.id}.mesh/")
            assert isinstance(error.value.__cause__, meshnode.MeshError)
            with pytest.raises(library.ReadError):
                await http.get(f"{url}/half")
    assert server.streams == 1


async def test_a_tool_call_goes_on_while_both_nodes_move(mesh: Mesh) -> None:
    server = MCPServer("tools")
    go = asyncio.Event()

    @server.tool()
    async def wait(size: int) -> str:
        await go.wait()
        return f"{mcp_adapter.caller()} {'x' * size}"

    serving = mcp_adapter.serve(mesh.there, server, "tools", allow=[mesh.here.id])
    async with (
        serving,
        meshnode.attach(mesh.here.home) as node,
        mcp.Client(mcp_adapter.client(node, str(mesh.there.id), "tools")) as tools,
    ):
        calling = asyncio.create_task(tools.call_tool("wait", {"size": 1_000_000}))
        await mesh.move()
        assert not calling.done()
        go.set()
        result: Any = await wait_for(calling, 20)
    assert result.content[0].text == f"{mesh.here.id} {'x' * 1_000_000}"
