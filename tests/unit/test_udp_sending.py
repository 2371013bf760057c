"""What a socket makes of the kernel's refusals: they are of a moment, a device or a route, and not for good."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from meshnode.base.address import Addr
from meshnode.base.metrics import Metrics
from meshnode.runtime import asked_addresses, udp
from meshnode.runtime.asked_addresses import INFO_6, MAPPED, QUIET_S
from meshnode.runtime.udp import UdpSocket

PEER = Addr("192.0.2.1", 4242)
NEAR = Addr("fe80::1%eth0", 4242)


class Kernel:
    """A socket that refuses runs while it is told to, and scopes but the one that there is."""

    family = socket.AF_INET6

    def __init__(self) -> None:
        self.refusal = 0
        self.scope = 0
        self.runs = 0
        self.alone = 0

    def sendmsg(self, datagrams: list[bytes], ancillary: list[Any], flags: int, to: Any) -> None:
        """Send several as one."""
        if self.refusal:
            raise OSError(self.refusal, "refused")
        self.runs += 1

    def sendto(self, datagram: bytes, to: tuple[str, int, int, int]) -> None:
        """Send one."""
        if to[3] != self.scope:
            raise OSError(errno.ENODEV, "no such interface")
        self.alone += 1


class Node:
    """A socket's owner."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.kernel: Any = Kernel()
        self.udp = UdpSocket(self.loop, lambda runs: None, Metrics())
        self.udp._socket = self.kernel


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EIO])  # of a small MTU or no source address, and of IPsec
def test_runs_that_a_device_refused_are_tried_again_later(monkeypatch: pytest.MonkeyPatch, refusal: int) -> None:
    monkeypatch.setattr(udp, "GSO_AGAIN_S", 0.0)
    node = Node()
    node.kernel.refusal = refusal
    assert node.udp.send(PEER, [bytes(1_200)] * 4)
    assert (node.kernel.runs, node.kernel.alone) == (0, 4)
    node.kernel.refusal = 0
    assert node.udp.send(PEER, [bytes(1_200)] * 4)
    assert (node.kernel.runs, node.kernel.alone) == (0, 8), "not each time"
    node.loop.run_until_complete(asyncio.sleep(0.01))
    assert node.udp.send(PEER, [bytes(1_200)] * 4)
    assert (node.kernel.runs, node.kernel.alone) == (1, 8)


def test_a_peer_on_the_link_is_reached_by_an_interface_that_was_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node()
    node.kernel.scope = 3
    monkeypatch.setattr(udp.socket, "if_nametoindex", lambda name: node.kernel.scope)
    assert node.udp.send(NEAR, [b"x"])
    node.kernel.scope = 7
    assert not node.udp.send(NEAR, [b"x"])
    assert node.udp.send(NEAR, [b"x"])


class Renamed(Kernel):
    """A socket of a host whose interface gets another name, for which it is down."""

    def __init__(self) -> None:
        super().__init__()
        self.scope, self.name = 3, "eth0"
        self.waiting = 0

    def index(self, name: str) -> int:
        """Return the number of an interface."""
        if name != self.name:
            raise OSError(errno.ENODEV, "no such interface")
        return 3

    def recvmsg_into(self, buffers: list[memoryview], size: int) -> tuple[int, list[Any], int, tuple[Any, ...]]:
        """Return a datagram of ``NEAR``."""
        if not self.waiting:
            raise BlockingIOError
        self.waiting -= 1
        buffers[0][:1] = b"\x01"
        return 1, [], 0, ("fe80::1", 4242, 0, 3)


