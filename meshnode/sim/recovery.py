"""Loss recovery of a modelled link: RFC 9002 in small, with NewReno, so that moves and losses cost what they do there.

Part of ``sim/link.py``; knows packet numbers, times, sizes and acknowledgements, not what else is in a packet.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.base.rtt import RttEstimator
from meshnode.sim.frames import ACK, RANGE

INITIAL_RTT_S = 0.1
GRANULARITY_S = 0.001
MAX_ACK_DELAY_S = 0.025
PACKET_THRESHOLD = 3
TIME_THRESHOLD = 9 / 8
INITIAL_WINDOW = 12_000  # bytes, RFC 9002 section 7.2
MIN_WINDOW = 2_400
PROBES = 2  # packets per probe timeout
MAX_BACKOFF = 10  # doublings
MAX_RANGES = 32  # of received packet numbers

Piece = tuple[int, int, int, bool]  # stream, begin, end, fin


@dataclass(slots=True)
class Sent:
    """One packet that asks for an acknowledgement."""

    at: float
    size: int
    pieces: list[Piece]
    controls: list[bytes]


class Recovery:
    """Packets in flight, round trip, congestion window and probe timeout of one connection."""

    def __init__(self) -> None:
        self.sent: dict[int, Sent] = {}
        self.in_flight = 0
        self.rtt = RttEstimator()
        self.pto_count = 0
        self.probes = 0  # packets that may leave whatever the window says
        self.window = INITIAL_WINDOW
        self._latest = 0.0
        self._threshold = 1 << 62
        self._largest_acked = -1
        self._last_sent = 0.0
        self._recovery_began = float("-inf")
        self._loss_at: float | None = None

    def on_sent(self, number: int, packet: Sent) -> None:
        """Note a packet that asks for an acknowledgement and has left now; numbers only rise."""
        self.sent[number] = packet
        self.in_flight += packet.size
        self._last_sent = packet.at
        if self.probes:
            self.probes -= 1

    def sample(self, rtt: float) -> None:
        """Take one measured round trip, in seconds."""
        self._latest = rtt
        self.rtt.sample(rtt)

    def on_ack(self, ranges: list[tuple[int, int]], now: float) -> tuple[list[Sent], list[Sent]]:
        """Return which packets were acknowledged now, and which are lost as a consequence.

        ``ranges`` are (low, high) packet numbers, ascending, both included. The round trip is sampled when the largest
        is new (RFC 9002 section 5.1); any packet that is acknowledged ends the probe timeout's backing off.
        """
        largest = ranges[-1][1]
        newest = self.sent.get(largest)
        acked: list[Sent] = []
        for low, high in ranges:
            for number in self._sent_in(low, high):
                packet = self._take(number)
                if packet.at > self._recovery_began:
                    self._grow(packet.size)
                acked.append(packet)
        if newest is not None and largest > self._largest_acked:
            self._largest_acked = largest
            self.sample(max(now - newest.at, GRANULARITY_S))
        if not acked:
            return acked, []
        self.pto_count = 0
        return acked, self.detect(now)

    def _sent_in(self, low: int, high: int) -> list[int]:
        sent = self.sent
        if high - low < len(sent):
            return [n for n in range(low, high + 1) if n in sent]
        return [n for n in sent if low <= n <= high]

    def _grow(self, size: int) -> None:
        self.window += size if self.window < self._threshold else max(1, 1_200 * size // self.window)

    def detect(self, now: float) -> list[Sent]:
        """Take out what must be lost by now (RFC 9002 section 6.1) and return it.

        That is what was sent at least 3 packets or 9/8 round trips before one that was acknowledged. The window is
        halved once for all that was sent before the last halving, to 2,400 bytes at the least.
        """
        delay = TIME_THRESHOLD * max(self.rtt.srtt or INITIAL_RTT_S, self._latest, GRANULARITY_S)
        self._loss_at = None
        lost: list[int] = []
        for number, packet in self.sent.items():
            if number > self._largest_acked:
                break
            if number <= self._largest_acked - PACKET_THRESHOLD or packet.at + delay <= now:
                lost.append(number)
            elif self._loss_at is None:
                self._loss_at = packet.at + delay
        found = [self._take(number) for number in lost]
        if found and found[-1].at > self._recovery_began:
            self._recovery_began = now
            self.window = self._threshold = max(self.window // 2, MIN_WINDOW)
        return found

    def _take(self, number: int) -> Sent:
        packet = self.sent.pop(number)
        self.in_flight -= packet.size
        return packet

    def oldest(self, count: int) -> list[Sent]:
        """Take out the ``count`` oldest packets (fewer, if there are fewer), to be sent again."""
        return [self._take(number) for number in list(self.sent)[:count]]

    def nudge(self, now: float, count: int) -> list[Sent]:
        """Begin on another path: take out the ``count`` oldest packets, to be sent again.

        The probe timeout no longer backs off, two probes may leave whatever the window says, and losses of what was
        sent before ``now`` are no congestion.
        """
        self.pto_count = 0
        self._recovery_began = now
        self.probes = PROBES
        return self.oldest(count)

    def pto(self) -> float:
        """Return the probe timeout in seconds (RFC 9002 section 6.2.1).

        It is twice the initial 100 ms before the first sample, and doubled for each that has passed, at most 10 times.
        """
        first = 2 * INITIAL_RTT_S
        if self.rtt.srtt is not None:
            first = self.rtt.srtt + max(4 * self.rtt.var, GRANULARITY_S) + MAX_ACK_DELAY_S
        return first * float(2 ** min(self.pto_count, MAX_BACKOFF))

    def next_timer(self) -> float | None:
        """Return when ``on_timer`` has something to do, None when nothing is in flight.

        That is when the oldest packet counts as lost, if a later one was acknowledged, else the probe timeout.
        """
        if not self.sent:
            return None
        return self._loss_at if self._loss_at is not None else self._last_sent + self.pto()

    def on_timer(self, now: float) -> list[Sent]:
        """Return what must be sent again: what is lost by now, or the two oldest packets after a probe timeout."""
        at = self.next_timer()
        if at is None or at > now:
            return []
        if self._loss_at is not None:
            return self.detect(now)
        self.pto_count += 1
        self.probes = PROBES
        return self.oldest(PROBES)


class Seen:
    """Packet numbers received: ``ranges`` (low, high) in order, as an acknowledgement lists them."""

    def __init__(self) -> None:
        self.ranges: list[list[int]] = []

    def accept(self, number: int, floor: int) -> bool:
        """Note a packet number; False for a duplicate, and for one that is too old to tell.

        ``floor`` is the oldest number that the peer still has in flight: ranges below it are dropped, for they need no
        acknowledgement any more. At most ``MAX_RANGES`` are kept, the lowest goes first.
        """
        seen = self.ranges
        while len(seen) > 1 and seen[0][1] < floor:
            del seen[0]
        if not seen:
            seen.append([number, number])
            return True
        last = seen[-1]
        if number == last[1] + 1:
            last[1] = number
            return True
        if number < floor or (number < seen[0][0] - 1 and len(seen) >= MAX_RANGES):
            return False
        if number > last[1]:
            seen.append([number, number])
            if len(seen) > MAX_RANGES:
                del seen[0]
            return True
        return self._insert(number)

    def frame(self) -> bytes:
        """Return the ACK frame for all that is kept: kind, count, then so many ranges."""
        ranges = self.ranges[-MAX_RANGES:]
        return bytes((ACK, len(ranges))) + b"".join([RANGE.pack(low, high) for low, high in ranges])

    def _insert(self, number: int) -> bool:
        """Put a late number in its place between the ranges; False when it is in one."""
        seen = self.ranges
        for i, (low, high) in enumerate(seen):
            if low <= number <= high:
                return False
            if number < low:
                seen.insert(i, [number, number])
                break
        self.ranges = merged = seen[:1]
        for low, high in seen[1:]:
            if low == merged[-1][1] + 1:
                merged[-1][1] = high
            else:
                merged.append([low, high])
        return True
