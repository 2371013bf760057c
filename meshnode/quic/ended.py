"""An engine that is left of a connection that has ended: its ids, and nothing that costs memory.

Engines refer to themselves in circles, so that what they hold (70 kB a connection) would wait for a garbage collection.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshnode.quic.datagram_queue import DatagramQueue
from meshnode.quic.seam import Engine, EngineEvent


class EndedEngine:
    """Stands in for a released engine: it sends nothing, waits for nothing and swallows what comes."""

    handshake_confirmed = False
    peer_certificate_key = None
    datagrams = DatagramQueue((), lambda: None)
    backlog = 0

    def __init__(self, engine: Engine) -> None:
        self.odcid = engine.odcid
        self.host_cid = engine.host_cid

    def receive(self, datagrams: Sequence[bytes], now: float) -> bool:
        return False

    def transmit(self, now: float) -> list[bytes]:
        return []

    def next_timer(self) -> float | None:
        return None

    def on_timer(self, now: float) -> None:
        pass

    def events(self) -> Sequence[EngineEvent]:
        return ()

    def open_stream(self) -> int:
        raise AssertionError("a connection that has ended opens no stream")

    def send(self, stream_id: int, data: bytes | memoryview, fin: bool = False) -> None:
        pass

    def reset(self, stream_id: int, code: int) -> None:
        pass

    def stop(self, stream_id: int, code: int) -> None:
        pass

    def queued_bytes(self, stream_id: int) -> int:
        return 0

    def consumed(self, stream_id: int, count: int) -> bool:
        return False

    def unread(self) -> int:
        return 0

    def in_flight(self) -> int:
        return 0

    def rtt(self) -> float | None:
        return None

    def nudge(self, now: float) -> None:
        pass

    def set_datagram_size(self, size: int) -> None:
        pass

    def ping(self) -> None:
        pass

    def close(self, code: int, reason: str) -> None:
        pass

    def abandon(self) -> None:
        pass

    def release(self) -> None:
        pass
