"""Requests and their answers: retransmission, adaptive timeouts, matching. A call always ends, exactly once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from meshnode.base.address import Addr
from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import DHT_MAX_BODY, DHT_MAX_CALLS
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timer, Timers
from meshnode.discovery.dht.messages import (
    REPLY_TO,
    TX_LENGTH,
    Nodes,
    Pong,
    Reply,
    Request,
    Stored,
    Value,
    Watched,
    encode_message,
)
from meshnode.discovery.dht.rtt import RttBook
from meshnode.identity.node_id import NodeId

MAX_LATE = 256  # calls; x about 2 kB
MIN_PADDED_BODY = 32  # a Pong with its token is no longer than the Ping

RPCS = describe("dht_rpcs", "DHT requests sent, without retransmissions")
RETRANSMITS = describe("dht_retransmits", "DHT requests sent again")
TIMEOUTS = describe("dht_timeouts", "DHT requests that were not answered")
UNASKED = describe("dht_unasked", "DHT answers dropped: no such request, or another peer's")
LATE = describe("dht_late", "DHT answers that came after their request was given up")
CALLS_FULL = describe("dht_calls_full", "DHT requests not sent: too many outstanding")


@dataclass(slots=True)
class Call:
    """One outstanding request."""

    tx: bytes
    peer: NodeId
    addr: Addr
    body: bytes
    expects: type
    started: float
    waits: tuple[float, ...]
    on_answer: Callable[[Reply, float], None]
    on_failed: Callable[[float], None]
    on_slow: Callable[[float], None] | None
    sends: int = 1
    last_sent: float = 0.0
    timer: Timer | None = None


class Rpcs:
    """All outstanding requests of a node.

    ``answered(peer, addr, token, now)`` is told of every peer that answered where it was asked, before the
    call's own handler; ``failed(peer, addr, sent, now)`` of every one that did not.
    """

    def __init__(
        self,
        timers: Timers,
        entropy: Callable[[int], bytes],
        send: Callable[[NodeId, Addr, bytes], None],
        metrics: Metrics,
        answered: Callable[[NodeId, Addr, bytes, float], None],
        failed: Callable[[NodeId, Addr, float, float], None],
    ) -> None:
        self.rtts = RttBook()
        self._timers = timers
        self._entropy = entropy
        self._send = send
        self._metrics = metrics
        self._answered = answered
        self._failed = failed
        self._calls: dict[bytes, Call] = {}
        self._late: BoundedDict[bytes, Call] = BoundedDict(MAX_LATE)  # given up, the answer may still teach us the RTT

    def __len__(self) -> int:
        return len(self._calls)

    def call(
        self,
        peer: NodeId,
        addr: Addr,
        make: Callable[[bytes], Request],
        now: float,
        on_answer: Callable[[Reply, float], None],
        on_failed: Callable[[float], None],
        *,
        on_slow: Callable[[float], None] | None = None,
        pad: bool = False,
        urgent: int = 0,
    ) -> None:
        """Send ``make(tx)``. ``on_slow`` comes once, early, while the answer is still awaited.

        ``urgent`` (a number of sends) retransmits fast, doubling; else there is one early retransmission.
        When too many calls are outstanding, ``on_failed`` comes with the next tick.
        """
        if len(self._calls) >= DHT_MAX_CALLS:
            self._metrics.count(CALLS_FULL)
            self._timers.at(now, on_failed)
            return
        tx = self._entropy(TX_LENGTH)
        request = make(tx)
        body = encode_message(request, pad_to=DHT_MAX_BODY if pad else MIN_PADDED_BODY)
        waits = self.rtts.urgent(peer, urgent) if urgent else self.rtts.patient(peer)
        call = Call(tx, peer, addr, body, REPLY_TO[type(request)], now, waits, on_answer, on_failed, on_slow, 1, now)
        self._calls[tx] = call
        self._metrics.count(RPCS)
        call.timer = self._timers.at(now + waits[0], lambda t: self._due(call, t))
        self._send(peer, addr, body)

    def _due(self, call: Call, now: float) -> None:
        if call.sends < len(call.waits):
            call.timer = self._timers.at(now + call.waits[call.sends], lambda t: self._due(call, t))
            call.sends += 1
            call.last_sent = now
            self._metrics.count(RETRANSMITS)
            self._send(call.peer, call.addr, call.body)
            if call.on_slow is not None:
                on_slow, call.on_slow = call.on_slow, None
                on_slow(now)
            return
        del self._calls[call.tx]
        self._metrics.count(TIMEOUTS)
        self._late[call.tx] = call
        self._failed(call.peer, call.addr, call.started, now)
        call.on_failed(now)

    def on_reply(self, sender: NodeId, src: Addr, reply: Reply, now: float) -> bool:
        """Match an answer to its call; return False when there was none (counted).

        The round trip is not sampled when this may be the answer to a retransmission (RFC 6298 section 3), unless the
        peer has no estimate yet.
        """
        call = self._calls.get(reply.tx)
        if call is None and reply.tx in self._late:
            return self._on_late(self._late.pop(reply.tx), sender, reply, now)
        if call is None or call.peer != sender or type(reply) is not call.expects:
            self._metrics.count(UNASKED)
            return False
        del self._calls[call.tx]
        if call.timer is not None:
            call.timer.cancel()
        if self._shows_rtt(call, now):
            self.rtts.sample(sender, now - call.started)
        token = reply.token if isinstance(reply, Pong | Nodes | Value | Stored | Watched) else b""
        self._answered(sender, call.addr, token, now)
        call.on_answer(reply, now)
        return True

    def _shows_rtt(self, call: Call, now: float) -> bool:
        known = self.rtts.of(call.peer).srtt
        return call.sends == 1 or known is None or now - call.last_sent < known / 2

    def _on_late(self, call: Call, sender: NodeId, reply: Reply, now: float) -> bool:
        """Take an answer after its timeout: the RTT is sampled; the request itself has failed already."""
        if call.peer != sender or type(reply) is not call.expects:
            self._metrics.count(UNASKED)
            return False
        self._metrics.count(LATE)
        self.rtts.sample(sender, now - call.started)
        self._answered(sender, call.addr, b"", now)
        return True
