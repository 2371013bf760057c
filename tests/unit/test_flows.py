"""Flows of datagrams over real engines, without a network: order of events, bounds, ends, and a peer without them."""

from __future__ import annotations

import random
from collections import deque

import pytest

from meshnode import Identity
from meshnode.base.limits import (
    DATAGRAM_COST,
    FLOW_QUEUE,
    FLOW_SHARE,
    MAX_DATAGRAM_PAYLOAD,
    MAX_DATAGRAM_QUEUE,
    MAX_DATAGRAMS_UNSENT,
    MAX_FLOW_DATAGRAM,
    MAX_FLOWS,
)
from meshnode.quic.datagram_queue import DatagramQueue
from meshnode.quic.engines import pick_engine
from meshnode.quic.flows import QUEUE_FULL, UNKNOWN_FLOW, Flow, FlowTable, decode_datagram, encode_datagram
from meshnode.quic.hello import CloseCode
from meshnode.quic.preface import ASK, FLOW, Purpose, purpose_of
from meshnode.quic.seam import MAX_DATAGRAM_FRAME, Datagram, StreamData
from meshnode.quic.stream import Stream
from tests.engines import every_engine
from tests.unit.test_stream import Pair


def _flow(pair: Pair) -> tuple[Stream, Flow, Flow]:
    """A stream that opens a flow, and both ends of that."""
    mine, theirs = pair.open(FLOW + "dns")
    here, there = pair.dialler.streams.flows.open(mine.id), pair.listener.streams.flows.open(theirs.id)
    assert here is not None
    assert there is not None
    return mine, here, there


def _received(flow: Flow) -> list[bytes]:
    return [flow.take() for _ in range(len(flow.queue))]


# ---- the wire


@pytest.mark.parametrize(
    ("flow", "encoded"),
    [(4, "04"), (63, "3f"), (64, "4040"), (16_383, "7fff"), (16_384, "80004000"), (1 << 30, "c000000040000000")],
)
def test_a_flow_id_is_a_variable_length_integer_of_rfc_9000(flow: int, encoded: str) -> None:
    assert encode_datagram(flow, b"x").hex() == encoded + "78"
    assert decode_datagram(encode_datagram(flow, b"x")) == (flow, b"x")


def test_an_id_that_is_cut_short_is_no_datagram() -> None:
    assert [decode_datagram(data) for data in (b"", b"\x40", b"\x80\0\0", bytes([0xC0, *range(6)]))] == [None] * 4
    with pytest.raises(ValueError, match="62 bits"):
        encode_datagram(1 << 62, b"")


def test_the_header_says_what_a_stream_is_for() -> None:
    assert [purpose_of(name) for name in ("web", ASK + "web", FLOW + "web")] == [
        (Purpose.USE, "web"),
        (Purpose.ASK, "web"),
        (Purpose.FLOW, "web"),
    ]
    pair = Pair()
    mine, theirs = pair.open(FLOW + "dns")
    assert (mine.purpose, mine.service) == (theirs.purpose, theirs.service) == (Purpose.FLOW, "dns")


# ---- both engines


@every_engine
def test_datagrams_of_every_allowed_size_arrive_whole_both_ways(engine: str) -> None:
    pair = Pair(engine, engine)
    _, here, there = _flow(pair)
    sizes = [0, 1, 2, 1_000, *range(MAX_FLOW_DATAGRAM - 4, MAX_FLOW_DATAGRAM + 1)]
    for one, other in ((here, there), (there, here)):
        assert all(one.send(bytes([size % 251]) * size) for size in sizes)
        pair.run(0.5)
        assert _received(other) == [bytes([size % 251]) * size for size in sizes]


@every_engine
def test_one_byte_too_many_is_an_error_and_the_flow_goes_on(engine: str) -> None:
    pair = Pair(engine, engine)
    _, here, there = _flow(pair)
    with pytest.raises(ValueError, match="at most 1160 bytes, not 1161"):
        here.send(bytes(MAX_FLOW_DATAGRAM + 1))
    assert not pair.dialler.engine.datagrams.send(bytes(MAX_DATAGRAM_PAYLOAD + 1))
    here.send(b"on")
    pair.run(0.1)
    assert _received(there) == [b"on"]


@every_engine
def test_a_full_datagram_fits_beside_acknowledgements_and_stream_data(engine: str) -> None:
    pair = Pair(engine, engine)
    _, here, there = _flow(pair)
    stream, echoed = pair.open()
    for n in range(60):
        stream.write(bytes(3_000))
        echoed.write(bytes(700))
        assert here.send(bytes([n]) * MAX_FLOW_DATAGRAM)
        assert there.send(bytes([n]) * MAX_FLOW_DATAGRAM)
        pair.run(0.01)
    pair.run(1.0)
    assert [data[0] for data in _received(there)] == [data[0] for data in _received(here)] == [*range(60)]
    assert (echoed.buffered, stream.buffered) == (180_000, 42_000)


