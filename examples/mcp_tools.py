"""An MCP server of one node whose tool an agent on another node calls; the call goes on while both move.

    pip install 'meshnode[mcp]'
    python examples/mcp_tools.py

prints

    tools: add
    2 + 3 = 5, for the node that asked: True
"""

from __future__ import annotations

import asyncio

import mcp
from mcp.server import MCPServer
from nodes import two_nodes

import meshnode.ext.mcp

server = MCPServer("calculator")


@server.tool()
async def add(a: int, b: int) -> str:
    """Add two numbers, slowly."""
    await asyncio.sleep(1)
    return f"{a} + {b} = {a + b}, for {meshnode.ext.mcp.caller()}"


async def main() -> None:
    async with two_nodes() as (there, here):
        serving = meshnode.ext.mcp.serve(there, server, "calculator", allow=[here.id])
        async with serving, mcp.Client(meshnode.ext.mcp.client(here, "server", "calculator")) as client:
            print("tools:", *(tool.name for tool in (await client.list_tools()).tools))
            call = asyncio.create_task(client.call_tool("add", {"a": 2, "b": 3}))
            await asyncio.gather(there.rebind(), here.rebind())  # both move to other ports
            text = (await call).content[0].text
            answer, _, caller = text.rpartition(" ")
            print(answer, f"the node that asked: {caller == str(here.id)}")


asyncio.run(main())
