"""What is received in one turn goes to each connection once, and nothing of it is lost on the way."""

from typing import Any

import pytest

from meshnode.base.address import Addr
from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers, reraise
from meshnode.stack.reception import Reception

A, B = Addr("10.0.0.1", 1), Addr("10.0.0.2", 2)
ONE, TWO = b"c" * 8, b"d" * 8


def packet(cid: bytes, body: bytes = b"") -> bytes:
    return b"\x40" + cid + body


class Sorted:
    def __init__(self, on_error: Any = reraise) -> None:
        self.fed: list[tuple[object, list[bytes], object]] = []
        self.others: list[tuple[bytes, object]] = []
        self.by_cid: dict[bytes, Any] = {ONE: "one", TWO: "two"}
        timers = Timers()
        timers.on_error = on_error
        self.reception = Reception(
            self.by_cid, self._feed, self._stranger, lambda *args: self._other(*args), Metrics(), timers
        )

    def _feed(self, connection: Any, datagrams: list[bytes], source: Any, now: float) -> None:
        if b"bad" in datagrams[0]:
            raise RecursionError
        self.fed.append((connection, datagrams, source))

    def _stranger(self, data: bytes, cid: bytes | None, source: Any, now: float) -> None:
        self.others.append((data, source))

    def _other(self, data: bytes, source: Any, now: float) -> None:
        if data == b"\x02bad":
            raise RecursionError
        self.others.append((data, source))


def test_a_connection_is_fed_once_a_turn_and_source_in_the_order_of_arrival() -> None:
    sorted_ = Sorted()
    first, second, third, moved = (packet(ONE, bytes([n])) for n in range(4))
    runs = [([first, second], A), ([packet(TWO)], A), ([third], A), ([moved], B)]
    sorted_.reception.take(runs, 1.0)
    assert runs[0] == ([first, second], A), "the runs are the caller's"
    assert sorted_.fed == [("one", [first, second, third], A), ("two", [packet(TWO)], A), ("one", [moved], B)]


def test_segments_of_one_reception_that_are_for_several_connections_each_find_theirs() -> None:
    sorted_ = Sorted()
    run = [packet(ONE), packet(TWO), b"", b"\xc3long header", packet(b"unknown "), packet(ONE, b"!"), b"\x40short"]
    sorted_.reception.take([(run, A)], 1.0)
    assert sorted_.fed == [("one", [packet(ONE), packet(ONE, b"!")], A), ("two", [packet(TWO)], A)]
    assert sorted_.others == [(b"", A), (b"\xc3long header", A), (packet(b"unknown "), A), (b"\x40short", A)]


def test_what_comes_inside_a_relays_frames_is_fed_with_the_rest_of_its_turn() -> None:
    sorted_ = Sorted()

    def unwrap(data: bytes, source: Any, now: float) -> None:
        sorted_.reception.deliver(packet(ONE, data), B, now)

    sorted_._other = unwrap  # type: ignore[method-assign]
    sorted_.reception.take([([b"\x02frame 1", b"\x02frame 2"], A)], 1.0)
    assert sorted_.fed == [("one", [packet(ONE, b"\x02frame 1"), packet(ONE, b"\x02frame 2")], B)]


def test_a_datagram_that_raises_takes_no_other_along() -> None:
    errors: list[Exception] = []
    sorted_ = Sorted(errors.append)
    sorted_.reception.take([([b"\x02bad", b"\x02good"], A), ([packet(ONE, b"bad")], A), ([packet(TWO)], A)], 1.0)
    assert sorted_.others == [(b"\x02good", A)]
    assert [connection for connection, *_ in sorted_.fed] == ["two"]
    assert [type(error) for error in errors] == [RecursionError, RecursionError]
    with pytest.raises(RecursionError):
        Sorted().reception.take([([b"\x02bad"], A)], 1.0)
