"""A FastAPI application of one node, called from another; it is told which node calls.

    pip install 'meshnode[asgi,httpx]' fastapi
    python examples/asgi_server.py

prints

    hello client
    its id is the one that it has proven: True
"""

from __future__ import annotations

import asyncio

import httpx
from fastapi import FastAPI, Request
from nodes import two_nodes

import meshnode.ext.asgi
from meshnode.ext.httpx import MeshTransport

app = FastAPI()


@app.get("/")
async def hello(request: Request) -> dict[str, str]:
    """Answer with what is known of the caller: ``id``, ``name`` and ``roles``."""
    caller: dict[str, str] = request.scope["extensions"]["meshnode"]
    return {"hello": caller["name"], "id": caller["id"]}


async def main() -> None:
    async with two_nodes() as (server, client), meshnode.ext.asgi.serve(server, app, "web", allow=[client.id]):
        http = httpx.AsyncClient(transport=MeshTransport(client))
        async with http:
            found = (await http.get("http://web.server.mesh/", headers={"x-forwarded-for": "nonsense"})).json()
            print("hello", found["hello"])
            print("its id is the one that it has proven:", found["id"] == str(client.id))


asyncio.run(main())
