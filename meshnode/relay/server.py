"""The relay's side: reservations, limits, forwarding and introductions. Sans-IO.

A reservation lives as long as the client's QUIC connection to the relay; it follows the client's moves because the
driver sends to wherever that connection's path goes. A frame costs the relay two short MACs and two look-ups, and
never makes more than one frame of the same size: a relay amplifies nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from meshnode.base.bounded import BoundedDict
from meshnode.base.clock import Entropy
from meshnode.base.limits import MAX_RELAY_FLOWS, RELAY_BURST_S, RELAY_CONSENT_S, RELAY_INTRODUCE_S
from meshnode.base.metrics import Metrics, describe
from meshnode.base.token_bucket import TokenBucket
from meshnode.identity.node_id import NodeId
from meshnode.relay.frames import DOWN, KEY_LENGTH, RESERVATION_LENGTH, UP, Frame, label, make_frame, proven

FORWARDED = describe("relay_forwarded", "frames carried for others")
FORWARDED_BYTES = describe("relay_forwarded_bytes", "bytes carried for others")
BAD_MAC = describe("relay_bad_mac", "frames dropped: not made by the holder of the reservation")
NO_PEER = describe("relay_no_peer", "frames dropped: their receiver has no reservation here")
OVER_LIMIT = describe("relay_over_limit", "frames dropped: their sender is over its limit")
OVER_TOTAL = describe("relay_over_total", "frames dropped: the relay is over its own limit")
REFUSED = describe("relay_refused", "reservations refused")
NO_CONSENT = describe("relay_no_consent", "introductions refused: the other end has sent the asker nothing")
TOO_SOON = describe("relay_introduce_rate", "introductions refused: asked too often")


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """Bytes and packets a second, for one client and for all; and how many clients."""

    client_bytes: float = 10e6
    client_packets: float = 10_000
    total_bytes: float = 50e6
    total_packets: float = 50_000
    clients: int = 2_000


class Reservation:
    """One client's reservation: its leg's id and key, its limits and what was forwarded for it."""

    __slots__ = ("bytes", "client", "forwarded", "id", "key", "packets", "refused")

    def __init__(self, client: NodeId, reservation: bytes, key: bytes, limits: RelayLimits, now: float) -> None:
        self.client = client
        self.id = reservation
        self.key = key
        self.bytes = _bucket(limits.client_bytes, now)
        self.packets = _bucket(limits.client_packets, now)
        self.forwarded = 0
        self.refused = 0


class RelayServer:
    """All reservations at this relay; ``allow`` is the operator's rule."""

    def __init__(
        self,
        limits: RelayLimits,
        allow: Callable[[NodeId], bool],
        entropy: Entropy,
        metrics: Metrics,
        now: float,
    ) -> None:
        self.limits = limits
        self._allow = allow
        self._entropy = entropy
        self._metrics = metrics
        self._by_id: dict[bytes, Reservation] = {}
        self._by_label: dict[bytes, Reservation] = {}
        self._bytes = _bucket(limits.total_bytes, now)
        self._packets = _bucket(limits.total_packets, now)
        self._flows: BoundedDict[bytes, float] = BoundedDict(MAX_RELAY_FLOWS)  # sender and receiver -> when last
        self._introduced: BoundedDict[bytes, float] = BoundedDict(MAX_RELAY_FLOWS)

    def __len__(self) -> int:
        return len(self._by_id)

    def reserve(self, client: NodeId, now: float) -> Reservation | str:
        """Return the client's reservation, a new one when it has none, or why it is refused (counted).

        Refused are clients that ``allow`` rejects, one too many (``RelayLimits.clients``), and one whose label another
        client has.
        """
        held = self._by_label.get(label(client))
        if held is not None and held.client == client:
            return held
        reason = ""
        if not self._allow(client):
            reason = "this relay does not serve you"
        elif held is not None or len(self._by_id) >= self.limits.clients:
            reason = "this relay is full"
        if reason:
            self._metrics.count(REFUSED)
            return reason
        made = Reservation(client, self._entropy(RESERVATION_LENGTH), self._entropy(KEY_LENGTH), self.limits, now)
        self._by_id[made.id] = self._by_label[label(client)] = made
        return made

    def serves(self, client: NodeId) -> bool:
        """Return True when ``client`` holds a reservation."""
        return label(client) in self._by_label

    def release(self, client: NodeId) -> None:
        """Forget the client's reservation, for its connection is over.

        Frames of that reservation are no longer forwarded; nothing happens when there is none.
        """
        held = self._by_label.get(label(client))
        if held is not None and held.client == client:
            del self._by_label[label(client)], self._by_id[held.id]

    def knows(self, reservation: bytes) -> bool:
        """Return True when this relay forwards frames of this reservation."""
        return reservation in self._by_id

    def forward(self, frame: Frame, now: float) -> tuple[NodeId, bytes] | None:
        """Return the node that the frame is for and the frame to send there; None when it is dropped (counted).

        Both the client's and the relay's total limits of bytes and packets apply (``RelayLimits``).
        """
        held = self._by_id[frame.reservation]
        if not proven(frame, held.key, UP):
            self._metrics.count(BAD_MAC)
            return None
        size = len(frame.inner)
        if not (held.packets.take(1, now) and held.bytes.take(size, now)):
            held.refused += 1
            self._metrics.count(OVER_LIMIT)
            return None
        to = self._by_label.get(frame.peer)
        if to is None or to is held:
            self._metrics.count(NO_PEER)
            return None
        if not (self._packets.take(1, now) and self._bytes.take(size, now)):
            self._metrics.count(OVER_TOTAL)
            return None
        held.forwarded += size
        self._metrics.count(FORWARDED)
        self._metrics.count(FORWARDED_BYTES, size)
        sender = label(held.client)
        self._flows.put(sender + frame.peer, now)
        return to.client, make_frame(to.key, DOWN, to.id, sender, frame.inner)

    def may_introduce(self, asker: NodeId, peer: NodeId, now: float) -> bool:
        """Return True when each has sent the other something through this relay within ``RELAY_CONSENT_S``.

        And when their last introduction is at least ``RELAY_INTRODUCE_S`` ago. So no node is made to probe another one
        that it does not talk to already.
        """
        there, back = label(asker) + label(peer), label(peer) + label(asker)
        for flow in (there, back):
            if now - self._flows.get(flow, float("-inf")) > RELAY_CONSENT_S:
                self._metrics.count(NO_CONSENT)
                return False
        pair = min(there, back)
        if now - self._introduced.get(pair, float("-inf")) < RELAY_INTRODUCE_S:
            self._metrics.count(TOO_SOON)
            return False
        self._introduced.put(pair, now)
        return True


def _bucket(rate: float, now: float) -> TokenBucket:
    return TokenBucket(rate, rate * RELAY_BURST_S, now)
