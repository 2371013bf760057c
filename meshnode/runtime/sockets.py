"""All sockets of a node as one ``Transport``: its UDP socket, extra UDP sockets, WebSocket tunnels."""

from __future__ import annotations

import asyncio
from typing import assert_never

from meshnode.base.address import Addr
from meshnode.base.metrics import Metrics
from meshnode.base.path import Hop, ViaSocket, ViaTunnel
from meshnode.config import Config
from meshnode.identity.sealing import Sealer
from meshnode.runtime.extra_sockets import ExtraSockets
from meshnode.runtime.udp import OnBatch, UdpSocket
from meshnode.runtime.websocket import OnDatagram, WebSockets


class Sockets:
    """The node's ``Transport``. Raises AddressInUse or ConfigError when the listen address cannot be had."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: Config,
        sealer: Sealer,
        on_batch: OnBatch,
        on_tunnelled: OnDatagram,
        metrics: Metrics,
    ) -> None:
        self._config = config
        self.udp = UdpSocket(loop, on_batch, metrics)
        self.udp.bind(config.listen_addr)
        self.extra = ExtraSockets(loop, on_batch, metrics)
        self.tunnels = WebSockets(loop, sealer.knock, sealer.check_knock, on_tunnelled, metrics)

    @property
    def local(self) -> Addr:
        """The address that the UDP socket is bound to."""
        return self.udp.local

    def bind(self, target: Addr) -> None:
        """Move to another local address. Raises AddressInUse or ConfigError."""
        self.udp.bind(target)
        self.listen_for_tunnels()

    def listen_for_tunnels(self) -> bool:
        """On a relay, accept WebSockets on the TCP port with the UDP port's number.

        Returns False when this node is no relay, tunnels are off, or the TCP port is taken.
        """
        if not (self._config.is_relay and self._config.tunnel):
            return False
        return self.tunnels.listen(self.udp.local, self._config.home_path / "tunnel.pem")

    # ---- Transport

    def send(self, path: Hop, datagrams: list[bytes]) -> bool:
        """Send by the socket that the path names: the node's UDP socket, an extra one, or a WebSocket.

        False means that there is no way there: the extra socket is closed, tunnels are off, or the host has no such
        address family. True promises nothing about arrival.
        """
        match path:
            case Addr():
                return self.udp.send(path, datagrams)
            case ViaSocket():
                return self.extra.send(path, datagrams)
            case ViaTunnel():
                return self._config.tunnel and self.tunnels.send(path, datagrams)
            case _:
                assert_never(path)

    def open_sides(self, count: int) -> list[int]:
        """Open extra sockets; returns the numbers of those that could be had."""
        return self.extra.open(count, self.udp.local)

    def close_side(self, side: int) -> None:
        """Close an extra socket."""
        self.extra.close_one(side)

    # ---- end

    def abort(self) -> None:
        """Close what is bound, at once: the UDP sockets and the listener for tunnels."""
        self.tunnels.stop_listening()
        self.extra.close()
        self.udp.close()

    async def close(self) -> None:
        """Close everything; tunnels say goodbye first."""
        await self.tunnels.close()
        self.abort()
