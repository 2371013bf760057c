"""What has waited in the kernel for longer than its sender waits for an answer is dropped before it costs anything."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import MAX_QUEUED_S
from meshnode.base.metrics import Metrics
from meshnode.runtime import udp
from meshnode.runtime.udp import STALE, UdpSocket

SEALED, QUIC = b"\x01" * 200, b"\x41" * 200


@pytest.mark.parametrize("family", ["127.0.0.1", "::1"])
async def test_a_sealed_datagram_that_waited_is_dropped_and_a_packet_of_a_stream_is_not(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bytes] = []
    metrics = Metrics()
    node = UdpSocket(asyncio.get_running_loop(), lambda runs: heard.extend(d for run in runs for d in run[0]), metrics)
    kind = socket.AF_INET6 if ":" in family else socket.AF_INET
    try:
        node.bind(Addr(family, 0))
        with socket.socket(kind, socket.SOCK_DGRAM) as sender:

            async def send() -> list[bytes]:
                heard.clear()
                for data in (SEALED, QUIC):
                    sender.sendto(data, (family, node.local.port))
                for _ in range(100):
                    await asyncio.sleep(0.01)
                    if len(heard) + metrics.counters.get(STALE, 0) >= 2:
                        break
                return heard

            assert await send() == [SEALED, QUIC]
            now = time.time
            monkeypatch.setattr(udp.time, "time", lambda: now() + MAX_QUEUED_S + 1.5)
            assert await send() == [QUIC]
            assert metrics.counters[STALE] == 1
    finally:
        node.close()
