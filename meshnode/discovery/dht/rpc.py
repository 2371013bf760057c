"""Requests and their answers: retransmission, adaptive timeouts, matching. A call always ends, exactly once.

All requests of a node share one budget (``budget``). What finds it used up waits for its turn; what is urgent does not.
While too many time out nothing is sent a second time, for that is what makes a slow mesh slower.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.address import Addr
from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import DHT_MAX_BODY, DHT_MAX_CALLS
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timer, Timers
from meshnode.base.value import state
from meshnode.discovery.dht.budget import Budget
from meshnode.discovery.dht.messages import (
    REPLY_TO,
    TX_LENGTH,
    Find,
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

MAX_LATE = 512  # requests; x about 300 B: the answers of a minute at the least window's rate
LATE_S = 0.1  # a deadline that is later than this says nothing of the peer, once a request
MAX_WAIT_S = 5.0  # for the budget, less than a lookup lasts
MIN_PADDED_BODY = 32  # a Pong with its token is no longer than the Ping
ASKED_PADDED_BODY = 160  # nor is the Pong together with a Ping of 32, which asks back
FIND_BODY = 800  # 16 contacts of 39 bytes, 30 around them, and that Ping with its seal; with IPv6 they have 51 bytes

RPCS = describe("dht_rpcs", "DHT requests sent, without retransmissions")
RETRANSMITS = describe("dht_retransmits", "DHT requests sent again")
TIMEOUTS = describe("dht_timeouts", "DHT requests that were not answered")
UNASKED = describe("dht_unasked", "DHT answers dropped: no such request, or another peer's")
LATE = describe("dht_late", "DHT answers that came after their request was given up")
CALLS_FULL = describe("dht_calls_full", "DHT requests not sent: too many outstanding")
WAITED = describe("dht_waited", "DHT requests that waited for others to be answered or given up")
PUT_OFF = describe("dht_put_off", "DHT requests not sent: the budget of outstanding ones was used up for too long")
SPARED = describe("dht_spared", "DHT requests not sent again: too many time out")


@state
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
    unasked: bool
    wanted: Callable[[], bool] | None = None
    due: float = 0.0
    is_excused: bool = False
    step: int = 1  # waits that have begun
    sends: int = 1
    last_sent: float = 0.0
    timer: Timer | None = None


@state
class Late:
    """A request that was given up: what its answer, if it still comes, must match, and none of what asked it."""

    peer: NodeId
    addr: Addr
    expects: type
    started: float


class Rpcs:
    """All outstanding requests of a node.

    ``answered(peer, addr, token, sent, now)`` is told of every peer that answered where it was asked, before the
    call's own handler; ``failed(peer, addr, sent, now)`` of every one that did not. ``is_good(peer, now)`` tells
    which peers answered the request before, a short time ago.
    """

    def __init__(
        self,
        timers: Timers,
        entropy: Callable[[int], bytes],
        send: Callable[[NodeId, Addr, bytes, bool], None],
        metrics: Metrics,
        answered: Callable[[NodeId, Addr, bytes, float, float], None],
        failed: Callable[[NodeId, Addr, float, float], None],
        is_good: Callable[[NodeId, float], bool] = lambda peer, now: True,
    ) -> None:
        self.rtts = RttBook()
        self.budget = Budget()
        self._timers = timers
        self._entropy = entropy
        self._send = send
        self._metrics = metrics
        self._answered = answered
        self._failed = failed
        self._is_good = is_good
        self._calls: dict[bytes, Call] = {}
        self._waiting: dict[bytes, Call] = {}  # for the budget, in their order
        self._late: BoundedDict[bytes, Late] = BoundedDict(MAX_LATE)  # the answer may still teach us the RTT

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def _has_room(self) -> bool:
        return len(self._calls) + 1 <= self.budget.window

    def forget_place(self) -> None:
        """Forget round trips and time-outs: this node's own place in the network has changed.

        Not the time-outs of a mesh that answered late: it does so from anywhere.
        """
        self.rtts.forget()
        if not self.rtts.was_slow:
            self.budget = Budget()

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
        unasked: bool = True,
        wanted: Callable[[], bool] | None = None,
        shown: bytes = b"",
    ) -> None:
        """Send ``make(tx)``, or let it wait while the budget is used up.

        ``on_slow`` comes once, early, while the answer is still awaited.
        ``unasked`` is False when a datagram "from" ``addr`` is the reason: then only what that earned may be sent.
        A token that is ``shown`` proves this node's address, so nothing need be left for a ping that asks back.
        ``urgent`` (a number of sends) waits for no budget and retransmits fast, doubling; else there is one early
        retransmission. When too many calls are outstanding, ``on_failed`` comes with the next tick; when one has waited
        for ``MAX_WAIT_S``, then. A call that is not ``wanted`` any more when its turn comes fails.
        """
        if len(self._calls) + len(self._waiting) >= DHT_MAX_CALLS:
            self._metrics.count(CALLS_FULL)
            self._timers.at(now, on_failed)
            return
        tx = self._entropy(TX_LENGTH)
        request = make(tx)
        least = ASKED_PADDED_BODY if unasked and not shown else MIN_PADDED_BODY
        most = FIND_BODY if isinstance(request, Find) and ":" not in addr.host else DHT_MAX_BODY
        body = encode_message(request, pad_to=most if pad else least)
        waits = self.rtts.urgent(peer, urgent) if urgent else self.rtts.patient(peer)
        expects = REPLY_TO[type(request)]
        call = Call(tx, peer, addr, body, expects, now, waits, on_answer, on_failed, on_slow, unasked, wanted)
        if urgent or (self._has_room and not self._waiting):
            self._begin(call, now)
            return
        self._metrics.count(WAITED)
        self._waiting[tx] = call
        call.timer = self._timers.at(now + MAX_WAIT_S, lambda t: self._put_off(call, t))

    def _begin(self, call: Call, now: float) -> None:
        call.started = call.last_sent = now
        self._calls[call.tx] = call
        self._metrics.count(RPCS)
        self._wait(call, now + call.waits[0])
        self._send(call.peer, call.addr, call.body, call.unasked)

    def _wait(self, call: Call, until: float) -> None:
        call.due = until
        call.timer = self._timers.at(until, lambda t: self._due(call, t))

    def _put_off(self, call: Call, now: float) -> None:
        del self._waiting[call.tx]
        self._metrics.count(PUT_OFF)
        call.on_failed(now)

    def _take_turns(self, now: float) -> None:
        """Send what waits, as far as the budget reaches; calls that are not wanted any more end here."""
        while self._waiting and self._has_room:
            call = self._waiting.pop(next(iter(self._waiting)))
            if call.timer is not None:
                call.timer.cancel()
            if call.wanted is not None and not call.wanted():
                self._timers.at(now, call.on_failed)
            else:
                self._begin(call, now)

    def _due(self, call: Call, now: float) -> None:
        late = now - call.due
        if late > LATE_S and not call.is_excused:  # the answer may have come, and be unread
            call.is_excused = True
            self._wait(call, now + late)
            return
        if call.step < len(call.waits):
            self._wait(call, now + call.waits[call.step])
            call.step += 1
            if self.budget.congested:
                self._metrics.count(SPARED)
            else:
                call.sends += 1
                call.last_sent = now
                self._metrics.count(RETRANSMITS)
                self._send(call.peer, call.addr, call.body, call.unasked)
            if call.on_slow is not None:
                on_slow, call.on_slow = call.on_slow, None
                on_slow(now)
            return
        del self._calls[call.tx]
        call.timer = None  # whose action refers to the call
        self._metrics.count(TIMEOUTS)
        self._late[call.tx] = Late(call.peer, call.addr, call.expects, call.started)
        if self._is_good(call.peer, now):
            self.budget.timed_out(call.addr, call.started, now)
        self._failed(call.peer, call.addr, call.started, now)
        call.on_failed(now)
        self._take_turns(now)

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
        self.budget.answered(call.addr, now)
        self._answered(sender, call.addr, _token_in(reply), call.started, now)
        call.on_answer(reply, now)
        self._take_turns(now)
        return True

    def _shows_rtt(self, call: Call, now: float) -> bool:
        known = self.rtts.of(call.peer).srtt
        return call.sends == 1 or known is None or now - call.last_sent < known / 2

    def _on_late(self, call: Late, sender: NodeId, reply: Reply, now: float) -> bool:
        """Take an answer after its timeout: the RTT is sampled; the request itself has failed already.

        It is sampled from the first transmission on, the longer of what it may have been: a wait that is too long costs
        less than one that is too short again.
        """
        if call.peer != sender or type(reply) is not call.expects:
            self._metrics.count(UNASKED)
            return False
        self._metrics.count(LATE)
        self.rtts.sample(sender, now - call.started)
        self._answered(sender, call.addr, _token_in(reply), call.started, now)
        return True


def _token_in(reply: Reply) -> bytes:
    return reply.token if isinstance(reply, Pong | Nodes | Value | Stored | Watched) else b""
