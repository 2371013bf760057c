"""The way out: every datagram that leaves a node passes here, and is charged to its address's credit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from meshnode.base.metrics import Metrics, describe
from meshnode.base.path import Hop, Path, ViaRelay
from meshnode.errors import InvalidId
from meshnode.identity.node_id import NodeId
from meshnode.identity.sealing import SEAL_OVERHEAD, Sealer
from meshnode.nat.filtering import FilterView
from meshnode.stack.address_credit import AddressCredit, Cause

SEND_ERRORS = describe("send_errors", "datagrams that the system refused to send (no route, say)")
UNEARNED = describe("not_earned", "datagrams not sent, or not yet: their host has answered nothing and earned no more")
WEAK_ID = describe("drop_weak_id", "sealed datagrams not sent: the id is no point of the curve")


class Transport(Protocol):
    """Where datagrams go; ``send`` returns False when the system refused (no route, say).

    A *side* is an extra UDP socket, named by a number: a ``ViaSocket`` names it, as a way out and as the source of what
    comes in by it. ``open_sides`` returns those that could be had, at ``host`` or where the node's own socket is.
    """

    def send(self, path: Hop, datagrams: list[bytes]) -> bool: ...
    def open_sides(self, count: int, host: str = "") -> list[int]: ...
    def close_side(self, side: int) -> None: ...


Wrap = Callable[[NodeId, ViaRelay, list[bytes]], tuple[Hop, list[bytes]] | None]


class Sender:
    """Sends to a peer by one of its paths; ``wrap`` makes frames of what goes through a relay.

    ``filters`` is told every path that something goes by. To an address that has answered nothing goes what ``credit``
    allows for the ``cause`` that the caller names; the rest is not sent, and counted.
    """

    def __init__(
        self,
        link: Transport,
        sealer: Sealer,
        metrics: Metrics,
        wrap: Wrap,
        filters: FilterView,
        credit: AddressCredit,
        monotonic: Callable[[], float],
    ) -> None:
        self.only: frozenset[NodeId] | None = None  # what alone gets sealed datagrams, while this node stands down
        self._link = link
        self._sealer = sealer
        self._metrics = metrics
        self._wrap = wrap
        self._filters = filters
        self._noted = filters.noted
        self._credit = credit
        self._proven = credit.proven
        self._monotonic = monotonic

    def send(self, peer: NodeId, path: Path, datagrams: list[bytes], cause: Cause = Cause.ANSWER) -> int:
        """Send datagrams, in relay frames when the path is relayed; return how many, from the first on, may go.

        Errors of the socket are only counted: a path that carries nothing is found by its silence.
        """
        count = len(datagrams)
        if isinstance(path, ViaRelay):
            wrapped = self._wrap(peer, path, datagrams)
            if wrapped is None:
                return count
            path, datagrams = wrapped
        if path not in self._proven:
            count = self._charge(path, [*map(len, datagrams)], cause)
            datagrams = datagrams[:count]
        if datagrams:
            if path not in self._noted:
                self._filters.sent(path)
            if not self._link.send(path, datagrams):
                self._metrics.count(SEND_ERRORS)
        return count

    def forward(self, path: Hop, frames: list[bytes]) -> None:
        """Send relay frames to the client that they are for."""
        if self.only is not None:
            return
        if path not in self._proven:
            frames = frames[: self._charge(path, [*map(len, frames)], Cause.ANSWER)]
        if frames and not self._link.send(path, frames):
            self._metrics.count(SEND_ERRORS, len(frames))

    def _charge(self, path: Path, sizes: list[int], cause: Cause) -> int:
        count = self._credit.charge(path, sizes, cause, self._monotonic())
        if count < len(sizes):
            self._metrics.count(UNEARNED, len(sizes) - count)
        return count

    def send_sealed(self, peer: NodeId, path: Path, body: bytes, cause: Cause = Cause.ANSWER) -> bool:
        """Seal ``body`` to ``peer`` and send it; False when the address may not be sent it.

        Dropped, and counted, when the id is no point of the curve, as a false contact may be.
        """
        if self.only is not None and peer not in self.only:
            return True
        if path not in self._proven and not self._charge(path, [len(body) + SEAL_OVERHEAD], cause):
            return False  # before it costs a seal
        try:
            datagram = self._sealer.seal(peer, body)
        except InvalidId:  # a lying contact: 32 bytes that are no point of the curve
            self._metrics.count(WEAK_ID)
            return True
        if isinstance(path, ViaRelay):
            return self.send(peer, path, [datagram], cause) == 1
        self._filters.sent(path)
        if not self._link.send(path, [datagram]):
            self._metrics.count(SEND_ERRORS)
        return True
