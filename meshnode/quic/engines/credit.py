"""Stream credit that follows the application, for an engine whose own follows the arrival of bytes.

``StreamWindows`` counts what each stream delivered, what the application took of it and what the peer was
granted. The grants (MAX_STREAM_DATA, RFC 9000 section 19.10) go into a 1-RTT packet of their own
(``packet_keys.py``). The engine's loss recovery never hears of these packets, so a grant is sent
again for as long as the peer may be waiting for it: while it has used up all that it surely knows of.
"""

from __future__ import annotations

import hmac
from dataclasses import field

from meshnode.base.bounded import BoundedDict
from meshnode.base.value import state
from meshnode.quic.datagram_queue import DatagramQueue
from meshnode.quic.engines.backlog import FRAME, Backlog

MAX_STREAM_DATA = 0x11
MAX_GRANTS = 60  # a packet; x 17 bytes at most = 1,020 of 1,200
MAX_DEAF = 1024  # streams let go of whose late bytes are still told from a new stream's
FIRST_WAIT_S = 0.02  # beside two round trips, for a grant that is on its way
LONGEST_WAIT_S = 5.0


@state
class _Window:
    limits: list[int]  # the limit that the peer surely knows, then those it may know; at most five
    delivered: int = 0
    consumed: int = 0
    ended: bool = False
    tries: int = 0
    resend_at: float | None = None


