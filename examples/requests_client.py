"""A request by requests, from a thread, to a service of another node; its response goes on while both nodes move.

    pip install 'meshnode[requests]'
    python examples/requests_client.py

prints

    line 0
    line 1
    line 2
"""

from __future__ import annotations

import asyncio

import requests
from nodes import two_nodes

from meshnode.ext.requests import MeshAdapter


async def web(reader, writer, peer):
    """Answer one request with three lines. A real server is an ASGI application: see asgi_server.py."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 21\r\n\r\n")
    for number in range(3):
        writer.write(b"line %d\n" % number)
        await asyncio.sleep(0.2)


def read(session: requests.Session) -> None:
    """Run in a thread: requests waits."""
    with session.get("http://web.server.mesh/", stream=True, timeout=20) as response:
        for line in response.iter_lines():
            print(line.decode())


async def main() -> None:
    async with two_nodes() as (server, client):
        server.serve("web", web, allow=[client.id])
        with requests.Session() as session:
            session.mount("http://", MeshAdapter(client))
            reading = asyncio.create_task(asyncio.to_thread(read, session))
            await asyncio.gather(server.rebind(), client.rebind())  # both move to other ports
            await reading


asyncio.run(main())