def test_a_peer_on_the_link_is_answered_by_an_interface_that_has_another_name_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel: Any = Renamed()
    heard: list[Any] = []
    node = UdpSocket(asyncio.new_event_loop(), lambda runs: heard.extend(source for _, source in runs), Metrics())
    node._socket = kernel
    monkeypatch.setattr(udp.socket, "if_nametoindex", kernel.index)
    monkeypatch.setattr(udp.socket, "if_indextoname", lambda index: kernel.name)

    def hear() -> Any:
        kernel.waiting += 1
        node._readable(kernel)
        return heard[-1]

    assert hear() == NEAR
    assert node.send(NEAR, [b"x"])
    kernel.scope = 0
    assert not node.send(NEAR, [b"x"])
    kernel.scope, kernel.name = 3, "lan0"
    assert not node.send(hear(), [b"x"]), "nothing told of it"
    assert node.send(hear(), [b"x"])
    assert heard[-1] == Addr("fe80::1%lan0", 4242)


class TwoAddresses(Kernel):
    """A socket of a host with a second address, which tells to which of them what was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []
        self.left: list[bytes] = []  # the addresses from which datagrams were sent, b"" for the kernel's choice
        self.routeless = False

    def setsockopt(self, *option: int) -> None:
        """Tell of addresses."""

    def recvmsg_into(self, buffers: list[memoryview], size: int) -> tuple[int, list[Any], int, tuple[Any, ...]]:
        """Return the next datagram of ``PEER``, to one of this host's addresses."""
        if not self.waiting:
            raise BlockingIOError
        buffers[0][:1] = b"\x01"
        return 1, [(*INFO_6, _mapped(self.waiting.pop(0)) + bytes(4))], 0, ("::ffff:192.0.2.1", 4242, 0, 0)

    def sendmsg(self, datagrams: list[bytes], ancillary: list[Any], flags: int, to: Any) -> None:
        """Send from an address."""
        if self.routeless:
            raise OSError(errno.ENETUNREACH, "no route from there")
        if len(datagrams) > 1 and self.refusal:
            raise OSError(self.refusal, "refused")
        self.left.append(ancillary[0][2][:16])

    def sendto(self, datagram: bytes, to: tuple[str, int, int, int]) -> None:
        """Send from where the kernel likes."""
        self.left.append(b"")


def _mapped(host: str) -> bytes:
    return MAPPED + socket.inet_aton(host)


def test_what_comes_to_a_second_address_is_answered_from_it_and_a_proven_source_moves_nothing() -> None:
    node = Node()
    kernel = node.udp._socket = node.kernel = TwoAddresses()  # type: ignore[assignment]
    first, second = "10.0.0.1", "10.0.0.2"
    proven: dict[Any, None] = {}
    node.udp.answer_from([second], proven)
    for to in (first, second, first, second):
        kernel.waiting.append(to)
        node.udp._readable(kernel)  # type: ignore[arg-type]
        assert node.udp.send(PEER, [b"x"])
    assert kernel.left == [b"", _mapped(second)] * 2
    proven[PEER] = None
    kernel.waiting.append(first)
    node.udp._readable(kernel)  # type: ignore[arg-type]
    assert node.udp.send(PEER, [b"x", b"x"])
    assert kernel.left[4:] == [_mapped(second)], "and a run"
    kernel.routeless = True
    assert node.udp.send(PEER, [b"x"])
    assert kernel.left[5:] == [b""], "the kernel knows a way"
    kernel.routeless = False
    assert node.udp.send(PEER, [b"x"])
    assert kernel.left[6:] == [_mapped(second)], "a refusal of a moment takes nothing away"
    node.udp.answer_from([], proven)
    assert node.udp.send(PEER, [b"x"])
    assert kernel.left[7:] == [b""]


