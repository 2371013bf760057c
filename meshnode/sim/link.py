"""A modelled reliable link behind the engine seam: QUIC's shape and timing without TLS, for thousands of nodes.

What the stack sees of a packet is real (``quic/packets.py``): an Initial of 1,200 bytes with the knock as its
token, 8-byte connection ids, short headers. The rest are plain structs (``frames.py``), without keys: it proves
nothing and must never leave a simulation. All its bytes come from the given entropy: a run repeats exactly.

    short header  0x40 | dcid 8 | number 4 | floor 4 | frames | tag     (floor: the oldest packet still in flight)
    long header   as RFC 9000 section 17.2; the Handshake's payload is the listener's key

Unlike QUIC: one packet number space, every packet acknowledged at once, one connection id a side, at most
128 streams open at once each way. The parts: ``handshake``, ``flows`` (streams, windows), ``recovery`` (losses,
congestion).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress

from meshnode.base.clock import Entropy
from meshnode.base.limits import BASE_MTU
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.quic.packets import CID_LENGTH, LONG, MIN_INITIAL
from meshnode.quic.seam import IDLE, LOCAL, Datagram, EngineEvent, HandshakeDone, Terminated, TokenFor
from meshnode.sim.flows import Streams
from meshnode.sim.frames import (
    ACK,
    CLOSE,
    DATA,
    DATAGRAM,
    DONE_FRAME,
    GOODBYE,
    HEADER,
    LIMIT,
    PING_FRAME,
    RANGE,
    STREAM,
    STREAM_FIN,
    TAG,
)
from meshnode.sim.handshake import Handshake
from meshnode.sim.recovery import Piece, Recovery, Seen, Sent

SHORT = 0x40
NUDGE_PACKETS = 32
NO_EVENTS: tuple[EngineEvent, ...] = ()


class ModelEngine(Streams):
    """One connection; see ``meshnode.quic.seam.Engine`` for the contract of each method."""

    backlog = 0

    def __init__(self, me: NodeId, odcid: bytes, host_cid: bytes, idle_timeout: float, now: float) -> None:
        super().__init__()
        self.odcid = odcid
        self.host_cid = host_cid
        self._handshake = Handshake(me, host_cid, now)
        self._idle = idle_timeout
        self._idle_at = now + idle_timeout
        self._gone = False
        self._goodbye: bytes | None = None
        self._recovery = Recovery()
        self._size = MIN_INITIAL
        self._number = 0
        self._seen = Seen()
        self._ack = False

    @property
    def peer_certificate_key(self) -> bytes | None:
        """The key that the listener named; nothing proves it."""
        return self._handshake.peer_key

    @property
    def handshake_confirmed(self) -> bool:
        """True once a 1-RTT packet of the peer has come."""
        return self._handshake.confirmed

    def start(self, token: bytes) -> None:
        """Be the dialler: greet the listener, with ``token`` (the knock), in the next ``transmit``."""
        self._handshake.start(self.odcid, token)
        self.be_dialler()

    # ---- in

    def receive(self, datagrams: Sequence[bytes], now: float) -> bool:
        """Feed datagrams that came together.

        Junk is ignored: what cannot be unpacked, or is for another connection id, or a duplicate. A peer that breaks a
        limit ends the connection.
        """
        newest = False
        for data in datagrams:
            with suppress(struct.error, IndexError):
                newest |= not self._gone and self._on_packet(data, now)
        return newest

    def _on_packet(self, data: bytes, now: float) -> bool:
        if data[0] & LONG:
            established = self._handshake.on_packet(data)
            self._idle_at = now + self._idle
            if established:
                self._on_established(PING_FRAME, now)  # for TLS's Finished: the listener needs something
            return False
        _, dcid, number, floor = HEADER.unpack_from(data)
        sealed = data[-len(TAG) :] == TAG and self._handshake.peer_cid
        if dcid != self.host_cid or not sealed or not self._seen.accept(number, floor):
            return False
        newest: bool = number == self._seen.ranges[-1][1]
        self._idle_at = now + self._idle
        if not self._handshake.confirmed and self._handshake.confirm():
            self._on_established(DONE_FRAME, now)
        self._on_frames(data, HEADER.size, len(data) - len(TAG), now)
        return newest

    def _on_established(self, answer: bytes, now: float) -> None:
        rtt = self._handshake.round_trip(now)
        if rtt is not None:
            self._recovery.sample(rtt)
        self.happened.append(HandshakeDone("X25519MLKEM768", self.odcid.ljust(32, b"\0")))
        self.controls.append(answer)

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
                self.on_data(stream_id, offset, data[at : at + length], kind == STREAM_FIN)
                at += length
            elif kind == DATAGRAM:
                length = DATA.unpack_from(data, at)[3]
                at += DATA.size
                self.happened.append(Datagram(data[at : at + length]))
                at += length
            elif kind == GOODBYE:
                _, code, length = CLOSE.unpack_from(data, at)
                at += CLOSE.size
                reason = data[at : at + length].decode(errors="replace")
                self._end(Terminated(code, reason, True))
            else:
                kind, stream_id, value = LIMIT.unpack_from(data, at)
                at += LIMIT.size
                self.on_control(kind, stream_id, value)
            if self.error:
                self._end(Terminated(LOCAL, f"the peer broke the protocol: {self.error}", False))

    def _on_ack(self, ranges: list[tuple[int, int]], now: float) -> None:
        if ranges[-1][1] >= self._number:
            raise struct.error("acknowledges what was never sent")
        acked, lost = self._recovery.on_ack(ranges, now)
        for packet in acked:
            self.on_acked(packet)
        self.requeue(lost)

    # ---- out

    def transmit(self, now: float) -> list[bytes]:
        """Build datagrams: a goodbye after ``close``, or a greeting, or packets.

        Acknowledgements leave whatever the congestion window says, the rest as far as it allows.
        """
        if self._gone:
            goodbye, self._goodbye = self._goodbye, None
            return [goodbye] if goodbye is not None else []
        if self._handshake.due:
            return self._handshake.transmit(now)
        if not self._handshake.established:
            return []
        datagrams: list[bytes] = []
        while self._ack or self.controls or self.datagrams.waiting or self.ready:
            datagram = self._packet(now)
            if datagram is None:
                break
            datagrams.append(datagram)
        return datagrams

    def _header(self) -> bytes:
        number = self._number
        self._number += 1
        return HEADER.pack(SHORT, self._handshake.peer_cid, number, next(iter(self._recovery.sent), number))

    def _packet(self, now: float) -> bytes | None:
        recovery = self._recovery
        pieces: list[Piece] = []
        controls: list[bytes] = []
        body: list[bytes] = []
        room = self._size - HEADER.size - len(TAG)
        if self._ack:
            body.append(self._seen.frame())
            room -= len(body[0])
        if recovery.in_flight < recovery.window or recovery.probes:
            pieces, controls = self.fill(body, room)
            if recovery.probes and not pieces and not controls:
                controls.append(PING_FRAME)
                body.append(PING_FRAME)
        if not body:
            return None
        elicits = len(body) > self._ack
        self._ack = False
        number = self._number
        datagram = self._header() + b"".join(body) + TAG
        if elicits:
            recovery.on_sent(number, Sent(now, len(datagram), pieces, controls))
        return datagram

    # ---- time

    def next_timer(self) -> float | None:
        """Return the earliest of idling, greeting again and loss recovery, None after the end."""
        if self._gone:
            return None
        recovery, handshake = self._recovery, self._handshake
        at = recovery.next_timer() if handshake.established else handshake.next_timer(recovery.pto())
        return self._idle_at if at is None or at > self._idle_at else at

    def on_timer(self, now: float) -> None:
        """Let the idle, greeting and loss timers fire.

        What is sent again leaves with the next ``transmit``.
        """
        if self._gone:
            return
        if now >= self._idle_at:
            self._end(Terminated(IDLE, "nothing was heard for too long", False))
        elif self._handshake.established:
            self.requeue(self._recovery.on_timer(now))
            self._probe()
        else:
            at = self._handshake.next_timer(self._recovery.pto())
            if at is not None and at <= now:
                self._recovery.pto_count += 1
                self._handshake.due = True

    def _probe(self) -> None:
        if self._recovery.probes and not self.controls and not self.ready:
            self.controls.append(PING_FRAME)

    def events(self) -> Sequence[EngineEvent]:
        """Take what has happened, in its order; the end of the connection comes last."""
        if not self.happened:
            return NO_EVENTS
        events, self.happened = self.happened, []
        return events

    def _end(self, event: Terminated) -> None:
        self._gone = True
        self.happened.append(event)

    # ---- what the connection asks for

    def in_flight(self) -> int:
        """Bytes sent and neither acknowledged nor lost."""
        return self._recovery.in_flight

    def rtt(self) -> float | None:
        """Smoothed round trip in seconds."""
        return self._recovery.rtt.srtt

    def nudge(self, now: float) -> None:
        """Send the oldest of what is in flight again at once, as aioquic's engine does: at most 32 packets.

        Before the handshake is done the greeting is repeated instead, by a listener only as far as it may
        (three times what the client sent, RFC 9000 section 8.1).
        """
        if self._gone:
            return
        if not self._handshake.established:
            self._recovery.pto_count = 0
            self._handshake.repeat()
            return
        self.requeue(self._recovery.nudge(now, NUDGE_PACKETS))
        self._probe()

    def set_datagram_size(self, size: int) -> None:
        """Make packets of at most ``size`` bytes from now on.

        1,200 bytes at first, as greetings always are.
        """
        self._size = size

    def ping(self) -> None:
        """Ask for an acknowledgement with the next packet; does nothing after the end."""
        if not self._gone:
            self.controls.append(PING_FRAME)

    def close(self, code: int, reason: str) -> None:
        """Queue a goodbye, one packet without an answer.

        Before the handshake is done nothing is sent.
        """
        if self._gone:
            return
        self._gone = True
        if self._handshake.peer_cid and self._handshake.established:
            text = reason.encode()[:1000]
            self._goodbye = self._header() + CLOSE.pack(GOODBYE, code, len(text)) + text + TAG

    def abandon(self) -> None:
        """Stop without a byte; a goodbye that ``close`` has queued is dropped too."""
        self._gone = True
        self._goodbye = None

    def release(self) -> None:
        """Nothing: the model refers to itself nowhere."""


class ModelEngines:
    """Factory of ModelEngine objects for any number of nodes; ``entropy`` (the world's) makes connection ids."""

    name = "model"

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy

    def dial(
        self,
        identity: Identity,
        peer: NodeId,
        token_for: TokenFor,
        idle_timeout: float,
        now: float,
        size: int = BASE_MTU,
    ) -> ModelEngine:
        """Begin a connection; the caller compares the key that the listener shows with ``peer``."""
        odcid, host_cid = self._entropy(CID_LENGTH), self._entropy(CID_LENGTH)
        engine = ModelEngine(identity.id, odcid, host_cid, idle_timeout, now)
        engine.start(token_for(odcid))
        return engine

    def accept(
        self, identity: Identity, odcid: bytes, idle_timeout: float, now: float, size: int = BASE_MTU
    ) -> ModelEngine:
        """Make the listener's end for the Initial with this original destination connection id."""
        return ModelEngine(identity.id, odcid, self._entropy(CID_LENGTH), idle_timeout, now)
