"""asyncio protocols on mesh streams, whose transports have addresses of the form that libraries expect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from meshnode.identity.node_id import NodeId
from meshnode.sdk.asyncio_transport import ProtocolTransport, until_lost
from meshnode.sdk.node import Node
from meshnode.sdk.service import Handler
from meshnode.sdk.streams import MeshReader, MeshStream, MeshWriter, unwrapped

P = TypeVar("P", bound=asyncio.BaseProtocol)


class AddressedTransport(ProtocolTransport):
    """A transport whose ``"peername"`` and ``"sockname"`` are ``(ID, 0)``: libraries take an address for a pair."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return something about the stream, as ``ProtocolTransport`` does, but addresses as pairs."""
        found = super().get_extra_info(name, default)
        return (str(found), 0) if name in ("peername", "sockname") else found


def handler_of(
    factory: Callable[[], asyncio.BaseProtocol], ready: Callable[[], Awaitable[None]] | None = None
) -> Handler:
    """Return a handler for ``node.serve`` that runs a protocol on each stream, once it is ready to serve."""

    async def handler(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        if ready is not None:
            await ready()
        await until_lost(AddressedTransport(*unwrapped(MeshStream(reader, writer)), factory))

    return handler


async def create_connection(
    node: Node, factory: Callable[[], P], peer: NodeId | str, service: str
) -> tuple[asyncio.Transport, P]:
    """Open a stream, and let a protocol have it, as ``node.create_connection`` does.

    Raises as ``node.open``.
    """
    protocol = factory()
    stream, ends = unwrapped(await node.open(peer, service))
    try:
        return AddressedTransport(stream, ends, lambda: protocol), protocol
    except BaseException:  # of its connection_made
        stream.reset()
        raise
