"""The way out: every datagram that leaves a node passes here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from meshnode.base.metrics import Metrics, describe
from meshnode.base.path import Hop, Path, ViaRelay
from meshnode.errors import InvalidId
from meshnode.identity.node_id import NodeId
from meshnode.identity.sealing import Sealer

SEND_ERRORS = describe("send_errors", "datagrams that the system refused to send (no route, say)")
WEAK_ID = describe("drop_weak_id", "sealed datagrams not sent: the id is no point of the curve")


class Transport(Protocol):
    """Where datagrams go; ``send`` returns False when the system refused (no route, say).

    A *side* is an extra UDP socket, named by a number: a ``ViaSocket`` names it, as a way out and as the source of what
    comes in by it. ``open_sides`` returns those that could be had.
    """

    def send(self, path: Hop, datagrams: list[bytes]) -> bool: ...
    def open_sides(self, count: int) -> list[int]: ...
    def close_side(self, side: int) -> None: ...


Wrap = Callable[[NodeId, ViaRelay, list[bytes]], tuple[Hop, list[bytes]] | None]


class Sender:
    """Sends to a peer by one of its paths; ``wrap`` makes frames of what goes through a relay.

    ``note`` is told every path that something goes by.
    """

    def __init__(
        self,
        link: Transport,
        sealer: Sealer,
        metrics: Metrics,
        wrap: Wrap,
        note: Callable[[Hop], None],
    ) -> None:
        self._link = link
        self._sealer = sealer
        self._metrics = metrics
        self._wrap = wrap
        self._note = note

    def send(self, peer: NodeId, path: Path, datagrams: list[bytes]) -> None:
        """Send datagrams, in relay frames when the path is relayed.

        Errors of the socket are only counted: a path that carries nothing is found by its silence.
        """
        if isinstance(path, ViaRelay):
            wrapped = self._wrap(peer, path, datagrams)
            if wrapped is None:
                return
            path, datagrams = wrapped
        self._note(path)
        if not self._link.send(path, datagrams):
            self._metrics.count(SEND_ERRORS)

    def send_sealed(self, peer: NodeId, path: Path, body: bytes) -> None:
        """Seal ``body`` to ``peer`` and send it.

        Dropped, and counted, when the id is no point of the curve, as a false contact may be.
        """
        try:
            datagram = self._sealer.seal(peer, body)
        except InvalidId:  # a lying contact: 32 bytes that are no point of the curve
            self._metrics.count(WEAK_ID)
            return
        self.send(peer, path, [datagram])
