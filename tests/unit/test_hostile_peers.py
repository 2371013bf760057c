"""A member that declares, opens or acknowledges what no node does: with any engine, what that costs is bounded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from aioquic.buffer import encode_uint_var
from aioquic.quic.packet import QuicTransportParameters

from meshnode.base.limits import STREAM_HIGH_WATER
from meshnode.quic.connection import State
from meshnode.quic.engines.common import STREAMS
from meshnode.quic.preface import encode_header
from tests.engines import every_engine
from tests.fuzz.packets import protected
from tests.unit.test_stream import Pair

HUGE = (1 << 62) - 1
HEADER = encode_header("s")


def declaring(monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> None:
    """Have aioquic's diallers declare other transport parameters than their own (RFC 9000 section 18.2)."""
    from aioquic.quic import connection

    push = connection.push_quic_transport_parameters

    def lie(buf: Any, params: QuicTransportParameters) -> None:
        push(buf, replace(params, **parameters) if params.original_destination_connection_id is None else params)

    monkeypatch.setattr(connection, "push_quic_transport_parameters", lie)


def pair(engine: str) -> Pair:
    """A hostile dialler, whose packets can be made by hand, and a victim with this engine."""
    return Pair("aioquic", engine)


@every_engine
@pytest.mark.parametrize("window", [HUGE, 1 << 60, 5_000])
def test_windows_of_any_size_leave_what_a_listener_queues_and_sends_bounded(
    engine: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("data", "stream_data_bidi_local", "stream_data_bidi_remote", "stream_data_uni")
    declaring(monkeypatch, **{f"initial_max_{name}": window for name in names}, initial_max_streams_bidi=1 << 60)
    live = pair(engine)
    _, theirs = live.open()
    most_queued = most_sent = 0
    for _ in range(100):
        if theirs.drained():
            theirs.write(bytes(1 << 16))
        most_queued = max(most_queued, theirs.queued)
        live.now += 0.005
        live.listener.on_timer(live.now)
        datagrams = live.listener.transmit(live.now)  # which the peer does not acknowledge
        most_sent = max(most_sent, sum(map(len, datagrams)))
    assert most_queued <= STREAM_HIGH_WATER + (1 << 16)
    assert most_sent <= 20_000, "the first congestion window"


@every_engine
@pytest.mark.parametrize("size", [1200, 1201, 65_527, 1 << 40])
def test_datagram_sizes_of_any_kind_change_no_more_than_the_size(
    engine: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    declaring(monkeypatch, max_udp_payload_size=size)
    live = pair(engine)
    mine, theirs = live.open()
    theirs.write(bytes(100_000), fin=True)
    sizes: list[int] = []
    receive = live.dialler.receive
    monkeypatch.setattr(
        live.dialler, "receive", lambda data, now: (sizes.extend(map(len, data)), receive(data, now))[1]
    )
    got = 0
    for _ in range(100):
        live.run(0.02)
        got += len(mine.read())
    assert got == 100_000
    assert max(sizes) <= min(size, 65_527)


@every_engine
def test_a_size_that_no_path_may_have_ends_the_handshake(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    declaring(monkeypatch, max_udp_payload_size=20)
    with pytest.raises(AssertionError):
        pair(engine)


@every_engine
def test_more_streams_than_were_granted_end_the_connection(engine: str) -> None:
    live = pair(engine)
    opened = 0
    for number in range(100, 100 + 4 * STREAMS // 40):
        frames = b""
        for _ in range(40):
            opened += 1
            frames += b"\x0a" + encode_uint_var(4 * opened) + encode_uint_var(len(HEADER)) + HEADER
        live.listener.receive([protected(live.dialler.engine, frames, number)], live.now)  # type: ignore[arg-type]
        assert len(live.listener.streams) <= STREAMS
        if live.listener.state is State.CLOSED:
            break
    assert live.listener.state is State.CLOSED
    assert opened < STREAMS + 100


@every_engine
def test_a_flood_of_acknowledgements_is_not_answered_and_nothing_is_kept(engine: str) -> None:
    live = pair(engine)
    live.run(1.0)
    frame = b"\x02" + encode_uint_var(5_000) + b"\x00" + encode_uint_var(60) + b"\x00" + b"\x00\x00" * 60
    sent = 0
    for number in range(100, 3_000):
        live.listener.receive([protected(live.dialler.engine, frame, number)], live.now)  # type: ignore[arg-type]
        sent += len(live.listener.transmit(live.now))
        if live.listener.state is State.CLOSED:
            break  # what was never sent was acknowledged (RFC 9000 section 13.1): that may end it
    assert sent <= 40


@every_engine
def test_a_flood_of_pings_out_of_order_costs_few_and_small_acknowledgements(engine: str) -> None:
    live = pair(engine)
    live.run(1.0)
    sizes: list[int] = []
    for number in range(100, 4_100, 2):  # every second number: as many ranges to acknowledge as there can be
        live.listener.receive([protected(live.dialler.engine, b"\x01", number)], live.now)  # type: ignore[arg-type]
        live.now += 0.0001
        sizes += map(len, live.listener.transmit(live.now))
    assert live.listener.state is State.READY
    assert len(sizes) <= 2_000
    assert max(sizes) <= 600
