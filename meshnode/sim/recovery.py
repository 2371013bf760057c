"""Loss recovery of a modelled link: RFC 9002 in small, with NewReno, so that moves and losses cost what they do there.

Part of ``sim/link.py``; knows packet numbers, times and sizes, not what is in a packet.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.base.rtt import RttEstimator

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
    """What is in flight, the round trip, the congestion window and the probe timeout."""

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
        """A packet that asks for an acknowledgement has left."""
        self.sent[number] = packet
        self.in_flight += packet.size
        self._last_sent = packet.at
        if self.probes:
            self.probes -= 1

    def sample(self, rtt: float) -> None:
        """One measured round trip."""
        self._latest = rtt
        self.rtt.sample(rtt)

    def on_ack(self, ranges: list[tuple[int, int]], now: float) -> tuple[list[Sent], list[Sent]]:
        """Return which packets were acknowledged and which are therefore lost."""
        sent = self.sent
        largest = ranges[-1][1]
        newest = sent.get(largest)
        acked: list[Sent] = []
        for low, high in ranges:
            if high - low < len(sent):
                numbers = [n for n in range(low, high + 1) if n in sent]
            else:
                numbers = [n for n in sent if low <= n <= high]
            for number in numbers:
                packet = sent.pop(number)
                self.in_flight -= packet.size
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

    def _grow(self, size: int) -> None:
        self.window += size if self.window < self._threshold else max(1, 1_200 * size // self.window)

    def detect(self, now: float) -> list[Sent]:
        """Take out what must be lost by now (RFC 9002 section 6.1)."""
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
        """Take out the oldest packets, to be sent again."""
        return [self._take(number) for number in list(self.sent)[:count]]

    def nudge(self, now: float, count: int) -> list[Sent]:
        """The path is another one: no backing off, no congestion; take out the oldest packets."""
        self.pto_count = 0
        self._recovery_began = now
        self.probes = PROBES
        return self.oldest(count)

    def pto(self) -> float:
        """The probe timeout, backed off."""
        first = 2 * INITIAL_RTT_S
        if self.rtt.srtt is not None:
            first = self.rtt.srtt + max(4 * self.rtt.var, GRANULARITY_S) + MAX_ACK_DELAY_S
        return first * float(2 ** min(self.pto_count, MAX_BACKOFF))

    def next_timer(self) -> float | None:
        """When ``on_timer`` has something to do."""
        if not self.sent:
            return None
        return self._loss_at if self._loss_at is not None else self._last_sent + self.pto()

    def on_timer(self, now: float) -> list[Sent]:
        """Return what must be sent again."""
        at = self.next_timer()
        if at is None or at > now:
            return []
        if self._loss_at is not None:
            return self.detect(now)
        self.pto_count += 1
        self.probes = PROBES
        return self.oldest(PROBES)


class Seen:
    """Which packet numbers came: ``ranges`` (low, high) in order, as an acknowledgement lists them."""

    def __init__(self) -> None:
        self.ranges: list[list[int]] = []

    def accept(self, number: int, floor: int) -> bool:
        """Note a packet number; False for a duplicate. Below the floor nothing is owed any more."""
        seen = self.ranges
        while seen and seen[0][1] < floor and len(seen) > 1:
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
