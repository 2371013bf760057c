"""Two ends that both send with full windows hear of what arrived, though qh3's core sends no ACK then."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.quic.engines.credit import max_stream_data
from meshnode.quic.engines.late_acks import MAX_NUMBERS, ack_frame, asks_for_ack
from meshnode.quic.engines.packet_keys import PacketKeys
from tests.unit.test_stream import Pair

SIZE = 20_000


@pytest.mark.parametrize("dialler", ["aioquic", "qh3"])
def test_bulk_both_ways_over_a_lossy_path_does_not_stand_still(dialler: str) -> None:
    pytest.importorskip("qh3")
    pair = Pair(dialler, "qh3")
    mine = [pair.dialler.open("s") for _ in range(100)]
    pair.run(0.3)
    for stream in (*mine, *pair.there.streams):
        stream.write(bytes(SIZE), fin=True)
    pair.lose_every = 50
    end = pair.now + 10.0
    while pair.now < end and (pair.dialler.streams or pair.listener.streams):
        pair.run(0.05)
        for stream in (*mine, *pair.there.streams):
            stream.read()
    assert not pair.here.closed
    assert not pair.there.closed
    assert not pair.dialler.streams
    assert not pair.listener.streams


@pytest.mark.parametrize("number", [0, 1, 40_000, 70_000, 900_000, 5_000_000_000])
@pytest.mark.parametrize("lost", [0, 30_000, 200_000])
def test_a_packet_is_opened_whatever_was_lost_before_it(number: int, lost: int) -> None:
    keys = PacketKeys(bytes(32))
    frames = max_stream_data([(4, 10_000)])
    packet = keys.seal(b"\7" * 8, number, frames)
    assert keys.open(packet, max(0, number - lost)) == (number, frames)
    assert keys.open(packet[:-1] + bytes([packet[-1] ^ 1]), number) is None
    assert keys.open(packet[:20], number) is None
    assert PacketKeys(bytes([1]) * 32).open(packet, number) is None


@given(st.sets(st.integers(0, 300) | st.integers(0, 1 << 40), min_size=1, max_size=MAX_NUMBERS))
def test_an_ack_names_what_came_and_nothing_else(numbers: set[int]) -> None:
    frame = ack_frame(sorted(numbers))
    assert len(frame) < 1_200 - 40
    assert not asks_for_ack(frame)
    assert asks_for_ack(frame + b"\1"), "a PING behind it"
    values, at = [], 1
    while at < len(frame):
        size = 1 << (frame[at] >> 6)
        values.append(int.from_bytes(frame[at : at + size], "big") & (1 << 8 * size - 2) - 1)
        at += size
    largest, delay, count, first, *rest = values
    named, low = set(range(largest - first, largest + 1)), largest - first
    for gap, length in zip(rest[::2], rest[1::2], strict=True):
        high = low - gap - 2
        low = high - length
        named |= set(range(low, high + 1))
    assert named == numbers
    assert (delay, count) == (0, len(rest) // 2)


def test_what_only_acknowledges_is_not_acknowledged() -> None:
    ack = ack_frame([1, 2, 9])
    with_ecn = bytes([3]) + ack[1:] + bytes(3)
    for frames in (b"", bytes(30), ack, ack + bytes(9), with_ecn, b"\x1c\0\0\0"):
        assert not asks_for_ack(frames)
    for frames in (b"\1", bytes(9) + b"\1", with_ecn + b"\x08\0", b"\x31\1a"):
        assert asks_for_ack(frames)
