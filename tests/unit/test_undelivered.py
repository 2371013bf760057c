"""What the peer has not acknowledged of streams that have ended here: it is known, and told when it is lost."""

from __future__ import annotations

import pytest

from meshnode.errors import ConnectionLost
from meshnode.quic import buffers
from meshnode.quic.connection import State
from meshnode.quic.hello import CloseCode
from tests.engines import every_engine
from tests.unit.test_stream import Pair


@every_engine
@pytest.mark.parametrize("end", ["closed here", "closed there", "lost"])
def test_a_stream_that_ended_before_the_peer_had_all_fails_with_its_connection(engine: str, end: str) -> None:
    pair = Pair(engine, engine)
    whole, its_whole = pair.open()
    mine, theirs = pair.open()
    for stream, its in ((whole, its_whole), (mine, theirs)):
        its.write(b"answer", fin=True)
        pair.run(0.1)
        assert stream.read() == b"answer"
    whole.write(b"all of this has arrived", fin=True)
    pair.run(0.5)
    mine.write(bytes(50_000), fin=True)
    assert mine.over, "both directions have ended"
    if end == "closed here":
        pair.dialler.close(CloseCode.NORMAL)
    elif end == "closed there":
        pair.listener.close(CloseCode.NORMAL)
        for datagram in pair.listener.transmit(pair.now):
            pair.dialler.receive([datagram], pair.now)
    else:
        pair.dialler.abandon(ConnectionLost("nothing was heard of it"))
    assert pair.dialler.state is State.CLOSED
    pair.dialler.release()
    assert isinstance(mine.error, ConnectionLost), "whoever asks whether the peer has all is not told that it has"
    assert whole.error is None
    assert (mine.at_eof, whole.at_eof) == (True, True), "what has come is whole"


def test_what_the_peer_has_not_is_not_forgotten_among_many_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "WRITTEN", 4)
    monkeypatch.setattr(buffers.Written, "most", 4)
    pair = Pair("qh3", "qh3")
    mine, _ = pair.open()
    mine.write(bytes(3_000_000), fin=True)  # more than a window
    for _ in range(30):
        other, _ = pair.open()
        other.write(b"x", fin=True)
    assert mine.queued > 500_000
    assert len(pair.dialler.engine._written) < 30  # type: ignore[attr-defined]
