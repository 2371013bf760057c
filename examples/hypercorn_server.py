"""An ASGI application served by hypercorn, called from another node.

    pip install 'meshnode[hypercorn,httpx]' starlette
    python examples/hypercorn_server.py

prints

    200 hello client
"""

from __future__ import annotations

import asyncio

import httpx
from nodes import two_nodes
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import meshnode.ext.hypercorn
from meshnode.ext.httpx import MeshTransport


async def hello(request: Request) -> PlainTextResponse:
    """Answer with the caller's name."""
    return PlainTextResponse(f"hello {request.scope['extensions']['meshnode']['name']}")


app = Starlette(routes=[Route("/", hello)])


async def main() -> None:
    async with two_nodes() as (server, client), meshnode.ext.hypercorn.serve(server, app, "web", allow=[client.id]):
        http = httpx.AsyncClient(transport=MeshTransport(client))
        async with http:
            response = await http.get("http://web.server.mesh/")
            print(response.status_code, response.text)


asyncio.run(main())
