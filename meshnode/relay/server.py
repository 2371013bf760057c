"""The relay's side: reservations, limits, forwarding and introductions. Sans-IO.

A reservation lives as long as the client's QUIC connection to the relay; it follows the client's moves because the
driver sends to wherever that connection's path goes. A frame costs the relay two short MACs and two look-ups, and
never makes more than one frame of the same size: a relay amplifies nothing. Ids are free, so places and what is kept of
the relay's total are shared by the networks that clients come from.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from meshnode.base.bounded import BoundedDict
from meshnode.base.clock import Entropy
from meshnode.base.fair_rate import KEPT
from meshnode.base.fair_table import FairTable, Groups
from meshnode.base.limits import MAX_RELAY_FLOWS, MAX_SESSIONS, RELAY_BURST_S, RELAY_CONSENT_S, RELAY_INTRODUCE_S
from meshnode.base.metrics import Metrics, describe
from meshnode.base.token_bucket import RateLimit, TokenBucket
from meshnode.base.value import value
from meshnode.identity.node_id import NodeId
from meshnode.relay.frames import DOWN, KEY_LENGTH, RESERVATION_LENGTH, UP, Frame, label, make_frame, proven

LITTLE = 0.02  # of the total: what a network may send of what is kept; 50 of them together have all of it
LITTLE_BURST_S = 1.0
NEVER = float("-inf")

FORWARDED = describe("relay_forwarded", "frames carried for others")
FORWARDED_BYTES = describe("relay_forwarded_bytes", "bytes carried for others")
BAD_MAC = describe("relay_bad_mac", "frames dropped: not made by the holder of the reservation")
NO_PEER = describe("relay_no_peer", "frames dropped: their receiver has no reservation here")
OVER_LIMIT = describe("relay_over_limit", "frames dropped: their sender is over its limit")
OVER_TOTAL = describe("relay_over_total", "frames dropped: the relay is over its own limit")
REFUSED = describe("relay_refused", "reservations refused")
NO_CONSENT = describe("relay_no_consent", "introductions refused: the other end has sent the asker nothing")
TOO_SOON = describe("relay_introduce_rate", "introductions refused: asked too often")


@value
class RelayLimits:
    """Bytes and packets a second, for one client and for all; and how many clients."""

    client_bytes: float = 10e6
    client_packets: float = 10_000
    total_bytes: float = 50e6
    total_packets: float = 50_000
    clients: int = 2_000


class Reservation:
    """One client's reservation: its leg's id and key, its limits and what was forwarded for it.

    ``little`` is what all clients of its network together may send though others use up the relay's total. ``sent_to``
    says when it last sent each peer something, and ``introduced`` when it was last introduced to each; both by label.
    They are the client's own, so that no number of other ones makes the relay forget with which peers it talks.
    """

    __slots__ = ("bytes", "client", "forwarded", "id", "introduced", "key", "little", "packets", "refused", "sent_to")

    def __init__(
        self, client: NodeId, reservation: bytes, key: bytes, little: RateLimit, limits: RelayLimits, now: float
    ) -> None:
        self.client = client
        self.little = little
        self.id = reservation
        self.key = key
        self.bytes = _bucket(limits.client_bytes, now)
        self.packets = _bucket(limits.client_packets, now)
        self.forwarded = 0
        self.refused = 0
        self.sent_to: BoundedDict[bytes, float] = BoundedDict(MAX_RELAY_FLOWS)
        self.introduced: BoundedDict[bytes, float] = BoundedDict(MAX_RELAY_FLOWS)


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
        self._places: FairTable[NodeId] = FairTable(limits.clients, newest_goes=True)
        self._little: BoundedDict[Hashable, RateLimit] = BoundedDict(MAX_SESSIONS)
        self._total = RateLimit(_bucket(limits.total_packets, now), _bucket(limits.total_bytes, now))

    def __len__(self) -> int:
        return len(self._by_id)

    def reserve(self, client: NodeId, groups: Groups, now: float) -> tuple[Reservation | str, NodeId | None]:
        """Return the client's reservation, a new one when it has none, or why it is refused (counted).

        Refused are clients that ``allow`` rejects, and one whose label another client has. Of one too many
        (``RelayLimits.clients``) the newest of the network with most goes: this one, or the one that is returned, which
        is to be told.
        """
        held = self._by_label.get(label(client))
        if held is not None and held.client == client:
            return held, None
        if not self._allow(client):
            return self._refuse("this relay does not serve you"), None
        if held is not None:
            return self._refuse("this relay is full"), None
        gone = self._places.add(client, *groups)
        if gone == client:
            return self._refuse("this relay is full"), None
        if gone is not None:
            self.release(gone)
        leg, key = self._entropy(RESERVATION_LENGTH), self._entropy(KEY_LENGTH)
        made = Reservation(client, leg, key, self._little_of(groups[0], now), self.limits, now)
        self._by_id[made.id] = self._by_label[label(client)] = made
        return made, gone

    def _refuse(self, reason: str) -> str:
        self._metrics.count(REFUSED)
        return reason

    def _little_of(self, network: Hashable, now: float) -> RateLimit:
        little = self._little.get(network)
        if little is None:
            limits = self.limits
            little = RateLimit(
                _bucket(limits.total_packets * LITTLE, now, LITTLE_BURST_S),
                _bucket(limits.total_bytes * LITTLE, now, LITTLE_BURST_S),
            )
        self._little.put(network, little)
        return little

    def moved(self, client: NodeId, groups: Groups, now: float) -> None:
        """Take note that a client comes from another network.

        Nothing happens when it has no reservation.
        """
        held = self._held_by(client)
        if held is not None:
            held.little = self._little_of(groups[0], now)

    def clients(self) -> list[NodeId]:
        """Return the nodes that hold a reservation."""
        return [held.client for held in self._by_id.values()]

    def _held_by(self, client: NodeId) -> Reservation | None:
        held = self._by_label.get(label(client))
        return held if held is not None and held.client == client else None

    def serves(self, client: NodeId) -> bool:
        """Return True when ``client`` holds a reservation."""
        return self._held_by(client) is not None

    def release(self, client: NodeId) -> None:
        """Forget the client's reservation, for its connection is over.

        Frames of that reservation are no longer forwarded; nothing happens when there is none.
        """
        held = self._held_by(client)
        if held is not None:
            self._places.discard(client)
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
        if not self._is_in_total(held, size, now):
            self._metrics.count(OVER_TOTAL)
            return None
        held.forwarded += size
        self._metrics.count(FORWARDED)
        self._metrics.count(FORWARDED_BYTES, size)
        held.sent_to.put(frame.peer, now)
        return to.client, make_frame(to.key, DOWN, to.id, label(held.client), frame.inner)

    def _is_in_total(self, held: Reservation, size: int, now: float) -> bool:
        """Charge a frame to the total, of which a share is kept for networks that send little."""
        if not held.little.take(size, now):
            total = self._total
            kept = KEPT * total.messages.burst, KEPT * total.octets.burst
            if total.messages.wait(1 + kept[0], now) > 0 or total.octets.wait(size + kept[1], now) > 0:
                return False
        return self._total.take(size, now)

    def may_introduce(self, asker: NodeId, peer: NodeId, now: float) -> bool:
        """Return True when each has sent the other something through this relay within ``RELAY_CONSENT_S``.

        And when their last introduction is at least ``RELAY_INTRODUCE_S`` ago. So no node is made to probe another one
        that it does not talk to already.
        """
        one, two = self._held_by(asker), self._held_by(peer)
        if one is None or two is None:
            self._metrics.count(NO_CONSENT)
            return False
        pairs = (one, label(peer)), (two, label(asker))
        if any(now - held.sent_to.get(other, NEVER) > RELAY_CONSENT_S for held, other in pairs):
            self._metrics.count(NO_CONSENT)
            return False
        if any(now - held.introduced.get(other, NEVER) < RELAY_INTRODUCE_S for held, other in pairs):
            self._metrics.count(TOO_SOON)
            return False
        for held, other in pairs:
            held.introduced.put(other, now)
        return True


def _bucket(rate: float, now: float, burst_s: float = RELAY_BURST_S) -> TokenBucket:
    return TokenBucket(rate, rate * burst_s, now)