@every_engine
def test_the_congestion_window_holds_for_datagrams_and_what_waits_is_bounded(engine: str) -> None:
    pair = Pair(engine, engine)
    _, here, there = _flow(pair)
    accepted = sum(here.send(bytes(1_000)) for _ in range(2 * MAX_DATAGRAMS_UNSENT))
    assert accepted == MAX_DATAGRAMS_UNSENT
    first = pair.dialler.transmit(pair.now)
    assert 2 <= len(first) <= 64  # of a window of 12 to 40 kB; none of it was acknowledged
    for datagram in first:
        pair.listener.receive([datagram], pair.now)
    pair.run(3.0)
    assert len(there.queue) == accepted


@every_engine
def test_a_lost_datagram_is_not_sent_again(engine: str) -> None:
    pair = Pair(engine, engine)
    _, here, there = _flow(pair)
    for n in range(20):
        here.send(bytes([n]))
        lost = pair.dialler.transmit(pair.now)
        if n % 2:
            for datagram in lost:
                pair.listener.receive([datagram], pair.now)
        pair.run(0.05)
    pair.run(3.0)
    assert [data[0] for data in _received(there)] == [*range(1, 20, 2)]


@every_engine
def test_a_smaller_packet_size_blocks_no_datagram_that_waits(engine: str) -> None:
    pair = Pair(engine, engine)
    pair.dialler.engine.set_datagram_size(1_452)
    _, here, there = _flow(pair)
    assert all(here.send(bytes(MAX_FLOW_DATAGRAM)) for _ in range(200))
    pair.run(0.02)
    pair.dialler.engine.set_datagram_size(1_200)
    pair.run(3.0)
    assert len(there.queue) == 200


