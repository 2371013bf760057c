"""All sockets of a node as one ``Transport``: its UDP socket, extra UDP sockets, WebSocket tunnels."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Container, Iterable
from typing import TYPE_CHECKING, assert_never

from meshnode.base.address import Addr
from meshnode.base.metrics import Metrics
from meshnode.base.path import Hop, Path, ViaSocket, ViaTunnel
from meshnode.config import Config
from meshnode.errors import AddressInUse, MeshError
from meshnode.identity.sealing import Sealer
from meshnode.nat.local_networks import is_loopback
from meshnode.runtime.acceptor import Accepted
from meshnode.runtime.extra_sockets import ExtraSockets
from meshnode.runtime.udp import OnBatch, UdpSocket
from meshnode.runtime.websocket import OnDatagram, WebSockets

if TYPE_CHECKING:
    from meshnode.nat.own_addresses import WayOut
    from meshnode.nat.translation import Translation
    from meshnode.runtime.nat64 import Nat64

log = logging.getLogger("meshnode.node")

REOPEN_S = 1.0  # between two times that the UDP socket is opened again, or cannot be
KEPT = 2 << 20  # bytes: half of what the allocator keeps
CHOICES = 3  # more of a port that is free for UDP and for TCP; of 28,000 a busy host has used some hundreds


def keep_heap() -> None:
    """Have glibc keep 4 MiB that were freed at the heap's end, which it gives back from 128 kB on.

    Each batch of datagrams takes its pages again else: a third of a receiver's CPU in a transfer. What it keeps is
    twice the largest block that it had to map and got back (mallopt(3), M_MMAP_THRESHOLD); this one is never written.
    """
    block = bytes(KEPT)
    del block


class Sockets:
    """The node's ``Transport``. Raises AddressInUse or ConfigError when the listen address cannot be had.

    Attributes:
        local: The address of the UDP socket; while the kernel has ended that, the one that it had.
        on_reopened: Is called when it was opened again, which is a move: what ended it may have changed the routes.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: Config,
        sealer: Sealer,
        on_batch: OnBatch,
        on_tunnelled: OnDatagram,
        metrics: Metrics,
    ) -> None:
        keep_heap()
        self._loop = loop
        self._config = config
        self._hosts: frozenset[str] = frozenset()  # this host's addresses
        self._nat64: Nat64 | None = None
        self.on_reopened: Callable[[], None] = lambda: None
        self._reopening: asyncio.TimerHandle | None = None
        self._tried = float("-inf")  # when it was opened again last, or could not be
        self._fails = False
        self.udp = UdpSocket(loop, on_batch, metrics, on_end=self._reopen_soon)
        self._bind(config.listen_addr)
        self.extra = ExtraSockets(loop, on_batch, metrics)
        self.accepted = Accepted(metrics)  # connections of all listeners: tunnels, forwards, the control socket
        self.tunnels = WebSockets(loop, sealer.knock, sealer.check_knock, on_tunnelled, self.accepted)

    def bind(self, target: Addr) -> None:
        """Move to another local address; what waits at the one before is taken.

        Raises AddressInUse or ConfigError.
        """
        self._bind(target, read_out=True)
        self.listen_for_tunnels()

    def _bind(self, target: Addr, *, read_out: bool = False) -> None:
        self.udp.bind(target, read_out=read_out)
        self._chosen = target.port == 0
        self.local = self.udp.local
        self._stop_reopening()

    def _stop_reopening(self) -> None:
        if self._reopening is not None:
            self._reopening.cancel()

    def _reopen_soon(self) -> None:
        at = max(self._loop.time(), self._tried + REOPEN_S)
        self._reopening = self._loop.call_at(at, self._reopen)

    def _reopen(self) -> None:
        """Open the UDP socket again, which the kernel has ended, where it was; at another port if that may be."""
        self._tried = self._loop.time()
        chosen = self._chosen
        try:
            try:
                self._bind(self.local)
                self._chosen = chosen
            except AddressInUse:
                if not chosen:
                    raise
                self.bind(Addr(self.local.host, 0))
        except MeshError as error:
            if not self._fails:
                log.warning("the system has ended the UDP socket, and it cannot be opened again yet: %s", error)
            self._fails = True
            self._reopen_soon()
        else:
            self._fails = False
            self.on_reopened()

    def listen_for_tunnels(self) -> bool:
        """On a relay, accept WebSockets on the TCP port with the UDP port's number.

        A port that the kernel chose for UDP may be taken for TCP: then it chooses another. Returns False when this node
        is no relay, tunnels are off, or no TCP port can be had.
        """
        if not (self._config.is_relay and self._config.tunnel):
            return False
        certificate = self._config.home_path / "tunnel.pem"
        for _ in range(CHOICES if self._chosen else 0):
            if self.tunnels.listen(self.local, certificate):
                return True
            self._bind(Addr(self.local.host, 0))
        return self.tunnels.listen(self.local, certificate)

    def refuse(
        self, sources: Collection[Path], tunnels: Collection[Path], in_use: Callable[[], Iterable[object]]
    ) -> None:
        """Drop what comes from these sources unread, and close these tunnels.

        The containers may change later. When a flood leaves no room, what comes from the sources ``in_use`` has it.
        """
        self.udp.favour(in_use)
        self.udp.refused = self.extra.refused = sources
        self.tunnels.refused = tunnels

    def on_addresses(self, networks: tuple[tuple[str, int], ...]) -> None:
        """Give tunnels up that were opened from an address which this host has no longer."""
        hosts = frozenset(host for host, _ in networks)
        self.tunnels.leave(self._hosts - hosts)
        self._hosts = hosts

    def on_ways_out(
        self, ways_out: tuple[WayOut, ...], networks: tuple[tuple[str, int], ...], proven: Container[Path]
    ) -> None:
        """Answer from the address that was asked; look for a translator where all ways out are IPv6.

        What comes from a source that is ``proven`` changes no more from where it is answered.
        """
        is_wild = self.local.host in ("::", "0.0.0.0")
        self.udp.answer_from(_others(ways_out, networks) if is_wild else (), proven)
        if self._nat64 is None:
            if self.local.host != "::" or not ways_out or not all(":" in way.source for way in ways_out):
                return
            from meshnode.runtime.nat64 import Nat64  # few hosts have no IPv4

            self._nat64 = Nat64(self._loop, self._translate)
        self._nat64.look(ways_out, networks)

    def _translate(self, translation: Translation | None) -> None:
        self.extra.translation = translation
        self.udp.translate(translation)

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

    def open_sides(self, count: int, host: str = "") -> list[int]:
        """Open extra sockets, at ``host`` or where the node's own is; returns the numbers of those it could have."""
        return self.extra.open(count, Addr(host, 0) if host else self.local)

    def close_side(self, side: int) -> None:
        """Close an extra socket."""
        self.extra.close_one(side)

    # ---- end

    def abort(self) -> None:
        """Close what is bound, at once: the UDP sockets and the listener for tunnels."""
        if self._nat64 is not None:
            self._nat64.stop()
        self.tunnels.stop_listening()
        self.extra.close()
        self._stop_reopening()
        self.udp.close()

    async def close(self) -> None:
        """Close everything; tunnels say goodbye first."""
        await self.tunnels.close()
        self.abort()


def _others(ways_out: tuple[WayOut, ...], networks: tuple[tuple[str, int], ...]) -> list[str]:
    """Return the addresses that are not the ways out, where a family has several: the kernel may take another one."""
    found = []
    for is_ipv6 in (False, True):
        of_family = [host for host, _ in networks if (":" in host) is is_ipv6 and "%" not in host]
        own = [host for host in of_family if not is_loopback(Addr(host, 0))]
        found += [host for host in own if len(own) > 1 and all(host != way.source for way in ways_out)]
    return found
