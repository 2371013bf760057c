"""A modelled reliable link behind the engine seam: QUIC's shape and timing without TLS, for thousands of nodes.

What the driver sees of a packet is real (``quic/packets.py``): an Initial of 1,200 bytes with the knock as its
token, 8-byte connection ids, short headers. The rest is a plain struct: no keys, no encryption, so it proves
nothing and must never leave a simulation. All its bytes come from the given entropy: a run repeats exactly.

    short header  0x40 | dcid 8 | number 4 | floor 4 | frames       (floor: the oldest packet still in flight)
    long header   as RFC 9000 section 17.2; the Handshake's payload is the listener's key

Unlike QUIC: one packet number space, every packet acknowledged at once, one connection id a side.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from meshnode.clock import Entropy
from meshnode.errors import StreamLimitError
from meshnode.identity import Identity, NodeId
from meshnode.quic.engine import (
    IDLE,
    LOCAL,
    EngineEvent,
    HandshakeDone,
    StopSending,
    StreamData,
    StreamReset,
    Terminated,
)
from meshnode.quic.packets import CID_LENGTH, LONG, MIN_INITIAL, VERSION_1
from meshnode.sim.flows import CONNECTION_WINDOW, STREAM_WINDOW, STREAMS, Flow
from meshnode.sim.recovery import Recovery, Sent

INITIAL, HANDSHAKE, SHORT = b"\xc0", b"\xe0", 0x40
HEADER = struct.Struct("!B8sII")
RANGE = struct.Struct("!II")
DATA = struct.Struct("!BIQH")  # kind, stream, offset, length
LIMIT = struct.Struct("!BIQ")  # kind, stream or 0, value
CLOSE = struct.Struct("!BiH")  # kind, code, length of the reason
ACK, STREAM, STREAM_FIN, RESET, STOP, MAX_STREAM, MAX_DATA, MAX_STREAMS, PING, DONE, GOODBYE = range(1, 12)
PING_FRAME = LIMIT.pack(PING, 0, 0)
MAX_RANGES = 32
NUDGE_PACKETS = 32
AMPLIFICATION = 3
TAG = bytes(16)  # what an AEAD would add, so that sizes are QUIC's
NO_EVENTS: tuple[EngineEvent, ...] = ()


class ModelEngine:
    """One connection; see ``meshnode.quic.engine.Engine`` for the contract of each method."""

    def __init__(self, me: NodeId, odcid: bytes, host_cid: bytes, idle_timeout: float, now: float) -> None:
        self.odcid = odcid
        self.host_cid = host_cid
        self.peer_certificate_key: bytes | None = None
        self.handshake_confirmed = False
        self._me = me
        self._client = False
        self._token = b""
        self._peer_cid = b""
        self._established = False  # 1-RTT packets may be sent
        self._greet = False  # a handshake packet is due
        self._greeted = 0
        self._greeted_at = now
        self._unproven = 0  # bytes that a listener may still send before the handshake is done
        self._idle = idle_timeout
        self._idle_at = now + idle_timeout
        self._gone = False
        self._events: list[EngineEvent] = []
        self._goodbye: bytes | None = None
        self._recovery = Recovery()
        self._size = MIN_INITIAL
        self._number = 0
        self._seen: list[list[int]] = []
        self._ack = False
        self._controls: list[bytes] = []
        self._flows: dict[int, Flow] = {}
        self._ready: dict[int, Flow] = {}  # may have something to send
        self._own_next = self._peer_next = 0
        self._own_limit = STREAMS
        self._peer_over = self._peer_granted = 0
        self._sent_total = self._received_total = self._consumed_total = 0
        self._send_limit = self._granted = CONNECTION_WINDOW

    def start(self, token: bytes) -> None:
        """Be the dialler."""
        self._client = self._greet = True
        self._token = token
        self._peer_cid = self.odcid
        self._peer_next = 1

    def listen(self) -> None:
        """Be the listener."""
        self._own_next = 1

    # ---- in

    def receive(self, data: bytes, now: float) -> bool:
        """Feed one datagram; junk is ignored."""
        if self._gone:
            return False
        try:
            if data[0] & LONG:
                self._on_handshake_packet(data, now)
                return False
            _, dcid, number, floor = HEADER.unpack_from(data)
            if dcid != self.host_cid or data[-len(TAG) :] != TAG or not self._peer_cid:
                return False
            if not self._accept(number, floor):
                return False
            newest: bool = number == self._seen[-1][1]
            self._idle_at = now + self._idle
            if not self.handshake_confirmed:
                self._confirm(now)
            self._on_frames(data, HEADER.size, len(data) - len(TAG), now)
        except (struct.error, IndexError):
            return False
        return newest

    def _on_handshake_packet(self, data: bytes, now: float) -> None:
        at = 6 + data[5]
        scid = data[at + 1 : at + 1 + CID_LENGTH]
        self._idle_at = now + self._idle
        if self._client:
            if not self._established and data[:1] == HANDSHAKE and data[6:at] == self.host_cid:
                key = data[at + 1 + CID_LENGTH :][:32]
                self._peer_cid, self.peer_certificate_key = scid, key
                self._established = True
                self._greet = False
                if self._greeted == 1:
                    self._recovery.sample(now - self._greeted_at)
                self._events.append(HandshakeDone())
        elif data[:1] == INITIAL and not self.handshake_confirmed:
            self._peer_cid = scid
            self._unproven += AMPLIFICATION * len(data)
            self._greet = True

    def _confirm(self, now: float) -> None:
        self.handshake_confirmed = True
        if not self._client:
            self._established = True
            self._greet = False
            if self._greeted == 1:
                self._recovery.sample(now - self._greeted_at)
            self._events.append(HandshakeDone())
            self._controls.append(LIMIT.pack(DONE, 0, 0))

    def _accept(self, number: int, floor: int) -> bool:
        """Note a packet number; False for a duplicate. Below the floor nothing is owed any more."""
        seen = self._seen
        while seen and seen[0][1] < floor and len(seen) > 1:
            del seen[0]
        if not seen:
            seen.append([number, number])
            return True
        last = seen[-1]
        if number == last[1] + 1:
            last[1] = number
            return True
        if number < floor or (number < seen[0][0] - 1 and len(seen) >= MAX_RANGES):
            return False
        if number > last[1]:
            seen.append([number, number])
            if len(seen) > MAX_RANGES:
                del seen[0]
            return True
        for i, (low, high) in enumerate(seen):
            if low <= number <= high:
                return False
            if number < low:
                seen.insert(i, [number, number])
                break
        self._seen = merged = seen[:1]
        for low, high in seen[1:]:
            if low == merged[-1][1] + 1:
                merged[-1][1] = high
            else:
                merged.append([low, high])
        return True

    def _on_frames(self, data: bytes, at: int, end: int, now: float) -> None:
        while at < end and not self._gone:
            kind = data[at]
            if kind == ACK:
                count = data[at + 1]
                at += 2
                ranges = [RANGE.unpack_from(data, at + 8 * i) for i in range(count)]
                at += 8 * count
                self._on_ack(ranges, now)
                continue
            self._ack = True
            if kind in (STREAM, STREAM_FIN):
                _, stream_id, offset, length = DATA.unpack_from(data, at)
                at += DATA.size
                self._on_stream(stream_id, offset, data[at : at + length], kind == STREAM_FIN)
                at += length
            elif kind == GOODBYE:
                _, code, length = CLOSE.unpack_from(data, at)
                at += CLOSE.size
                reason = data[at : at + length].decode(errors="replace")
                self._end(Terminated(code, reason, True))
            else:
                kind, stream_id, value = LIMIT.unpack_from(data, at)
                at += LIMIT.size
                self._on_control(kind, stream_id, value)

    def _on_ack(self, ranges: list[tuple[int, int]], now: float) -> None:
        if ranges[-1][1] >= self._number:
            raise struct.error("acknowledges what was never sent")
        acked, lost = self._recovery.on_ack(ranges, now)
        for packet in acked:
            for stream_id, begin, stop, fin in packet.pieces:
                flow = self._flows.get(stream_id)
                if flow is not None:
                    flow.send.on_acked(begin, stop, fin)
                    self._maybe_over(stream_id, flow)
            for control in packet.controls:
                if control[0] == RESET:
                    _, stream_id, _ = LIMIT.unpack(control)
                    flow = self._flows.get(stream_id)
                    if flow is not None:
                        flow.send.reset_acked = True
                        self._maybe_over(stream_id, flow)
        self._requeue(lost)

    def _requeue(self, packets: list[Sent]) -> None:
        for packet in packets:
            self._controls += packet.controls
            for stream_id, begin, end, fin in packet.pieces:
                flow = self._flows.get(stream_id)
                if flow is not None:
                    flow.send.lost.append((begin, end, fin))
                    self._ready[stream_id] = flow

    def _flow_of_peer(self, stream_id: int) -> Flow | None:
        """The stream; opens it, and all below it, when it is the peer's next (RFC 9000 section 2.1)."""
        flow = self._flows.get(stream_id)
        if flow is not None or stream_id & 1 == self._own_next & 1 or stream_id < self._peer_next:
            return flow
        if stream_id // 4 >= self._peer_granted + STREAMS:
            self._end(Terminated(LOCAL, "the peer broke the protocol: too many streams", False))
            return None
        while self._peer_next <= stream_id:
            flow = self._flows[self._peer_next] = Flow()
            self._peer_next += 4
        return flow

    def _on_stream(self, stream_id: int, offset: int, data: bytes, fin: bool) -> None:
        flow = self._flow_of_peer(stream_id)
        if flow is None or flow.receive.told:
            return
        half = flow.receive
        stop = offset + len(data)
        if stop > half.highest:
            self._received_total += stop - half.highest
            half.highest = stop
        if stop > half.granted or self._received_total > self._granted:
            self._end(Terminated(LOCAL, "the peer broke the protocol: over the window", False))
            return
        if fin:
            half.end = stop
        ready = half.feed(offset, data)
        ended = half.end is not None and half.next == half.end
        if ready or ended:
            half.told = ended
            self._events.append(StreamData(stream_id, ready, ended))
            if ended:
                self._maybe_over(stream_id, flow)

    def _on_control(self, kind: int, stream_id: int, value: int) -> None:
        if kind == MAX_DATA:
            self._send_limit = max(self._send_limit, value)
            self._ready.update(self._flows)
            return
        if kind == MAX_STREAMS:
            self._own_limit = max(self._own_limit, value)
            return
        if kind not in (RESET, STOP, MAX_STREAM):
            return
        flow = self._flow_of_peer(stream_id)
        if flow is None:
            return
        if kind == MAX_STREAM:
            flow.send.limit = max(flow.send.limit, value)
            self._ready[stream_id] = flow
        elif kind == RESET and not flow.receive.told:
            flow.receive.told = True
            self._events.append(StreamReset(stream_id, value))
            self._maybe_over(stream_id, flow)
        elif kind == STOP and not flow.send.reset:
            self.reset(stream_id, 0)
            self._events.append(StopSending(stream_id, value))

    def _maybe_over(self, stream_id: int, flow: Flow) -> None:
        if not flow.over or self._flows.pop(stream_id, None) is None:
            return
        self._ready.pop(stream_id, None)
        if stream_id & 1 != self._own_next & 1:
            self._peer_over += 1
            if self._peer_over - self._peer_granted >= STREAMS // 4:
                self._peer_granted = self._peer_over
                self._controls.append(LIMIT.pack(MAX_STREAMS, 0, self._peer_granted + STREAMS))

    # ---- out

    def transmit(self, now: float) -> list[bytes]:
        """Build datagrams."""
        if self._gone:
            goodbye, self._goodbye = self._goodbye, None
            return [goodbye] if goodbye is not None else []
        if self._greet:
            self._greet = False
            if not self._client:
                if self._unproven < MIN_INITIAL:
                    return []
                self._unproven -= MIN_INITIAL
            self._greeted += 1
            self._greeted_at = now
            return [self._greeting()]
        if not self._established:
            return []
        datagrams: list[bytes] = []
        while self._ack or self._controls or self._ready:
            datagram = self._packet(now)
            if datagram is None:
                break
            datagrams.append(datagram)
        return datagrams

    def _greeting(self) -> bytes:
        head = bytes([CID_LENGTH]) + self._peer_cid + bytes([CID_LENGTH]) + self.host_cid
        if self._client:
            token = (0x4000 | len(self._token)).to_bytes(2, "big") + self._token
            packet = INITIAL + VERSION_1 + head + token
        else:
            packet = HANDSHAKE + VERSION_1 + head + self._me.raw
        return packet.ljust(MIN_INITIAL, b"\0")

    def _header(self) -> bytes:
        number = self._number
        self._number += 1
        return HEADER.pack(SHORT, self._peer_cid, number, next(iter(self._recovery.sent), number))

    def _packet(self, now: float) -> bytes | None:
        recovery = self._recovery
        pieces: list[tuple[int, int, int, bool]] = []
        controls: list[bytes] = []
        body: list[bytes] = []
        room = self._size - HEADER.size - len(TAG)
        if self._ack:
            ranges = self._seen[-MAX_RANGES:]
            body.append(bytes((ACK, len(ranges))) + b"".join([RANGE.pack(low, high) for low, high in ranges]))
            room -= len(body[0])
        if recovery.in_flight < recovery.window or recovery.probes:
            while self._controls and room >= LIMIT.size:
                control = self._controls.pop(0)
                controls.append(control)
                body.append(control)
                room -= LIMIT.size
            for stream_id, flow in list(self._ready.items()):
                if room <= DATA.size:
                    break
                credit = self._send_limit - self._sent_total
                taken = flow.send.take(room - DATA.size, credit)
                if taken is not None:
                    offset, data, fin, new = taken
                    self._sent_total += new
                    pieces.append((stream_id, offset, offset + len(data), fin))
                    body.append(DATA.pack(STREAM_FIN if fin else STREAM, stream_id, offset, len(data)))
                    body.append(data)
                    room -= DATA.size + len(data)
                    credit -= new
                if not flow.send.wants(credit):
                    del self._ready[stream_id]
            if recovery.probes and not pieces and not controls:
                controls.append(PING_FRAME)
                body.append(PING_FRAME)
        if not body:
            return None
        self._ack = False
        number = self._number
        datagram = self._header() + b"".join(body) + TAG
        if pieces or controls:
            recovery.on_sent(number, Sent(now, len(datagram), pieces, controls))
        return datagram

    # ---- time

    def next_timer(self) -> float | None:
        """The earliest of idling, greeting again and loss recovery."""
        if self._gone:
            return None
        at = self._recovery.next_timer() if self._established else self._greet_at()
        return self._idle_at if at is None or at > self._idle_at else at

    def _greet_at(self) -> float | None:
        if self._greet or (not self._client and self._unproven < MIN_INITIAL):
            return None
        return self._greeted_at + self._recovery.pto()

    def on_timer(self, now: float) -> None:
        """Let the idle, greeting and loss timers fire."""
        if self._gone:
            return
        if now >= self._idle_at:
            self._end(Terminated(IDLE, "nothing was heard for too long", False))
        elif self._established:
            self._requeue(self._recovery.on_timer(now))
            self._probe()
        else:
            at = self._greet_at()
            if at is not None and at <= now:
                self._recovery.pto_count += 1
                self._greet = True

    def _probe(self) -> None:
        if self._recovery.probes and not self._controls and not self._ready:
            self._controls.append(PING_FRAME)

    def events(self) -> Sequence[EngineEvent]:
        """Take what has happened."""
        if not self._events:
            return NO_EVENTS
        events, self._events = self._events, []
        return events

    def _end(self, event: Terminated) -> None:
        self._gone = True
        self._events.append(event)

    # ---- what the connection asks for

    @property
    def pto_count(self) -> int:
        """Consecutive probe timeouts."""
        return self._recovery.pto_count

    def open_stream(self) -> int:
        """Reserve the next bidirectional stream id."""
        stream_id = self._own_next
        if stream_id // 4 >= self._own_limit:
            raise StreamLimitError("too many streams are open to this peer", hint="close some, or wait")
        self._own_next += 4
        self._flows[stream_id] = Flow()
        return stream_id

    def send(self, stream_id: int, data: bytes, fin: bool = False) -> None:
        """Queue stream bytes; a stream that is finished or was reset swallows them."""
        flow = self._flows.get(stream_id)
        if flow is not None and not flow.send.reset and not flow.send.fin:
            flow.send.buffer += data
            flow.send.fin = fin
            self._ready[stream_id] = flow

    def reset(self, stream_id: int, code: int) -> None:
        """Abort our direction."""
        flow = self._flows.get(stream_id)
        if flow is not None and not flow.send.reset and not flow.send.done:
            flow.send.reset = True
            flow.send.buffer.clear()
            flow.send.lost.clear()
            self._controls.append(LIMIT.pack(RESET, stream_id, code))

    def stop(self, stream_id: int, code: int) -> None:
        """Ask the peer to end its direction."""
        flow = self._flows.get(stream_id)
        if flow is not None and not flow.receive.told and not flow.receive.stopped:
            flow.receive.stopped = True
            self._controls.append(LIMIT.pack(STOP, stream_id, code))

    def queued_bytes(self, stream_id: int) -> int:
        """Written and unacknowledged."""
        flow = self._flows.get(stream_id)
        return len(flow.send.buffer) if flow is not None else 0

    def consumed(self, stream_id: int, count: int) -> bool:
        """Advance the receive windows by what the application took."""
        due = False
        self._consumed_total += count
        if self._consumed_total + CONNECTION_WINDOW - self._granted >= CONNECTION_WINDOW // 4:
            self._granted = self._consumed_total + CONNECTION_WINDOW
            self._controls.append(LIMIT.pack(MAX_DATA, 0, self._granted))
            due = True
        flow = self._flows.get(stream_id)
        if flow is not None and not flow.receive.told:
            half = flow.receive
            half.consumed += count
            if half.consumed + STREAM_WINDOW - half.granted >= STREAM_WINDOW // 4:
                half.granted = half.consumed + STREAM_WINDOW
                self._controls.append(LIMIT.pack(MAX_STREAM, stream_id, half.granted))
                due = True
        return due

    def in_flight(self) -> int:
        """Bytes sent and neither acknowledged nor lost."""
        return self._recovery.in_flight

    def rtt(self) -> float | None:
        """Smoothed round trip in seconds."""
        return self._recovery.srtt

    def nudge(self, now: float) -> None:
        """The path has changed: send the oldest of what is in flight again at once."""
        if self._gone:
            return
        if not self._established:
            self._recovery.pto_count = 0
            self._greet = self._client or self._unproven >= MIN_INITIAL
            return
        self._requeue(self._recovery.nudge(now, NUDGE_PACKETS))
        self._probe()

    def set_datagram_size(self, size: int) -> None:
        """Packets of at most ``size`` bytes from now on."""
        self._size = size

    def ping(self) -> None:
        """Ask for an acknowledgement."""
        if not self._gone:
            self._controls.append(PING_FRAME)

    def close(self, code: int, reason: str) -> None:
        """Queue a goodbye."""
        if self._gone:
            return
        self._gone = True
        if self._peer_cid and self._established:
            text = reason.encode()[:200]
            self._goodbye = self._header() + CLOSE.pack(GOODBYE, code, len(text)) + text + TAG

    def abandon(self) -> None:
        """Stop without a byte."""
        self._gone = True
        self._goodbye = None


class ModelEngines:
    """Makes ModelEngine objects for any number of nodes; ``entropy`` (the world's) makes connection ids."""

    name = "model"

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy

    def dial(
        self,
        identity: Identity,
        peer: NodeId,
        token_for: Callable[[bytes], bytes],
        idle_timeout: float,
        now: float,
    ) -> ModelEngine:
        """Begin a connection to whoever answers; the key itself is checked by the caller."""
        odcid, host_cid = self._entropy(CID_LENGTH), self._entropy(CID_LENGTH)
        engine = ModelEngine(identity.id, odcid, host_cid, idle_timeout, now)
        engine.start(token_for(odcid))
        return engine

    def accept(self, identity: Identity, odcid: bytes, idle_timeout: float, now: float) -> ModelEngine:
        """Stand ready for the Initial with this original destination connection id."""
        engine = ModelEngine(identity.id, odcid, self._entropy(CID_LENGTH), idle_timeout, now)
        engine.listen()
        return engine
