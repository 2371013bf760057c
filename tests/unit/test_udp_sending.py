"""What a socket makes of the kernel's refusals: they are of a moment, a device or a route, and not for good."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from meshnode.base.address import Addr
from meshnode.base.metrics import Metrics
from meshnode.runtime import udp
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
