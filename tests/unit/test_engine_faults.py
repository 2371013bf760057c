"""A fault of an engine's own code while it builds packets: the connection is lost, no stream ends cleanly or hangs."""

from __future__ import annotations

from typing import Any

import pytest

from meshnode.errors import ConnectionLost
from tests.unit.test_stream import Pair


class Faulty:
    """qh3's core, which raises from ``poll_transmit`` what it does for a lost copy of a stream that is over."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self.is_faulty = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def poll_transmit(self, now: float) -> Any:
        """Build a packet, or raise."""
        if self.is_faulty:
            raise ValueError("reserved stream is missing")
        return self._core.poll_transmit(now)


@pytest.mark.parametrize("dialler", ["aioquic", "qh3"])
def test_every_stream_of_a_connection_whose_engine_failed_is_lost(dialler: str) -> None:
    pytest.importorskip("qh3")
    pair = Pair(dialler, "qh3")
    ends = [pair.open() for _ in range(20)]
    engine: Any = pair.listener.engine
    core = engine._core = engine._quic._core = Faulty(engine._core)
    for _, theirs in ends[:10]:
        theirs.write(b"half of it")
    pair.run(0.1)
    core.is_faulty = True
    for _, theirs in ends:
        theirs.write(b"the rest", fin=True)
    pair.run(0.1)
    assert isinstance(pair.there.closed, ConnectionLost)
    assert "this node's own QUIC engine failed" in str(pair.there.closed)
    assert "reserved stream" in str(pair.there.closed)
    assert "the peer" not in str(pair.there.closed), "it did nothing wrong"
    for _, theirs in ends:
        assert isinstance(theirs.error, ConnectionLost)
    assert not pair.listener.streams
    assert pair.listener.transmit(pair.now) == []
    for mine, _ in ends:
        assert not mine.at_eof, "half of it is no whole"