def test_where_nothing_comes_to_the_second_address_any_more_a_proven_peer_is_answered_by_both_ways(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(asked_addresses.time, "monotonic", lambda: now)
    node = Node()
    kernel = node.udp._socket = node.kernel = TwoAddresses()  # type: ignore[assignment]
    first, second = "10.0.0.1", "10.0.0.2"
    proven: dict[Any, None] = {}
    node.udp.answer_from([second], proven)
    kernel.waiting.append(second)
    node.udp._readable(kernel)  # type: ignore[arg-type]
    now += QUIET_S + 1.0
    assert node.udp.send(PEER, [b"x"])
    assert kernel.left == [_mapped(second)], "one that is not proven is sent no byte twice"
    proven[PEER] = None
    for to, left in ((first, [_mapped(second), b""]), (second, [_mapped(second)])):
        kernel.waiting.append(to)
        node.udp._readable(kernel)  # type: ignore[arg-type]
        kernel.left.clear()
        assert node.udp.send(PEER, [b"x"])
        assert kernel.left == left
    kernel.routeless = True
    now += QUIET_S + 1.0
    kernel.left.clear()
    assert node.udp.send(PEER, [b"x", b"y"])
    assert kernel.left == [b"", b""], "each once, where the kernel refuses the other way"


def test_a_device_that_takes_no_runs_takes_no_address_from_a_peer() -> None:
    node = Node()
    kernel = node.udp._socket = node.kernel = TwoAddresses()  # type: ignore[assignment]
    second = "10.0.0.2"
    node.udp.answer_from([second], {})
    kernel.waiting.append(second)
    node.udp._readable(kernel)  # type: ignore[arg-type]
    kernel.refusal = errno.EIO
    for _ in range(2):
        assert node.udp.send(PEER, [b"x"] * 3)
    assert kernel.left == [_mapped(second)] * 6


class Ending(TwoAddresses):
    """A socket that ends, with an error at the next of these calls."""

    def __init__(self, call: str, error: int) -> None:
        super().__init__()
        self.closed = self.detached = False
        self._call, self._error = call, error

    def fileno(self) -> int:
        """Return a number that no loop knows."""
        return 1_000_000

    def _end(self, call: str) -> None:
        if call == self._call:
            raise OSError(self._error, "over")

    def recvmsg_into(self, buffers: list[memoryview], size: int) -> tuple[int, list[Any], int, tuple[Any, ...]]:
        """Return a datagram, or end."""
        self._end("recvmsg_into")
        return super().recvmsg_into(buffers, size)

    def sendmsg(self, datagrams: list[bytes], ancillary: list[Any], flags: int, to: Any) -> None:
        """Send a run, or from an address, or end."""
        self._end("sendmsg")
        super().sendmsg(datagrams, ancillary, flags, to)

    def sendto(self, datagram: bytes, to: tuple[str, int, int, int]) -> None:
        """Send, or end."""
        self._end("sendto")
        super().sendto(datagram, to)

    def detach(self) -> int:
        """Give the number up."""
        self.detached = True
        return self.fileno()

    def close(self) -> None:
        """Close."""
        self.closed = True


@pytest.mark.parametrize("error", [errno.ECONNABORTED, errno.EBADF])
@pytest.mark.parametrize(
    ("call", "asked"), [("recvmsg_into", ""), ("sendto", ""), ("sendmsg", ""), ("sendmsg", "10.0.0.2")]
)
def test_a_socket_that_the_kernel_has_ended_is_closed_and_its_end_is_told_once(
    call: str, asked: str, error: int
) -> None:
    told: list[None] = []
    metrics = Metrics()
    kernel: Any = Ending(call, error)
    node = UdpSocket(asyncio.new_event_loop(), lambda runs: None, metrics, on_end=lambda: told.append(None))
    node._socket = kernel
    if asked:
        node.answer_from([asked], {})
        kernel.waiting.append(asked)
        node._readable(kernel)
    for _ in range(3):
        node._readable(kernel)
        node.send(PEER, [b"x"] * (1 if call == "sendto" else 3))
    assert (len(told), metrics.counters["udp_ended"]) == (1, 1)
    assert kernel.closed
    assert kernel.detached == (error == errno.EBADF), "its number may be another file's"
    assert not node.send(PEER, [b"x"]), "there is no way until it is bound again"
