"""A gRPC stream by grpclib from one node to another; it goes on while both move.

    pip install 'meshnode[grpclib]'
    python examples/grpclib_stream.py

prints

    number 0
    number 1
    number 2
"""

from __future__ import annotations

import asyncio

from google.protobuf.wrappers_pb2 import Int32Value, StringValue
from grpclib.client import UnaryStreamMethod
from grpclib.const import Cardinality, Handler
from nodes import two_nodes

import meshnode.ext.grpclib

COUNT = "/example.Counter/Count"


class Counter:
    """What the compiler of protocol buffers writes for a service of one method, by hand."""

    async def count(self, stream):
        """Send as many numbers as are asked for."""
        request = await stream.recv_message()
        for number in range(request.value):
            await stream.send_message(StringValue(value=f"number {number}"))
            await asyncio.sleep(0.2)

    def __mapping__(self):
        return {COUNT: Handler(self.count, Cardinality.UNARY_STREAM, Int32Value, StringValue)}


async def main() -> None:
    async with two_nodes() as (server, client):
        serving = meshnode.ext.grpclib.serve(server, [Counter()], "counter", allow=[client.id])
        channel = meshnode.ext.grpclib.MeshChannel(client, "server", "counter")
        async with serving, channel:
            method = UnaryStreamMethod(channel, COUNT, Int32Value, StringValue)
            async with method.open() as stream:
                await stream.send_message(Int32Value(value=3), end=True)
                await asyncio.gather(server.rebind(), client.rebind())  # both move to other ports
                async for message in stream:
                    print(message.value)


asyncio.run(main())
