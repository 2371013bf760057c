"""The handle of an attached program's server of protocols."""

from __future__ import annotations

import asyncio
from typing import cast

from meshnode.daemon.attached.parts import AttachedService, AttachedWriter
from meshnode.daemon.attached.transport import CarriedTransport
from meshnode.identity.node_id import NodeId
from meshnode.sdk.asyncio_server import ProtocolServer


class AttachedServer(ProtocolServer):
    """What ``create_server`` of an attached node returns: like ``asyncio.Server``.

    ``async with`` closes it at the end and waits until the connections that it has are over.
    """

    service: AttachedService

    async def take(self, reader: asyncio.StreamReader, writer: AttachedWriter, peer: NodeId) -> None:
        """Let a protocol have a stream until it is over; nothing of it was read before."""
        transport = cast("CarriedTransport", writer.transport)
        protocol = self._factory()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        await self._until_over(transport)
