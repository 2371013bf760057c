"""A gRPC stream by grpcio from one node to another; it goes on while both move.

    pip install 'meshnode[grpc]' protobuf
    python examples/grpc_stream.py

prints

    number 0
    number 1
    number 2
"""

from __future__ import annotations

import asyncio

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue
from nodes import two_nodes

import meshnode.ext.grpc


async def count(request, context):
    """Send as many numbers as are asked for."""
    for number in range(request.value):
        yield StringValue(value=f"number {number}")
        await asyncio.sleep(0.2)


def make_server() -> grpc.aio.Server:
    """Make a server as generated code does, by hand."""
    coders = {
        "request_deserializer": Int32Value.FromString,
        "response_serializer": StringValue.SerializeToString,
    }
    handlers = {"Count": grpc.unary_stream_rpc_method_handler(count, **coders)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("example.Counter", handlers)])
    return server


async def main() -> None:
    async with two_nodes() as (server, client):
        serving = meshnode.ext.grpc.serve(server, make_server(), "counter", allow=[client.id])
        async with serving, meshnode.ext.grpc.channel(client, "server", "counter") as channel:
            method = channel.unary_stream(
                "/example.Counter/Count",
                request_serializer=Int32Value.SerializeToString,
                response_deserializer=StringValue.FromString,
            )
            call = method(Int32Value(value=3))
            await asyncio.gather(server.rebind(), client.rebind())  # both move to other ports
            async for message in call:
                print(message.value)


asyncio.run(main())
