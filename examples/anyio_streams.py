"""anyio's streams over the mesh: a listener that knows its callers, and a client that splits what it reads into lines.

    pip install 'meshnode[anyio]'
    python examples/anyio_streams.py

prints

    hello, client
    you said 3 lines
"""

from __future__ import annotations

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream
from nodes import two_nodes

from meshnode.ext.anyio import MeshAttribute, MeshByteStream, MeshListener, connect


async def main() -> None:
    async with two_nodes() as (server, client), anyio.create_task_group() as group:

        async def answer(stream: MeshByteStream) -> None:
            async with stream:
                known = stream.extra(MeshAttribute.peer) == client.id
                await stream.send(b"hello, %s\n" % (b"client" if known else b"stranger"))
                said = b"".join([piece async for piece in stream])
                await stream.send(b"you said %d lines\n" % said.count(b"\n"))

        listener = MeshListener(server, "greet", allow=[client.id])
        group.start_soon(listener.serve, answer)
        async with await connect(client, "server", "greet") as stream:
            lines = BufferedByteReceiveStream(stream)
            print((await lines.receive_until(b"\n", 100)).decode())
            await server.rebind()  # to another port
            await stream.send(b"one\ntwo\nthree\n")
            await stream.send_eof()
            print((await lines.receive_until(b"\n", 100)).decode())
        group.cancel_scope.cancel()


anyio.run(main)
