"""A member whose key is proven and that then sends whatever QUIC frames it likes: only its own connection suffers."""

from __future__ import annotations

import random

import pytest
from aioquic.buffer import encode_uint_var
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.quic.connection import Connection, State
from meshnode.quic.engines.aioquic import AioquicEngine
from meshnode.quic.hello import CloseCode
from meshnode.quic.preface import StreamStatus, encode_header
from meshnode.quic.stream import Stream
from tests.engines import INSTALLED, every_engine
from tests.fuzz.packets import protected
from tests.unit.test_stream import Pair

NUMBERS = (0, 1, 2, 3, 5, 7, 8, 20, 63, 64, 100, 1000, 16_383, 1 << 20, 1 << 30, (1 << 60) - 1, (1 << 62) - 1)
STREAMS = (0, 0, 1, 2, 3, 4, 4, 4, 5, 6, 8, 8, 10, 14, 400)
HEADER = encode_header("s")


def frames(rng: random.Random) -> bytes:
    """Up to three frames, most of them about streams, most of them wrong in some way."""
    found = b""
    for _ in range(rng.randint(1, 3)):
        stream, number = encode_uint_var(rng.choice(STREAMS)), lambda: encode_uint_var(rng.choice(NUMBERS))
        match rng.randrange(10):
            case 0 | 1 | 2 | 3 | 4:
                kind = rng.randrange(8, 16)
                data = rng.choice((HEADER, HEADER + rng.randbytes(20), rng.randbytes(9), b"", b"\x00\x03\x81\x02"))
                found += bytes([kind]) + stream + (number() if kind & 4 else b"")
                found += (encode_uint_var(len(data)) if kind & 2 else b"") + data
            case 5:
                found += b"\x04" + stream + number() + number()  # RESET_STREAM
            case 6 | 7:
                found += b"\x05" + stream + number()  # STOP_SENDING
            case 8:
                found += bytes([rng.randrange(0x10, 0x18)]) + stream + number()  # limits
            case _:
                found += bytes([rng.randrange(0x32)]) + b"".join(number() for _ in range(rng.randrange(4)))
    return found


def echo(stream: Stream) -> None:
    """Send back what comes."""
    stream.accept()

    def changed() -> None:
        data = stream.read()
        if data and stream.error is None and not stream.fin_sent:
            stream.write(data)

    stream.on_change = changed
    changed()


def greet_and_end(stream: Stream) -> None:
    """Say one thing and go."""
    stream.accept()
    stream.write(b"hello", fin=True)
    stream.stop_reading()


def drop(stream: Stream) -> None:
    """Accept and think again."""
    stream.accept()
    stream.reset()


HANDLERS = (Stream.accept, echo, greet_and_end, drop, lambda stream: stream.refuse(StreamStatus.DENIED))


def against(engine: str, to_dialler: bool) -> tuple[Pair, Connection, Connection]:
    """A victim with this engine, and a hostile end whose packets can be made by hand."""
    pair = Pair(engine, "aioquic") if to_dialler else Pair("aioquic", engine)
    return (pair, pair.dialler, pair.listener) if to_dialler else (pair, pair.listener, pair.dialler)


@given(st.integers(0, 2**32), st.sampled_from(HANDLERS), st.booleans(), st.sampled_from(INSTALLED))
@settings(max_examples=200, derandomize=True)
def test_any_frames_of_a_member_end_at_worst_its_own_connection(seed, handler, to_dialler, engine) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(seed)
    pair, victim, hostile = against(engine, to_dialler)
    pair.there.handler = handler
    if rng.random() < 0.5:
        pair.open()
    assert isinstance(hostile.engine, AioquicEngine)
    for number in range(100, 100 + rng.randint(1, 5)):
        victim.receive([protected(hostile.engine, frames(rng), number)], pair.now)
        victim.transmit(pair.now)
        victim.on_timer(pair.now)
    use(victim)
    victim.on_timer(pair.now + 1)
    victim.transmit(pair.now + 1)
    victim.close(CloseCode.NORMAL, "done")
    assert victim.state is State.CLOSED
    assert not victim.streams


def use(connection: Connection) -> None:
    """Do to every stream what an application might do next."""
    for stream in list(connection.streams):
        if stream.error is None and not stream.fin_sent:
            stream.write(b"more")
        stream.read(3)
        stream.drained()
        stream.stop_reading()
        stream.reset()


@every_engine
@pytest.mark.parametrize("to_dialler", [False, True])
def test_a_unidirectional_stream_ends_the_connection_of_its_opener(to_dialler: bool, engine: str) -> None:
    pair, victim, hostile = against(engine, to_dialler)
    quic = hostile.engine._quic  # type: ignore[attr-defined]
    quic.send_stream_data(quic.get_next_available_stream_id(is_unidirectional=True), HEADER)
    pair.run(0.2)
    assert victim.state is hostile.state is State.CLOSED
