"""The client end of a tunnel's WebSocket, with what a relay may make it do bounded. Loaded with the first tunnel."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.frames import Frame, Opcode
from websockets.protocol import Event

from meshnode.base.limits import TUNNEL_EMPTY_BURST, TUNNEL_EMPTY_PER_S
from meshnode.base.token_bucket import TokenBucket

UNACKED_S = 10.0  # that bytes of a tunnel go unacknowledged: two of the probes that a silent peer gets


class TunnelConnect(connect):
    """Opens a WebSocket at the host that was asked for, and at no other that this one names."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Follow none: a relay could have this node call any host and port."""
        return exc


class TunnelConnection(ClientConnection):
    """Ends when the relay sends frames that bring no datagram faster than nodes do.

    Each costs CPU, and the library answers each PING, whether or not the PONGs before it were taken.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._empty = TokenBucket(TUNNEL_EMPTY_PER_S, TUNNEL_EMPTY_BURST, self.loop.time())

    def process_event(self, event: Event) -> None:
        is_datagram = isinstance(event, Frame) and event.opcode is Opcode.BINARY and event.fin and event.data
        if isinstance(event, Frame) and not is_datagram and not self._empty.take(1, self.loop.time()):
            self.transport.abort()
            return
        super().process_event(event)


def limit_silence(websocket: ClientConnection) -> None:
    """Have the kernel give a connection up on which nothing is acknowledged any more: else it takes 15 minutes."""
    with suppress(OSError, AttributeError):  # Linux alone has it
        sock = websocket.transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNACKED_S * 1000))
