"""anyio's streams over the mesh, by what anyio promises of a ``ByteStream`` and a ``Listener``."""

from __future__ import annotations

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSAttribute

from meshnode import Node
from meshnode.errors import ConnectionLost, PolicyDenied, ServiceNotFound, ServiceUnavailable
from meshnode.ext.anyio import MeshAttribute, MeshByteStream, MeshListener, connect
from tests.conftest import MakeNode, echo
from tests.live.ext_mesh import pair


async def _nodes(make_node: MakeNode) -> tuple[Node, Node]:
    listener = await make_node()
    return listener, await make_node(seed=listener)


async def _echo(stream: MeshByteStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send(data)


async def test_bytes_go_both_ways_and_a_clean_end_is_the_end_of_the_stream(make_node: MakeNode) -> None:
    there, here = await _nodes(make_node)
    async with anyio.create_task_group() as group, MeshListener(there, "echo", allow=[here.id]) as listener:
        group.start_soon(listener.serve, _echo)
        async with await connect(here, there.id, "echo") as stream:
            assert stream.extra(MeshAttribute.peer) == there.id
            assert stream.extra(MeshAttribute.service) == "echo"
            assert stream.extra(TLSAttribute.cipher, None) is None
            await stream.send(b"hello")
            assert await stream.receive(3) == b"hel"
            assert await BufferedByteReceiveStream(stream).receive_exactly(2) == b"lo"
            await stream.send_eof()
            await stream.send_eof()
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send(b"x")
        await stream.aclose()
        group.cancel_scope.cancel()


async def test_a_lost_stream_is_a_broken_resource_and_never_an_end(make_node: MakeNode) -> None:
    there, here = await _nodes(make_node)

    there.serve("echo", echo, allow=["any"])
    stream = await connect(here, there.id, "echo")
    await there.close()
    with pytest.raises(anyio.BrokenResourceError) as broken:
        await stream.receive()
    assert isinstance(broken.value.__cause__, ConnectionLost)
    with pytest.raises(anyio.BrokenResourceError):
        await stream.send(b"x")
    await stream.aclose()


async def test_two_tasks_may_not_receive_at_once(make_node: MakeNode) -> None:
    there, here = await _nodes(make_node)
    there.serve("echo", echo, allow=["any"])
    async with await connect(here, there.id, "echo") as stream, anyio.create_task_group() as group:
        group.start_soon(stream.receive)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await stream.receive()
        group.cancel_scope.cancel()


async def test_a_receive_that_is_cancelled_loses_nothing(make_node: MakeNode) -> None:
    there, here = await _nodes(make_node)
    there.serve("echo", echo, allow=["any"])
    async with await connect(here, there.id, "echo") as stream:
        with anyio.move_on_after(0.02):
            await stream.receive()
        await stream.send(b"x")
        assert await stream.receive() == b"x"


async def test_streams_wait_for_serve_and_are_refused_when_the_listener_closes(make_node: MakeNode) -> None:
    there, here = await _nodes(make_node)
    listener = MeshListener(there, "late", allow=["any"])
    refused: list[type[BaseException]] = []

    async def ask() -> None:
        try:
            await connect(here, there.id, "late")
        except ServiceUnavailable as error:
            refused.append(type(error))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        with anyio.fail_after(30):
            while not listener._came.statistics().tasks_waiting_send:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert not refused
        await listener.aclose()
        await anyio.wait_all_tasks_blocked()
    assert refused == [ServiceUnavailable]
    await listener.serve(_echo)  # returns at once
    with pytest.raises(ServiceNotFound):
        await connect(here, there.id, "late")


async def test_errors_of_opening_are_those_of_the_node(make_node: MakeNode) -> None:
    there, here = await _nodes(make_node)
    async with MeshListener(there, "closed"):
        with pytest.raises(PolicyDenied):
            await connect(here, there.id, "closed")


async def test_a_cancelled_close_drops_the_stream(make_node: MakeNode) -> None:
    there, here = await _nodes(make_node)
    told = anyio.Event()

    async def never_reads(stream: MeshByteStream) -> None:
        async with stream:
            await anyio.sleep(0.3)
            with pytest.raises(anyio.BrokenResourceError):
                async for _ in stream:
                    pass
        told.set()

    async with anyio.create_task_group() as group, MeshListener(there, "slow", allow=["any"]) as listener:
        group.start_soon(listener.serve, never_reads)
        stream = await connect(here, there.id, "slow")
        with anyio.move_on_after(0.05):
            await stream.send(bytes(8 << 20))
        await anyio.aclose_forcefully(stream)
        with anyio.fail_after(10):
            await told.wait()
        group.cancel_scope.cancel()


async def test_megabytes_go_on_while_both_nodes_move(make_node: MakeNode) -> None:
    mesh = await pair(make_node)
    size = 8 << 20
    async with anyio.create_task_group() as group, MeshListener(mesh.there, "echo", allow=["any"]) as listener:
        group.start_soon(listener.serve, _echo)
        async with await connect(mesh.here, mesh.there.id, "echo") as stream, anyio.create_task_group() as both:

            async def send() -> None:
                for _ in range(size >> 16):
                    await stream.send(bytes(1 << 16))
                await stream.send_eof()

            async def move() -> None:
                for _ in range(3):
                    await anyio.sleep(0.05)
                    await mesh.move()

            both.start_soon(send)
            both.start_soon(move)
            got = 0
            async for data in stream:
                got += len(data)
            assert got == size
        group.cancel_scope.cancel()
