"""A stream's connection that only keeps what it is told."""

from __future__ import annotations

from meshnode.quic.stream import Stream


class Table:
    """What a stream asks of its connection."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.granted = self.queue = self.pauses = 0
        self.is_ended = self.is_reset = False

    def send(self, stream_id: int, data: bytes, fin: bool) -> None:
        self.sent += data
        self.is_ended |= fin

    def consume(self, stream_id: int, count: int) -> None:
        self.granted += count

    def queued(self, stream_id: int) -> int:
        return self.queue

    def await_drain(self, stream: Stream) -> None:
        self.pauses += 1

    def forget(self, stream_id: int) -> None:
        """Nothing is kept here."""

    def stop(self, stream_id: int, code: int) -> None:
        """Nothing is sent here."""

    def reset(self, stream_id: int, code: int) -> None:
        """Keep that it was reset."""
        self.is_reset = True
