"""ACKs in packets of our own, for a core that sends none while its congestion window is full.

What qh3's core sends is put in a row: stream frames that the window has no room for stand before the ACK, though the
window does not count for that (RFC 9002 section 7). Two ends that both send to more than one stream can so wait for
each other. The core keeps to itself which packets it has read, so those are opened again: their numbers are proven by
their tags, and a packet that only acknowledges is not answered.
"""

from __future__ import annotations

from meshnode.quic.engines.credit import varint
from meshnode.quic.engines.packet_keys import PacketKeys

ACK = 0x02
ACK_ECN = 0x03
CLOSES = (0x1C, 0x1D)
MAX_NUMBERS = 100  # of them in an ACK, with those before: x 9 bytes at most, of 1,200


class LateAcks:
    """What one connection has to acknowledge; ``secret`` is the peer's of 1-RTT packets."""

    def __init__(self, secret: bytes) -> None:
        self._keys = PacketKeys(secret)
        self._numbers: list[int] = []
        self._expected = 0

    def frame(self, packets: list[bytes], count: int) -> bytes:
        """Return an ACK frame for ``packets``, empty when none of them asks for one.

        They are authentic, new, and among the last of ``count`` that came.
        """
        asked = False
        numbers = self._numbers
        for packet in packets:
            opened = self._keys.open(packet, max(count, self._expected))
            if opened is not None:
                number, frames = opened
                self._expected = max(self._expected, number)
                numbers.append(number)
                asked = asked or asks_for_ack(frames)
        numbers.sort()
        del numbers[:-MAX_NUMBERS]
        return ack_frame(numbers) if asked else b""


def ack_frame(numbers: list[int]) -> bytes:
    """Return the ACK frame (RFC 9000 section 19.3) of packet numbers in ascending order, without a delay."""
    ranges: list[list[int]] = []
    for number in reversed(numbers):
        if ranges and number >= ranges[-1][0] - 1:
            ranges[-1][0] = min(number, ranges[-1][0])
        else:
            ranges.append([number, number])
    first, largest = ranges[0]
    found = [bytes([ACK]), varint(largest), varint(0), varint(len(ranges) - 1), varint(largest - first)]
    for low, high in ranges[1:]:
        found += varint(first - high - 2), varint(high - low)
        first = low
    return b"".join(found)


def asks_for_ack(frames: bytes) -> bool:
    """Return whether a packet with these frames is ack-eliciting (RFC 9000 section 13.2)."""
    at = 0
    while at < len(frames):
        kind = frames[at]
        if kind in (ACK, ACK_ECN):
            ranges, at = _varint(frames, _skipped(frames, at + 1, 2))
            at = _skipped(frames, at, 1 + 2 * ranges + (3 if kind == ACK_ECN else 0))
        elif kind:
            return kind not in CLOSES
        else:
            at += 1  # PADDING
    return False


def _varint(frames: bytes, at: int) -> tuple[int, int]:
    size = 1 << (frames[at] >> 6)
    return int.from_bytes(frames[at : at + size], "big") & (1 << 8 * size - 2) - 1, at + size


def _skipped(frames: bytes, at: int, count: int) -> int:
    for _ in range(count):
        at += 1 << (frames[at] >> 6)
    return at
