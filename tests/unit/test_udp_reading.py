"""How often a socket is read in one turn of the loop: all that waits, but no more often than that needs."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import time
from typing import Any

import pytest

from meshnode.base.address import Addr
from meshnode.base.metrics import Metrics
from meshnode.runtime import udp
from meshnode.runtime.udp import ALONE, COMPARE_S, GRO_SIZE, UdpSocket
from meshnode.stack.reception import Run


class Kernel:
    """A socket with datagrams in it, which counts how often it is read."""

    def __init__(self) -> None:
        self.waiting = 0
        self.reads = 0
        self.segments = 1  # datagrams that come as one, by GRO

    def recvmsg_into(self, buffers: list[memoryview], size: int) -> tuple[int, list[Any], int, tuple[str, int]]:
        """Return the next datagram, or raise BlockingIOError."""
        self.reads += 1
        if not self.waiting:
            raise BlockingIOError
        self.waiting -= 1
        size = 9 * self.segments
        buffers[0][:size] = (b"\x40" + bytes(8)) * self.segments
        return size, [(*GRO_SIZE, struct.pack("=i", 9))], 0, ("127.0.0.1", 4242)


class Node:
    """A socket's owner: it wakes up while datagrams wait, as epoll has it do."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.kernel: Any = Kernel()
        self.udp = UdpSocket(asyncio.new_event_loop(), self.take, Metrics())

    def take(self, runs: list[Run]) -> None:
        """Note how many came."""
        self.batches.append(sum(len(datagrams) for datagrams, _ in runs))

    def arrive(self, count: int) -> int:
        """Have so many arrive, and wake up until all are read; returns how often the socket was read."""
        before, self.kernel.waiting = self.kernel.reads, count
        while self.kernel.waiting:
            self.udp._readable(self.kernel)
        return int(self.kernel.reads - before)


def test_a_socket_with_one_datagram_a_turn_is_soon_not_asked_for_a_second() -> None:
    node = Node()
    assert node.arrive(1) == 2, "the second finds that there is none"
    reads = [node.arrive(1) for _ in range(100 * ALONE)]
    assert sum(reads) <= 1.2 * len(reads)
    assert sum(node.batches) == 1 + len(reads)


def test_what_waits_together_is_read_in_one_turn_again_within_a_few_turns() -> None:
    node = Node()
    for _ in range(10 * ALONE):
        node.arrive(1)
    node.batches.clear()
    for _ in range(10 * ALONE):
        node.arrive(3)
    assert sum(node.batches) == 3 * 10 * ALONE, "none is left"
    assert node.batches.index(3) <= 4 * ALONE
    assert set(node.batches[node.batches.index(3) :]) == {3}


def test_a_transfer_is_read_until_nothing_is_left() -> None:
    node = Node()
    node.kernel.segments = 16
    assert {node.arrive(1) for _ in range(10 * ALONE)} == {2}, "more is there, or soon will be: one flush for all"


@pytest.mark.parametrize("read_out", [True, False])
def test_what_waits_where_a_socket_was_is_read_before_it_is_closed(read_out: bool) -> None:
    node = Node()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        node.udp.bind(Addr("127.0.0.1", 0))
        for _ in range(100):
            peer.sendto(b"\x40" + bytes(8), ("127.0.0.1", node.udp.local.port))
        node.udp.bind(Addr("127.0.0.1", 0), read_out=read_out)
        assert sum(node.batches) == (100 if read_out else 0), "nothing takes it while a node starts"
    node.udp.close()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells when it took a datagram")
def test_a_process_with_a_clock_of_its_own_takes_nothing_for_old(monkeypatch: pytest.MonkeyPatch) -> None:
    real, taken, metrics = time.time, list[bytes](), Metrics()
    loop = asyncio.new_event_loop()
    node = UdpSocket(loop, lambda runs: taken.extend(data for run, _ in runs for data in run), metrics)
    node.bind(Addr("127.0.0.1", 0))
    at = loop.time()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        for off in (20.0, -20.0, 0.0, 400.0):
            monkeypatch.setattr(time, "time", lambda off=off: real() + off)
            at += COMPARE_S
            monkeypatch.setattr(loop, "time", lambda at=at: at)
            taken.clear()
            for _ in range(2):  # the first one may be dropped: by it the clock is looked at
                peer.sendto(b"\1sealed", node.local)
                node._readable(node._socket)  # type: ignore[arg-type]
            assert taken[-1:] == [b"\1sealed"]
    assert metrics.counters["drop_waited"] <= 3
    node.close()
    loop.close()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells when it took a datagram")
def test_much_that_waited_too_long_costs_one_look_at_the_clock_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = list[float]()
    loop = asyncio.new_event_loop()
    node = UdpSocket(loop, lambda runs: None, Metrics())
    node.bind(Addr("127.0.0.1", 0))
    monkeypatch.setattr(udp, "kernel_ahead", lambda: looks.append(loop.time()) or 0.0)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 60)
    now = loop.time()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        for step in range(30):
            monkeypatch.setattr(loop, "time", lambda at=now + step / 10: at)
            peer.sendto(b"\1sealed", node.local)
            node._readable(node._socket)  # type: ignore[arg-type]
    assert [round(at - now) for at in looks] == [0, 1, 2]
    node.close()
    loop.close()
