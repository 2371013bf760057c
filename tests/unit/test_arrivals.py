"""Whether the peer has all of one stream, beside a transfer that has something in flight at each moment."""

from __future__ import annotations

import pytest

from meshnode.quic.connection import Connection
from tests.engines import every_engine
from tests.unit.test_stream import Pair

DELAY_S, STEP_S = 0.01, 0.001


class Way:
    """What is under way between the ends of a pair; what the dialler sends while ``lose`` is dropped."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.under_way: list[tuple[float, Connection, bytes]] = []
        self.lose = False

    def step(self) -> None:
        pair, now = self.pair, self.pair.now
        for one, other in ((pair.dialler, pair.listener), (pair.listener, pair.dialler)):
            one.on_timer(now)
            sent = one.transmit(now)
            if not (self.lose and one is pair.dialler):
                self.under_way += [(now + DELAY_S, other, datagram) for datagram in sent]
        due = [each for each in self.under_way if each[0] <= now]
        self.under_way = [each for each in self.under_way if each[0] > now]
        for _, end, datagram in due:
            end.receive([datagram], now)
        pair.now += STEP_S


@every_engine
@pytest.mark.parametrize("is_lost", [False, True])
def test_a_stream_is_known_to_have_arrived_beside_a_transfer(engine: str, is_lost: bool) -> None:
    pair = Pair(engine, engine)
    way = Way(pair)
    bulk, its_bulk = pair.open("bulk")
    short, its_short = pair.open("short")
    least, came, arrived_at, known_at = 1 << 30, b"", 0, 0
    for turn in range(3_000):
        if bulk.queued < 1 << 20:
            bulk.write(bytes(1 << 18))
        its_bulk.read()
        came += its_short.read()
        if turn == 500:
            short.write(b"little", fin=True)
        way.lose = is_lost and turn == 500  # the packet that it is in is lost
        way.step()
        if turn > 500:
            least = min(least, pair.dialler.engine.in_flight())
            arrived_at = arrived_at or (turn if came else 0)
            if not short.queued:
                known_at = turn
                break
    assert came == b"little"
    assert arrived_at < known_at < arrived_at + 200
    assert is_lost or least > 1 << 16, "there was no moment without a transfer"
