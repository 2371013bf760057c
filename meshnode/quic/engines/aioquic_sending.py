"""What aioquic writes into packets: credit by what the application has consumed, and few streams at a time.

aioquic goes through every stream for every packet, idle ones too: 2,000 streams of 3,000 bytes cost four million steps,
minutes of CPU. Here it is given the streams that have something to say, ``AT_ONCE`` at once.
"""

from __future__ import annotations

from typing import Any

from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from meshnode.quic.engines.common import CONNECTION_WINDOW, STREAM_WINDOW
from meshnode.quic.engines.ranges import StreamsOf

AT_ONCE = 32  # streams that take part in a packet; the others' turn comes when these have nothing more to say


class Sending(QuicConnection):
    """QuicConnection whose windows follow what was consumed, and whose packets cost what is in them.

    Attributes:
        consumed: Bytes that the application took, by stream.
        consumed_total: Bytes that it took of all streams.
    """

    consumed: dict[int, int]
    consumed_total: int
    _streams: StreamsOf

    def _write_application(self, builder: QuicPacketBuilder, network_path: Any, now: float) -> None:
        """Let the streams that have something to say take their turns; aioquic's own order holds among those."""
        queue = self._streams_queue
        if len(queue) <= AT_ONCE:
            super()._write_application(builder, network_path, now)
            return
        speaking: list[QuicStream] = []
        silent: list[QuicStream] = []
        for stream in queue:
            (speaking if _has_something(stream) else silent).append(stream)
        behind: list[QuicStream] = []
        self._streams.show([stream for stream in self._streams.values() if self._is_due(stream)])
        try:
            while True:
                self._streams_queue, speaking = speaking[:AT_ONCE], speaking[AT_ONCE:]
                super()._write_application(builder, network_path, now)
                behind += self._streams_queue
                self._streams_queue = []
                if not speaking:
                    break
        finally:
            self._streams.show(None)
            self._streams_queue = [*speaking, *self._streams_queue, *behind, *silent]

    def _is_due(self, stream: QuicStream) -> bool:
        """Return whether the peer is to be told a limit of the stream: a new one, or one that was lost."""
        local = stream.max_stream_data_local
        if not local:
            return False
        want = self.consumed.get(stream.stream_id or 0, 0) + STREAM_WINDOW
        return want - local >= STREAM_WINDOW // 4 or stream.max_stream_data_local_sent != local

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        local = stream.max_stream_data_local
        if local and stream.stream_id is not None:
            want = self.consumed.get(stream.stream_id, 0) + STREAM_WINDOW
            if want - local >= STREAM_WINDOW // 4:
                stream.max_stream_data_local = local = want
            if stream.max_stream_data_local_sent == local:
                return
            highest = stream.receiver.highest_offset
            stream.receiver.highest_offset = 0  # keeps the stock rule from doubling the window
            try:
                super()._write_stream_limits(builder, space, stream)
            finally:
                stream.receiver.highest_offset = highest

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        limit = self._local_max_data
        want = self.consumed_total + CONNECTION_WINDOW
        if want - limit.value >= CONNECTION_WINDOW // 4:
            limit.value = want
        used, limit.used = limit.used, 0
        try:
            super()._write_connection_limits(builder, space)
        finally:
            limit.used = used


def _has_something(stream: QuicStream) -> bool:
    """Return whether a stream has anything for a packet, or is to be forgotten, which the peer is told of."""
    sender, receiver = stream.sender, stream.receiver
    if not sender.buffer_is_empty or sender.reset_pending or receiver.stop_pending:
        return True
    return bool(sender.is_finished and receiver.is_finished)
