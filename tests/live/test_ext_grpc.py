"""gRPC over mesh streams: grpclib and grpcio at both ends, moves, the caller's identity."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import grpclib
import pytest
from grpclib.client import UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import CodecBase

import meshnode
from meshnode.ext import grpc as grpcio_adapter
from meshnode.ext import grpclib as grpclib_adapter
from tests.conftest import MakeNode
from tests.given_time import wait_for
from tests.live.ext_mesh import LINES, PAUSE_S, Pair, pair

COUNT, CALLER, HANG = ("/test.Service/" + name for name in ("Count", "Caller", "Hang"))


class Bytes(CodecBase):
    """Messages that are bytes, so that no compiler of protocol buffers is needed."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


class Servable:
    """The service for grpclib."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def count(self, stream: Any) -> None:
        await stream.recv_message()
        for number in range(LINES):
            await stream.send_message(b"%d" % number)
            await asyncio.sleep(PAUSE_S)

    async def caller(self, stream: Any) -> None:
        await stream.recv_message()
        await stream.send_message(str(stream.peer.addr()[0]).encode())

    async def hang(self, stream: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    def __mapping__(self) -> dict[str, Handler]:
        return {
            COUNT: Handler(self.count, Cardinality.UNARY_STREAM, bytes, bytes),
            CALLER: Handler(self.caller, Cardinality.UNARY_UNARY, bytes, bytes),
            HANG: Handler(self.hang, Cardinality.UNARY_UNARY, bytes, bytes),
        }


def grpcio_server() -> Any:
    async def count(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for number in range(LINES):
            yield b"%d" % number
            await asyncio.sleep(PAUSE_S)

    server = grpc.aio.server()
    handlers = {"Count": grpc.unary_stream_rpc_method_handler(count)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", handlers)])
    return server


@pytest.fixture
async def nodes(make_node: MakeNode) -> Pair:
    return await pair(make_node)


def grpclib_serve(nodes: Pair, **allow: Any) -> AbstractAsyncContextManager[Any]:
    return grpclib_adapter.serve(nodes.there, [Servable()], "rpc", codec=Bytes(), **allow)


def grpcio_serve(nodes: Pair, **allow: Any) -> AbstractAsyncContextManager[Any]:
    return grpcio_adapter.serve(nodes.there, grpcio_server(), "rpc", **allow)


@pytest.mark.parametrize("serve", [grpclib_serve, grpcio_serve])
async def test_a_stream_to_grpclibs_client_goes_on_while_both_ends_move(nodes: Pair, serve: Any) -> None:
    async with (
        serve(nodes, allow=[nodes.here.id]),
        grpclib_adapter.MeshChannel(nodes.here, nodes.there.id, "rpc", codec=Bytes()) as channel,
        UnaryStreamMethod(channel, COUNT, bytes, bytes).open() as stream,
        nodes.moving(),
    ):
        await stream.send_message(b"", end=True)
        assert [int(message) async for message in stream] == list(range(LINES))


@pytest.mark.parametrize("serve", [grpclib_serve, grpcio_serve])
async def test_a_stream_to_grpcios_client_goes_on_while_both_ends_move(nodes: Pair, serve: Any) -> None:
    async with (
        serve(nodes, allow=[nodes.here.id]),
        grpcio_adapter.channel(nodes.here, "there", "rpc") as channel,
        nodes.moving(),
    ):
        numbers = [int(message) async for message in channel.unary_stream(COUNT)(b"")]
    assert numbers == list(range(LINES))


async def test_the_peer_of_a_call_is_the_proven_id_whatever_its_metadata_says(nodes: Pair) -> None:
    metadata = {"x-forwarded-for": str(nodes.there.id), "peer": str(nodes.there.id)}
    async with (
        grpclib_serve(nodes, allow="any"),
        grpclib_adapter.MeshChannel(nodes.here, "there", "rpc", codec=Bytes()) as channel,
    ):
        answer = await UnaryUnaryMethod(channel, CALLER, bytes, bytes)(b"", metadata=metadata)
    assert answer == str(nodes.here.id).encode()


async def test_a_call_that_hangs_is_cancelled_by_its_deadline_and_with_its_service(nodes: Pair) -> None:
    servable = Servable()
    serving = grpclib_adapter.serve(nodes.there, [servable], "rpc", allow="any", codec=Bytes())
    async with serving, grpclib_adapter.MeshChannel(nodes.here, "there", "rpc", codec=Bytes()) as channel:
        await UnaryUnaryMethod(channel, CALLER, bytes, bytes)(b"")  # so that the deadline begins with a connection
        method = UnaryUnaryMethod(channel, HANG, bytes, bytes)
        with pytest.raises(asyncio.TimeoutError):
            await method(b"", timeout=0.3)
        await wait_for(servable.cancelled.wait(), 10)
        hanging = asyncio.create_task(method(b""))
        await asyncio.sleep(0.2)
    with pytest.raises((grpclib.GRPCError, grpclib.exceptions.StreamTerminatedError)):
        await wait_for(hanging, 10)


async def test_a_node_that_is_not_allowed_has_no_call(nodes: Pair) -> None:
    async with (
        grpclib_serve(nodes),
        grpclib_adapter.MeshChannel(nodes.here, "there", "rpc", codec=Bytes()) as channel,
    ):
        with pytest.raises(meshnode.PolicyDenied):
            await UnaryUnaryMethod(channel, CALLER, bytes, bytes)(b"")
    async with grpcio_serve(nodes), grpcio_adapter.channel(nodes.here, "there", "rpc") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await channel.unary_unary(CALLER)(b"")
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
