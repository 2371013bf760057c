"""An estimate of what an engine keeps for a peer's streams and has not handed on, where the engine does not tell.

What arrives in packets and comes out of no stream is behind a hole, in pieces as small as the peer likes: a byte on its
own takes 96 (measured). So what arrives is added and what is delivered is taken off. An honest peer's backlog rises to
a window while a hole is open, and falls when it is closed. It does not fall by packets that bring nothing new, so what
is delivered and what is sent from here take off more: bytes are sent again without need, and acknowledgements answer
what was sent. Packets count once, and only when they are authentic, so neither junk nor replays add to it.
"""

from __future__ import annotations

from meshnode.base.limits import BACKLOG_PER_S, MAX_UNASKED
from meshnode.quic.engines.common import PeerFault

PACKET = 64  # bytes of a packet that are no stream's: header, tag, a short ACK
FRAME = 8  # the same of a STREAM frame: type, id, offset, length
AGAIN = 0.25  # of what is delivered, that may come once more: lost acknowledgements, and packets that were only late
SINGLY = 64  # receptions, so that a peer that sends a packet twice with each hides little
ASKING = 8_192  # bytes that ask for MAX_UNASKED of answers or more: 130 PATH_CHALLENGEs are in 1,200
ACKS = 0.25  # of what is sent, that its acknowledgements may take: with 20 % lost they have hundreds of ranges


class Backlog:
    """Bytes that have arrived and were not delivered, by estimate.

    Attributes:
        size: How many they were at the last ``add``; 0 while what comes is delivered at once.
        singly: Receptions to come that are fed datagram by datagram, for some were not new.
        brought: Bytes that the engine has delivered since then, with their frames.
    """

    __slots__ = ("_at", "brought", "singly", "size")

    def __init__(self, now: float) -> None:
        self.brought = self.singly = 0
        self.size = 0.0
        self._at = now

    def add(self, size: int, packets: int, now: float) -> None:
        """Count new packets and their bytes, against what they and those before them have brought."""
        held = self.size + size - PACKET * packets - (1 + AGAIN) * self.brought
        self.brought = 0
        if self.size:
            held -= BACKLOG_PER_S * (now - self._at)
        self._at = now
        self.size = max(0.0, held)

    def sent(self, size: int) -> None:
        """Take off what the acknowledgements of so many bytes may take."""
        self.size = max(0.0, self.size - ACKS * size)


class Balance:
    """What a peer makes this node send beside what it takes: answers to PATH_CHALLENGEs heed no congestion window.

    Attributes:
        widest: The congestion window at its widest so far.
        received: Bytes of new 1-RTT packets since no more was in flight than twice that window.
    """

    def __init__(self) -> None:
        self.received = self.widest = 0

    def look(self, in_flight: int) -> None:
        """Look at more in flight than twice the widest window.

        Raises PeerFault when it is far more and the peer goes on to send: it asks for answers without end, and takes
        none. Of a peer that is silent it proves nothing: probes alone, of 4,000 bytes within a host, add up.
        """
        if in_flight - 2 * self.widest > MAX_UNASKED and self.received > ASKING:
            raise PeerFault("it makes this node send more than it takes")

    def may_probe(self, in_flight: int) -> bool:
        """False when so much is in flight that the least of packets tells as much as one that is sent again."""
        return in_flight <= 2 * self.widest + MAX_UNASKED // 2
