"""What peers leave behind holes in streams: the estimate of one connection, and the bound on all."""

from __future__ import annotations

from typing import cast

from meshnode.base.limits import MAX_BACKLOG, MAX_BACKLOGS, SMALL_BACKLOG
from meshnode.base.metrics import Metrics
from meshnode.quic.connection import Connection
from meshnode.quic.engines.backlog import FRAME, PACKET, Backlog
from meshnode.quic.hello import CloseCode
from meshnode.stack.hoards import HOARDS, Hoards

FULL = 1_200


def test_what_is_behind_a_hole_counts_until_the_hole_is_closed() -> None:
    backlog = Backlog(0.0)
    for _ in range(100):
        backlog.add(FULL, 1, 0.0)
    assert 100 * (FULL - PACKET) - 100 <= backlog.size <= 100 * FULL
    backlog.brought += 101 * FULL
    backlog.add(FULL, 1, 0.0)
    assert backlog.size == 0


def test_acknowledgements_and_signs_of_life_cost_nothing() -> None:
    backlog = Backlog(0.0)
    for now in range(10_000):
        backlog.add(PACKET, 1, float(now))
    assert backlog.size == 0


def test_a_stream_of_small_pieces_that_are_delivered_is_no_backlog() -> None:
    backlog = Backlog(0.0)
    for _ in range(10_000):
        backlog.brought += 150 * (1 + FRAME)
        backlog.add(FULL, 1, 0.0)
    assert backlog.size == 0


def test_bytes_in_order_on_one_stream_hide_few_behind_a_hole_on_another() -> None:
    backlog = Backlog(0.0)
    for _ in range(1_000):
        backlog.brought += FULL
        backlog.add(2 * FULL, 2, 0.0)
    assert backlog.size > 600_000


class Held:
    """A connection, as far as a bound needs one."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.why = ""

    def close(self, code: CloseCode, reason: str) -> None:
        self.why = reason


def hoards(metrics: Metrics | None = None) -> Hoards:
    return Hoards(lambda peer: (cast(str, peer)[0],), metrics or Metrics())


def note(table: Hoards, one: Held, size: int) -> None:
    table.note(cast(Connection, one), size)


def test_one_connection_that_has_too_much_is_ended_with_the_reason_and_counted() -> None:
    metrics = Metrics()
    table, one = hoards(metrics), Held("a1")
    note(table, one, MAX_BACKLOG)
    assert not one.why
    note(table, one, MAX_BACKLOG + 1)
    assert one.why == "too much behind holes in streams"
    assert metrics.counters[HOARDS] == 1
    assert not table.sizes


def test_of_all_connections_the_network_that_has_most_loses_its_largest() -> None:
    table = hoards()
    honest = Held("b1")
    note(table, honest, MAX_BACKLOG)  # larger than each of the others
    ids = [Held(f"a{number}") for number in range(100)]
    for number, one in enumerate(ids):
        note(table, one, MAX_BACKLOGS // 60 + number)
        assert sum(table.sizes.values()) <= MAX_BACKLOGS
    assert not honest.why
    ended = [one for one in ids if one.why]
    assert ended
    assert len(ended) < 60


def test_what_a_connection_has_no_longer_counts_no_more() -> None:
    table = hoards()
    for number in range(1_000):
        one = Held(f"a{number}")
        note(table, one, MAX_BACKLOG)
        note(table, one, SMALL_BACKLOG)
        assert not one.why
    gone = Held("a")
    note(table, gone, MAX_BACKLOG)
    table.forget(cast(Connection, gone))
    assert not table.sizes