@every_engine
def test_a_peer_of_an_older_version_takes_none(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(engine, engine)
    assert pair.dialler.engine.datagrams.supported
    assert pair.listener.engine.datagrams.supported
    monkeypatch.setattr(pair.dialler.engine._quic, "_remote_max_datagram_frame_size", 0)  # type: ignore[attr-defined]
    assert not pair.dialler.engine.datagrams.supported
    assert pair.dialler.streams.flows.open(4) is None


@every_engine
def test_a_datagram_of_no_open_flow_is_dropped_and_counted(engine: str) -> None:
    pair = Pair(engine, engine)
    mine, here, there = _flow(pair)
    for payload in (b"", b"\x40", encode_datagram(44, b"x"), encode_datagram(0, b"x")):
        pair.dialler.engine.datagrams.send(payload)
    pair.run(0.1)
    assert pair.there.dropped == {UNKNOWN_FLOW: 4}
    mine.write(b"", fin=True)
    pair.there.streams[-1].write(b"", fin=True)
    pair.run(0.1)
    assert (len(pair.dialler.streams.flows), len(pair.listener.streams.flows)) == (0, 0)
    assert not here.send(b"after the end")
    pair.dialler.engine.datagrams.send(encode_datagram(mine.id, b"after the end"))
    pair.run(0.1)
    assert pair.there.dropped == {UNKNOWN_FLOW: 5}
    assert not there.queue


def test_a_flow_ends_with_a_reset_of_its_stream_at_both_ends() -> None:
    pair = Pair()
    mine, here, there = _flow(pair)
    pair.there.streams[-1].reset()
    pair.run(0.1)
    assert (len(pair.dialler.streams.flows), len(pair.listener.streams.flows)) == (0, 0)
    assert (here.send(b"x"), there.send(b"x")) == (False, False)
    assert mine.error is not None


def test_what_has_arrived_is_readable_after_the_end() -> None:
    pair = Pair()
    mine, here, there = _flow(pair)
    here.send(b"last words")
    pair.run(0.1)
    pair.dialler.close(CloseCode.NORMAL)
    pair.run(0.1)
    assert _received(there) == [b"last words"]
    assert (there.size, pair.listener.streams.flows.held) == (0, 0)
    assert mine.error is not None


# ---- bounds


class _Engine:
    datagrams = DatagramQueue(deque(), lambda: MAX_DATAGRAM_FRAME)


def _table() -> tuple[FlowTable, list[str]]:
    dropped: list[str] = []
    table = FlowTable(_Engine(), dirty=lambda: None, dropped=dropped.append)  # type: ignore[arg-type]
    return table, dropped


def test_of_a_flow_that_no_application_reads_the_oldest_go() -> None:
    table, dropped = _table()
    flow = table.open(4)
    assert flow is not None
    most = FLOW_QUEUE // (1_000 + DATAGRAM_COST)
    for n in range(most + 10):
        table.on_datagram(encode_datagram(4, n.to_bytes(1_000, "big")))
    assert (flow.dropped, dropped) == (10, [QUEUE_FULL] * 10)
    assert [int.from_bytes(data, "big") for data in _received(flow)] == [*range(10, most + 10)]
    assert (flow.size, table.held) == (0, 0)


def test_a_datagram_of_an_open_flow_says_that_the_peer_is_alive_and_no_other_does() -> None:
    table, _ = _table()
    assert table.open(4) is not None
    assert table.on_datagram(encode_datagram(4, b"x"))
    assert not table.on_datagram(encode_datagram(8, b"x"))


def test_a_flow_that_ends_unread_holds_nothing_and_a_send_asks_for_a_turn() -> None:
    dirty: list[None] = []
    table = FlowTable(_Engine(), dirty=lambda: dirty.append(None), dropped=lambda _: None)  # type: ignore[arg-type]
    flow = table.open(4)
    assert flow is not None
    assert flow.send(b"x")
    assert len(dirty) == 1
    table.on_datagram(encode_datagram(4, b"unread"))
    table.end(4)
    assert (table.held, flow.take()) == (0, b"unread")
    assert table.held == 0


def test_empty_datagrams_count_too() -> None:
    table, _ = _table()
    flow = table.open(4)
    assert flow is not None
    for _ in range(2 * FLOW_QUEUE // DATAGRAM_COST):
        table.on_datagram(encode_datagram(4, b""))
    assert len(flow.queue) == FLOW_QUEUE // DATAGRAM_COST


def test_all_flows_of_a_connection_are_bounded_and_each_keeps_its_share() -> None:
    table, _ = _table()
    opened = [table.open(4 * n) for n in range(MAX_FLOWS)]
    for n in range(MAX_FLOWS):
        for _ in range(8):
            table.on_datagram(encode_datagram(4 * n, bytes(1_000)))
    assert table.held <= MAX_DATAGRAM_QUEUE + MAX_FLOWS * FLOW_SHARE
    sizes = [flow.size for flow in opened if flow is not None]
    assert sum(sizes) == table.held
    assert min(sizes) > FLOW_SHARE // 2  # the late ones too
    assert max(sizes) == 8 * (1_000 + DATAGRAM_COST)  # those that came while there was room


def test_a_peers_flows_are_bounded_and_take_no_place_of_ours() -> None:
    table, _ = _table()
    assert all(table.open(4 * n) is not None for n in range(MAX_FLOWS))
    assert table.open(4 * MAX_FLOWS) is None
    assert table.open(1) is not None
    table.end(0)
    assert table.open(4 * MAX_FLOWS) is not None


def test_a_closed_table_holds_nothing_and_calls_nothing() -> None:
    table, dropped = _table()
    flow = table.open(4)
    assert flow is not None
    table.on_datagram(encode_datagram(4, b"x"))
    table.close()
    table.on_datagram(encode_datagram(4, b"y"))
    assert (table.held, len(table), dropped) == (0, 0, [])
    assert flow.take() == b"x"
    assert table.held == 0


@every_engine
def test_bulk_on_a_path_that_loses_packets_does_not_starve_datagrams(engine: str) -> None:
    engines, rng = pick_engine(engine), random.Random(1)
    own, peer = Identity.generate(), Identity.generate()
    dialler = engines.dial(own, peer.id, lambda odcid: bytes(96), 60.0, 0.0)
    listener = engines.accept(peer, dialler.odcid, 60.0, 0.0)
    ends = (dialler, listener)
    now, arrived = 0.0, 0
    wire: tuple[deque[tuple[float, bytes]], ...] = (deque(), deque())

    def exchange(milliseconds: int) -> None:
        nonlocal now, arrived
        for _ in range(milliseconds):
            now += 0.001
            for here, there, under_way in ((*ends, wire[0]), (*ends[::-1], wire[1])):
                due = here.next_timer()
                if due is not None and due <= now:
                    here.on_timer(now)
                lossy = here is dialler and now > 0.2
                sent = [data for data in here.transmit(now) if not (lossy and rng.random() < 0.02)]
                under_way.extend((now + 0.01, data) for data in sent)
                while under_way and under_way[0][0] <= now:
                    there.receive([under_way.popleft()[1]], now)
                for event in there.events():
                    if isinstance(event, StreamData):
                        there.consumed(event.stream_id, len(event.data))
                    arrived += isinstance(event, Datagram)

    exchange(200)
    stream = dialler.open_stream()
    for _ in range(200):
        if dialler.queued_bytes(stream) < 2_000_000:
            dialler.send(stream, bytes(1_000_000))
        assert dialler.datagrams.send(b"a datagram")
        exchange(5)
    assert arrived > 180
