"""A WebSocket by the library websockets to an application of another node; it goes on while both move.

    pip install 'meshnode[websockets,asgi]' starlette
    python examples/websockets_client.py

prints

    hello
    hello after the moves
"""

from __future__ import annotations

import asyncio

from nodes import two_nodes
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

import meshnode.ext.asgi
from meshnode.ext.websockets import connect


async def echo(socket: WebSocket) -> None:
    """Send back each message."""
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)


app = Starlette(routes=[WebSocketRoute("/echo", echo)])


async def main() -> None:
    async with two_nodes() as (server, client), meshnode.ext.asgi.serve(server, app, "web", allow=[client.id]):
        socket = await connect(client, "ws://web.server.mesh/echo")
        async with socket:
            await socket.send("hello")
            print(await socket.recv())
            await asyncio.gather(server.rebind(), client.rebind())  # both move to other ports
            await socket.send("hello after the moves")
            print(await socket.recv())


asyncio.run(main())
