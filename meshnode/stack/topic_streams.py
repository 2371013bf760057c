"""The streams on which members of topics talk: one in each direction, apart from the control stream.

Apart, so that a busy topic never delays signs of life. Each message is two bytes of length and its canonical CBOR.
Rules when a link is slow: above ``TOPIC_LINK_WINDOW`` unacknowledged bytes it is busy, and the core keeps payloads
back; above ``TOPIC_LINK_QUEUE`` everything for it is dropped (counted), and when it has drained, its other end hears
which ids are at hand.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.limits import (
    TOPIC_FRAMES_BURST,
    TOPIC_FRAMES_PER_S,
    TOPIC_LINK_QUEUE,
    TOPIC_LINK_WINDOW,
    TOPIC_MAX_FRAME,
)
from meshnode.base.metrics import describe
from meshnode.base.token_bucket import TokenBucket
from meshnode.base.wire import WireError
from meshnode.errors import MeshError
from meshnode.gossip.messages import Message
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection, State
from meshnode.quic.stream import Stream
from meshnode.stack.context import Context
from meshnode.topics.messages import SERVICE, MemberMessage, decode_message, encode_message

LOOK_S = 0.02
HEADER = 2

QUEUE_FULL = describe("topic_queue_full", "topic messages dropped: the link is slow")
NO_LINK = describe("topic_no_link", "topic messages dropped: no connection to that member")
TOO_MANY = describe("topic_frames_many", "topic streams ended: their peer sent too many messages")
MALFORMED = describe("topic_drop_malformed", "topic streams ended: what came is no message")


class TopicStreams:
    """All such streams of one node.

    ``deliver`` takes what comes, ``on_busy`` hears when a link has enough to carry, and when it has no longer,
    ``drained`` of links that lack what was dropped and may be used again.
    """

    def __init__(
        self,
        context: Context,
        deliver: Callable[[NodeId, MemberMessage, float], None],
        on_busy: Callable[[NodeId, bool, float], None],
        drained: Callable[[NodeId, float], None],
    ) -> None:
        self._context = context
        self._deliver = deliver
        self._on_busy = on_busy
        self._drained = drained
        self._out: dict[NodeId, Stream] = {}
        self._in: dict[NodeId, Stream] = {}
        self._rates: dict[NodeId, TokenBucket] = {}  # of messages that linked peers send
        self._busy: dict[NodeId, None] = {}
        self._behind: dict[NodeId, None] = {}  # of these: peers that lack messages which were dropped
        self._timer = context.timers.timer(self._look)

    # ---- verbs

    def send(self, peer: NodeId, message: Message, now: float) -> None:
        """Send a message to a connected member."""
        stream = self._stream(peer)
        if stream is None:
            self._context.metrics.count(NO_LINK)
            return
        if stream.queued > TOPIC_LINK_QUEUE:
            self._context.metrics.count(QUEUE_FULL)
            self._behind[peer] = None
            return
        data = encode_message(message)
        try:
            stream.write(len(data).to_bytes(HEADER, "big") + data)
        except MeshError:
            self._context.metrics.count(NO_LINK)
            return
        if peer not in self._busy and stream.queued > TOPIC_LINK_WINDOW:
            if not self._busy:
                self._timer.set(now + LOOK_S)
            self._busy[peer] = None
            self._on_busy(peer, True, now)

    def release(self, peer: NodeId) -> None:
        """End the stream to a peer: no topic needs it any more."""
        stream = self._out.pop(peer, None)
        if stream is not None:
            stream.stop_reading()
            if stream.error is None and not stream.fin_sent:
                stream.write(b"", fin=True)

    def held(self) -> list[NodeId]:
        """Return the peers to which this node has a stream."""
        return list(self._out)

    def on_link(self, peer: NodeId, up: bool) -> None:
        """A connection came or went, and its streams with it."""
        if not up:
            for streams in (self._out, self._in):
                streams.pop(peer, None)
            self._busy.pop(peer, None)
            self._behind.pop(peer, None)
            self._rates.pop(peer, None)

    def on_stream(self, connection: Connection, stream: Stream) -> bool:
        """A peer opened a stream; True when it is one of these.

        A newer one takes the place of an older.
        """
        if stream.service != SERVICE:
            return False
        old = self._in.pop(connection.peer, None)
        if old is not None:
            old.reset()
        self._in[connection.peer] = stream
        stream.background = True
        stream.accept()
        buffer = bytearray()
        peer, clock = connection.peer, self._context.clock

        def changed() -> None:
            if stream.unread:
                buffer.extend(stream.read())
                self._take(peer, stream, buffer, clock.monotonic())
            if stream.error is not None or stream.at_eof:
                if self._in.get(peer) is stream:
                    del self._in[peer]
                if stream.error is None and not stream.fin_sent:
                    stream.write(b"", fin=True)

        stream.on_change = changed
        changed()
        return True

    # ---- inside

    def _stream(self, peer: NodeId) -> Stream | None:
        stream = self._out.get(peer)
        if stream is not None:  # a peer that has ended it gets no other on the same connection
            return stream if stream.error is None and not stream.fin_sent else None
        connection = self._context.peers.connection(peer)
        if connection is None or connection.state is not State.READY:
            return None
        try:
            stream = self._out[peer] = connection.open(SERVICE)
            stream.background = True
        except MeshError:
            return None
        return stream

    def _take(self, peer: NodeId, stream: Stream, buffer: bytearray, now: float) -> None:
        while len(buffer) >= HEADER:
            size = int.from_bytes(buffer[:HEADER], "big")
            if size > TOPIC_MAX_FRAME:
                self._end(stream, MALFORMED)
                return
            if len(buffer) < HEADER + size:
                return
            if not self._rate_of(peer, now).take(1, now):
                self._end(stream, TOO_MANY)
                return
            data = bytes(buffer[HEADER : HEADER + size])
            del buffer[: HEADER + size]
            try:
                message = decode_message(data)
            except WireError:
                self._end(stream, MALFORMED)
                return
            self._deliver(peer, message, now)

    def _rate_of(self, peer: NodeId, now: float) -> TokenBucket:
        rate = self._rates.get(peer)
        if rate is None:
            rate = self._rates[peer] = TokenBucket(TOPIC_FRAMES_PER_S, TOPIC_FRAMES_BURST, now)
        return rate

    def _end(self, stream: Stream, why: str) -> None:
        self._context.metrics.count(why)
        stream.reset()

    def _look(self, now: float) -> None:
        for peer in list(self._busy):
            stream = self._out.get(peer)
            if stream is None or stream.error is not None or stream.queued <= TOPIC_LINK_WINDOW // 2:
                del self._busy[peer]
                self._on_busy(peer, False, now)
                if peer in self._behind:
                    del self._behind[peer]
                    self._drained(peer, now)
        if self._busy:
            self._timer.set(now + LOOK_S)
