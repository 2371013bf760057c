"""A request by httpx to a service of another node; its response goes on while both nodes move.

    pip install 'meshnode[httpx]'
    python examples/httpx_client.py

prints

    200 from web.server.mesh
    line 0
    line 1
    line 2
"""

from __future__ import annotations

import asyncio

import httpx
from nodes import two_nodes

from meshnode.ext.httpx import MeshTransport


async def web(reader, writer, peer):
    """Answer one request with three lines. A real server is an ASGI application: see asgi_server.py."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
    for number in range(3):
        writer.write(b"line %d\n" % number)
        await asyncio.sleep(0.2)


async def main() -> None:
    async with two_nodes() as (server, client):
        server.serve("web", web, allow=[client.id])
        http = httpx.AsyncClient(transport=MeshTransport(client))
        async with http, http.stream("GET", "http://web.server.mesh/") as response:
            print(response.status_code, "from", response.url.host)
            await asyncio.gather(server.rebind(), client.rebind())  # both move to other ports
            async for line in response.aiter_lines():
                print(line)


asyncio.run(main())
