"""An aiohttp application of one node, and an aiohttp client on another; the request goes on while both move.

    pip install 'meshnode[aiohttp]'
    python examples/aiohttp_both.py

prints

    the caller's id is the one that it has proven: True
"""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp import web
from nodes import two_nodes

import meshnode.ext.aiohttp


async def caller(request: web.Request) -> web.Response:
    """Answer with the caller's id, after half a second."""
    await asyncio.sleep(0.5)
    return web.Response(text=request.remote)


app = web.Application()
app.add_routes([web.get("/", caller)])


async def main() -> None:
    async with two_nodes() as (server, client), meshnode.ext.aiohttp.serve(server, app, "web", allow=[client.id]):
        http = aiohttp.ClientSession(connector=meshnode.ext.aiohttp.MeshConnector(client))
        async with http:
            getting = asyncio.create_task(http.get("http://web.server.mesh/").__aenter__())
            await asyncio.gather(server.rebind(), client.rebind())  # both move to other ports
            text = await (await getting).text()
            print("the caller's id is the one that it has proven:", text == str(client.id))


asyncio.run(main())
