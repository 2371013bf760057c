"""A WebSocket over TLS without a mesh: ``serve HOST:PORT PEM`` sends as many bytes as asked, ``fetch URL`` asks."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from pathlib import Path

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from meshnode.runtime.tunnel_tls import client_context, server_context

PIECE = bytes(16_384)


async def send(websocket: ServerConnection) -> None:
    """Send as many bytes as the path says."""
    assert websocket.request is not None
    left = int(websocket.request.path.lstrip("/"))
    while left > 0:
        await websocket.send(PIECE[:left])
        left -= len(PIECE)


async def main() -> None:
    if sys.argv[1] == "serve":
        host, _, port = sys.argv[2].rpartition(":")
        context: ssl.SSLContext = server_context(Path(sys.argv[3]))
        async with serve(send, host, int(port), ssl=context, compression=None) as server:
            print(json.dumps({"ready": True}), flush=True)
            await server.serve_forever()
    async with connect(sys.argv[2], ssl=client_context(), compression=None) as websocket:
        began = time.monotonic()
        got = 0
        async for message in websocket:
            got += len(message)
        print(json.dumps({"MBps": round(got / (time.monotonic() - began) / 1e6, 3)}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