@state
class StreamWindows:
    """Receive windows of ``window`` bytes a stream; with none ``pending`` or ``waiting`` there is nothing to grant.

    While ``hold`` bytes are ``unread``, the engine hands nothing more on.
    """

    window: int
    hold: int = 1 << 62
    unread: int = 0  # bytes of all streams that the application has not taken
    datagrams: DatagramQueue | None = None  # what leaves the engine's one queue beside them
    backlog: Backlog = field(default_factory=lambda: Backlog(0.0))
    _streams: dict[int, _Window] = field(default_factory=dict)
    pending: dict[int, None] = field(default_factory=dict)  # streams to be granted more
    waiting: dict[int, None] = field(default_factory=dict)  # streams whose peer may wait for a lost grant
    _deaf: BoundedDict[int, None] | None = None

    def deliver(self, stream_id: int, count: int, fin: bool) -> bool:
        """Count ``count`` bytes that arrived in order on a stream, and ``fin``, its end.

        Returns False when the peer has now sent more than it was granted (a FLOW_CONTROL_ERROR, RFC 9000 section 4.1).
        A stream that was forgotten takes whatever comes.
        """
        self.backlog.brought += count + FRAME
        if self._deaf and stream_id in self._deaf:
            return True
        stream = self._streams.get(stream_id)
        if stream is None:
            stream = self._streams[stream_id] = _Window([self.window])
        stream.delivered += count
        self.unread += count
        limits = stream.limits
        if stream.delivered > limits[-1]:
            return False
        if stream.delivered >= limits[0]:
            if stream.delivered > limits[0]:
                stream.resend_at = None
                stream.tries = 0
                while limits[0] < stream.delivered:
                    del limits[0]
            self._watch(stream_id, stream)
        if fin:
            stream.ended = True
            self._drop_if_done(stream_id, stream)
        return True

    def end(self, stream_id: int) -> None:
        """Take note that nothing more comes on a stream, which gets no more credit; what is unread still counts."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.ended = True
            self._drop_if_done(stream_id, stream)

    def _watch(self, stream_id: int, stream: _Window) -> None:
        if stream.delivered == stream.limits[0] and len(stream.limits) > 1:
            self.waiting[stream_id] = None
        else:
            self.waiting.pop(stream_id, None)

    def _drop_if_done(self, stream_id: int, stream: _Window) -> None:
        if stream.ended:
            self.pending.pop(stream_id, None)
            self.waiting.pop(stream_id, None)
            if stream.consumed >= stream.delivered:
                self._streams.pop(stream_id, None)

    def consume(self, stream_id: int, count: int) -> bool:
        """Count bytes that the application took; True when a grant is due, or no more than ``hold`` are unread now.

        A grant is due when it would move the limit by at least a quarter of the window, and the stream has not ended.
        ``count`` is cut to what is unread; a stream that is not known counts for nothing.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        count = min(count, stream.delivered - stream.consumed)
        stream.consumed += count
        held = self.unread >= self.hold
        self.unread -= count
        if stream.ended:
            if stream.consumed >= stream.delivered:
                self._drop_if_done(stream_id, stream)
        elif stream.consumed + self.window - stream.limits[-1] >= self.window // 4:
            self.pending[stream_id] = None
            return True
        return held and self.unread < self.hold

    def forget(self, stream_id: int) -> None:
        """Drop a stream that is not read any more.

        What it has unread no longer counts in ``unread``, so it holds no other stream back. It gets no more credit,
        and what still arrives on it is accepted without being counted.
        """
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            self.unread -= stream.delivered - stream.consumed
        self.pending.pop(stream_id, None)
        self.waiting.pop(stream_id, None)
        if self._deaf is None:
            self._deaf = BoundedDict(MAX_DEAF)
        self._deaf[stream_id] = None

    def on_blocked(self, stream_id: int, limit: int) -> None:
        """Grant again when the peer says that ``limit`` blocks it and it was granted more (a grant was lost)."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.ended and stream.limits[-1] > limit:
            self.pending[stream_id] = None

    def resend(self) -> None:
        """Grant again at once what may have been lost, because the path has changed."""
        self.pending.update(self.waiting)

    def take_grants(self, now: float, rtt: float | None) -> list[tuple[int, int]]:
        """Return ``(stream, limit)`` for every grant to send now, at most ``MAX_GRANTS``.

        Those are the grants that are due, and those whose peer has used up what it surely knows of and stayed silent
        for two round trips (``rtt`` in seconds, None while it is not known), doubled by each try up to 5 s.
        """
        for stream_id in self.waiting:
            stream = self._streams[stream_id]
            if stream.resend_at is None:
                stream.resend_at = now + _resend_wait(stream, rtt)
            elif stream.resend_at <= now:
                stream.tries += 1
                self.pending[stream_id] = None
        grants = []
        for stream_id in list(self.pending)[:MAX_GRANTS]:
            del self.pending[stream_id]
            stream = self._streams[stream_id]
            limit = stream.consumed + self.window
            if limit > stream.limits[-1]:
                stream.limits.append(limit)
            stream.resend_at = None
            self._watch(stream_id, stream)
            if stream_id in self.waiting:
                stream.resend_at = now + _resend_wait(stream, rtt)
            grants.append((stream_id, stream.limits[-1]))
        return grants

    def next_resend(self) -> float | None:
        """Return when ``take_grants`` is due again for a grant that may be lost, None when there is none."""
        times = [at for stream_id in self.waiting if (at := self._streams[stream_id].resend_at) is not None]
        return min(times, default=None)


def _resend_wait(stream: _Window, rtt: float | None) -> float:
    """Return the seconds until a grant that stays unanswered is sent again: two round trips, doubled by each try."""
    return min(LONGEST_WAIT_S, (2 * (rtt or 0.1) + FIRST_WAIT_S) * 2.0 ** min(stream.tries, 10))


def max_stream_data(grants: list[tuple[int, int]]) -> bytes:
    """Return these ``(stream, limit)`` as frames; ``MAX_GRANTS`` fit a packet."""
    return b"".join(bytes([MAX_STREAM_DATA]) + varint(stream) + varint(limit) for stream, limit in grants)


def expand(secret: bytes, label: bytes, size: int) -> bytes:
    """Return HKDF-Expand-Label without a context (RFC 8446 section 7.1), at most 32 bytes."""
    label = b"tls13 " + label
    info = size.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0"
    return hmac.digest(secret, info + b"\x01", "sha256")[:size]


def varint(value: int) -> bytes:
    """Return a variable-length integer (RFC 9000 section 16) in its 1- or 8-byte form."""
    return bytes([value]) if value < 64 else (value | 3 << 62).to_bytes(8, "big")
