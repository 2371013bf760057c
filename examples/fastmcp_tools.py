"""A FastMCP server of one node, and a FastMCP client on another; the call goes on while both move.

    pip install 'meshnode[fastmcp]'
    python examples/fastmcp_tools.py

prints

    hello from the mesh
"""

from __future__ import annotations

import asyncio

import fastmcp
from nodes import two_nodes

import meshnode.ext.mcp
from meshnode.ext.fastmcp import MeshTransport

server = fastmcp.FastMCP("greeter")


@server.tool
async def greet(place: str) -> str:
    """Say hello after a second."""
    await asyncio.sleep(1)
    return f"hello from {place}"


async def main() -> None:
    async with two_nodes() as (there, here), meshnode.ext.mcp.serve(there, server, "greeter", allow=[here.id]):
        transport = MeshTransport(here, "server", "greeter")
        async with fastmcp.Client(transport) as client:
            call = asyncio.create_task(client.call_tool("greet", {"place": "the mesh"}))
            await asyncio.gather(there.rebind(), here.rebind())  # both move to other ports
            print((await call).data)


asyncio.run(main())
