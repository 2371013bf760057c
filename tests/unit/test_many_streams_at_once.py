"""Many streams of one connection with the reference engine, which would go through all of them for every packet."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.test_stream import Pair

pytest.importorskip("aioquic")
MANY = 120


def test_many_streams_cost_what_is_in_their_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    from aioquic.quic.connection import QuicConnection

    steps = 0
    original = QuicConnection._write_stream_frame

    def counted(*args: Any, **kwargs: Any) -> int:
        nonlocal steps
        steps += 1
        return original(*args, **kwargs)

    pair = Pair("aioquic", "aioquic")
    mine = [pair.dialler.open("s") for _ in range(MANY)]
    pair.run(0.1)
    monkeypatch.setattr(QuicConnection, "_write_stream_frame", counted)
    sent = pair.carried
    for stream in mine:
        stream.write(bytes(1500), fin=True)
    pair.run(0.2)
    assert [len(stream.read()) for stream in pair.there.streams] == [1500] * MANY
    assert all(stream.at_eof for stream in pair.there.streams)
    assert steps <= 40 * (pair.carried - sent), "a few streams a packet, not all"


def test_a_stream_beside_many_idle_ones_gets_its_credit_also_where_packets_are_lost() -> None:
    pair = Pair("aioquic", "aioquic")
    for _ in range(40):
        pair.dialler.open("idle")
    busy, theirs = pair.open()
    pair.lose_every = 50
    busy.write(bytes(3 << 20), fin=True)
    got = 0
    while not theirs.at_eof:
        assert pair.now < 60.0
        pair.run(0.05)
        got += len(theirs.read())
    assert got == 3 << 20
