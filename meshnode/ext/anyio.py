"""anyio over the mesh: a ``ByteStream`` to a service of a node, and a ``Listener`` that is one.

It stands on anyio's abstract classes alone; anyio's backend is asyncio, which the node runs on. Extra:
``meshnode[anyio]``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from meshnode.errors import ConnectionLost, MeshError
from meshnode.ext.requirement import require
from meshnode.identity.node_id import NodeId
from meshnode.sdk.node import Node
from meshnode.sdk.service import LIMIT
from meshnode.sdk.streams import MeshReader, MeshStream, MeshWriter

require("anyio", "anyio", (4, 10), (5,))

import anyio  # noqa: E402
import anyio.lowlevel  # noqa: E402
from anyio import abc  # noqa: E402

Allow = str | NodeId | Iterable[str | NodeId]


class MeshAttribute(anyio.TypedAttributeSet):
    """What ``stream.extra`` tells of a mesh stream."""

    peer: NodeId = anyio.typed_attribute()
    """The node at the other end, which has proven its key."""
    service: str = anyio.typed_attribute()
    """The service's name."""


class MeshByteStream(abc.ByteStream):
    """A mesh stream, which ``node.open`` returned, as anyio's ``ByteStream``; it survives every move of both nodes.

    Errors are anyio's: ``EndOfStream`` after the peer's clean end, ``BrokenResourceError`` after any other, with the
    mesh's error as its cause, ``ClosedResourceError`` once it was closed here.
    """

    def __init__(self, stream: MeshStream) -> None:
        self._reader, self._writer = stream
        self._receiving, self._sending = anyio.ResourceGuard("receiving from"), anyio.ResourceGuard("sending to")
        self._is_closed = False
        self.closed = asyncio.Event()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """The attributes of ``MeshAttribute``."""
        about = self._writer.get_extra_info
        return {MeshAttribute.peer: lambda: about("peer"), MeshAttribute.service: lambda: about("service")}

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        """Receive at least one byte, and at most ``max_bytes``."""
        with self._receiving:
            await anyio.lowlevel.checkpoint()
            self._check_open()
            try:
                data = await self._reader.read(max_bytes)
            except MeshError as error:
                raise self._broken() from error
        if data:
            return data
        self._check_open()
        raise anyio.EndOfStream

    async def send(self, item: bytes) -> None:
        """Send bytes; waits while more than 1 MiB is not acknowledged by the peer."""
        with self._sending:
            await anyio.lowlevel.checkpoint()
            self._check_open()
            try:
                self._writer.write(item)
                await self._writer.drain()
            except MeshError as error:
                raise self._broken() from error

    async def send_eof(self) -> None:
        """End this direction behind what was sent; the other one stays open."""
        with self._sending:
            await anyio.lowlevel.checkpoint()
            if not self._is_closed:
                self._writer.write_eof()

    async def aclose(self) -> None:
        """Close it, and wait until the peer has what was sent; one that is cancelled drops the stream."""
        self._is_closed = True
        try:
            await anyio.lowlevel.checkpoint()  # one that is cancelled already comes no further
            self._writer.close()
            with suppress(ConnectionLost):
                await self._writer.wait_closed()
        except BaseException:
            self._writer.reset()
            raise
        finally:
            self.closed.set()

    def _check_open(self) -> None:
        if self._is_closed:
            raise anyio.ClosedResourceError

    def _broken(self) -> Exception:
        return anyio.ClosedResourceError() if self._is_closed else anyio.BrokenResourceError()


class MeshListener(abc.Listener[MeshByteStream]):
    """A service as anyio's ``Listener``: streams of peers wait for ``serve``. Arguments are as for ``node.serve``."""

    def __init__(self, node: Node, service: str, allow: Allow = (), *, limit: int = LIMIT) -> None:
        self._sent, self._came = anyio.create_memory_object_stream[MeshByteStream](0)
        self.service = node.serve(service, self._on_stream, allow, accept=False, limit=limit)

    async def _on_stream(self, reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        stream = MeshByteStream(MeshStream(reader, writer))
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # not accepted: its opener is told so
            await self._sent.send(stream)
            await stream.closed.wait()

    async def serve(self, handler: Callable[[MeshByteStream], Any], task_group: abc.TaskGroup | None = None) -> None:
        """Accept streams, and start ``handler(stream)`` for each in a task group, until the listener is closed.

        The handler closes its stream, by ``async with stream``.
        """
        if task_group is None:
            async with anyio.create_task_group() as task_group:
                return await self.serve(handler, task_group)
        with suppress(anyio.EndOfStream, anyio.ClosedResourceError):
            while True:
                stream = await self._came.receive()
                stream._writer.accept()
                task_group.start_soon(handler, stream)

    async def aclose(self) -> None:
        """Withdraw the service; streams that were accepted go on."""
        self.service.close()
        self._sent.close()
        self._came.close()
        await anyio.lowlevel.checkpoint()


async def connect(node: Node, peer: NodeId | str, service: str) -> MeshByteStream:
    """Open a stream to a service of one node; raises as ``node.open``."""
    return MeshByteStream(await node.open(peer, service))
