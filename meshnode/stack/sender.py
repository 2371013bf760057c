"""The way out: every datagram that leaves a node passes here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from meshnode.base.address import RELAY_MARK, Addr
from meshnode.base.metrics import Metrics, describe
from meshnode.errors import InvalidId
from meshnode.identity.node_id import NodeId
from meshnode.identity.sealing import Sealer

SEND_ERRORS = describe("send_errors", "datagrams that the system refused to send (no route, say)")
WEAK_ID = describe("drop_weak_id", "sealed datagrams not sent: the id is no point of the curve")


class Transport(Protocol):
    """Where datagrams go; ``send`` returns False when the system refused (no route, say).

    A *side* is an extra UDP socket, named by a number: what goes to ``addr.through(side)`` leaves by it, and what
    comes in by it has such a source. ``open_sides`` returns those that could be had.
    """

    def send(self, addr: Addr, datagrams: list[bytes]) -> bool: ...
    def open_sides(self, count: int) -> list[int]: ...
    def close_side(self, side: int) -> None: ...


Wrap = Callable[[NodeId, Addr, list[bytes]], "tuple[Addr, list[bytes]] | None"]


class Sender:
    """Sends to a peer at an address of its; ``wrap`` makes frames of what goes through a relay.

    ``note`` is told every address that something goes to.
    """

    def __init__(
        self,
        link: Transport,
        sealer: Sealer,
        metrics: Metrics,
        wrap: Wrap,
        note: Callable[[Addr], None],
    ) -> None:
        self._link = link
        self._sealer = sealer
        self._metrics = metrics
        self._wrap = wrap
        self._note = note

    def send(self, peer: NodeId, addr: Addr, datagrams: list[bytes]) -> None:
        """Send datagrams, in relay frames when the address is a relayed one."""
        if addr.host.startswith(RELAY_MARK):
            wrapped = self._wrap(peer, addr, datagrams)
            if wrapped is None:
                return
            addr, datagrams = wrapped
        self._note(addr)
        if not self._link.send(addr, datagrams):
            self._metrics.count(SEND_ERRORS)

    def send_sealed(self, peer: NodeId, addr: Addr, body: bytes) -> None:
        """Seal ``body`` to ``peer`` and send it."""
        try:
            datagram = self._sealer.seal(peer, body)
        except InvalidId:  # a lying contact: 32 bytes that are no point of the curve
            self._metrics.count(WEAK_ID)
            return
        self.send(peer, addr, [datagram])
