"""One mapping and its life: asked for in each protocol in turn, held, renewed at half its time, given back.

ASKING --granted--> HELD --renewed--> HELD --refused, or expired--> ASKING --none grants--> RESTING --> ASKING
any --withdraw--> LEAVING --answered, or not--> GONE
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from meshnode.base.address import Addr
from meshnode.base.clock import Entropy
from meshnode.base.limits import (
    PORTMAP_LIFETIME_S,
    PORTMAP_MIN_LIFETIME_S,
    PORTMAP_RECHECK_S,
    PORTMAP_RENEW_GAP_S,
    PORTMAP_REST_S,
    UPNP_LEASE_S,
)
from meshnode.nat.portmap.talk import DatagramTalk, Message, Out, Talk
from meshnode.nat.portmap.vocabulary import (
    BAD_GRANT,
    GRANTED,
    REFUSED,
    UNANSWERED,
    Changed,
    Granted,
    Mapping,
    Outcome,
    Protocol,
    Refused,
    Route,
    is_possible,
)


class State(Enum):
    """State of a lease, as in the diagram above."""

    ASKING = "asking"
    HELD = "held"
    RESTING = "none offered"
    LEAVING = "withdrawing"
    GONE = "gone"


class _Turns:
    """The protocols of a lease in turn, made at need: most routers need no UPnP, and PCP keeps its nonce."""

    def __init__(self, makers: list[Callable[[], Talk]]) -> None:
        self._makers = makers
        self._talks: list[Talk] = []
        self._index = 0

    @property
    def talk(self) -> Talk:
        while len(self._talks) <= self._index:
            self._talks.append(self._makers[len(self._talks)]())
        return self._talks[self._index]

    def restart(self) -> None:
        self._index = 0

    def advance(self) -> bool:
        """Go on to the next protocol; False when there is none."""
        is_last = self._index + 1 >= len(self._makers)
        self._index += not is_last
        return not is_last


class Lease:
    """The mapping of one local port on one route; ``talks`` make the protocols, in the order of trying."""

    def __init__(
        self,
        route: Route,
        internal: Addr,
        talks: list[Callable[[], Talk]],
        out: Out,
        entropy: Entropy,
        count: Callable[[str], None],
    ) -> None:
        self.route = route
        self.internal = internal
        self.state = State.RESTING
        self.mapping: Mapping | None = None
        self.said: dict[str, str] = {}  # by protocol: why it gave nothing
        self._turns = _Turns(talks)
        self._out = out
        self._entropy = entropy
        self._count = count
        self._timer: float | None = None  # of the renewal, or of the next search
        self._since = 0.0  # when it was asked last, or rest began
        self._checking = False  # we may be on another network: an unanswered renewal ends the mapping
        self._retry = 0.0

    @property
    def talk(self) -> Talk:
        """The protocol in use."""
        return self._turns.talk

    # ---- what the client tells it

    def start(self, now: float) -> None:
        """Ask, beginning with the first protocol."""
        self._drop()
        self.said.clear()
        self._retry = 0.0
        self.state = State.ASKING
        self._turns.restart()
        self._timer = None
        self._ask(now)

    def recheck(self, now: float) -> None:
        """Verify that the router is still there: interfaces have changed, though this route looks the same.

        A held mapping is renewed soon, and dropped when that is not answered. After a failed search the next one is
        brought forward, unless the last began less than ``PORTMAP_RECHECK_S`` ago.
        """
        if self.state is State.HELD:
            self._checking = True
            self._renew_at(now)
        elif self.state is State.RESTING:
            self._look_at(now)

    def lost(self, now: float, delay: float) -> None:
        """Renew the mapping in ``delay`` seconds: the router may have forgotten it.

        Renewals keep ``PORTMAP_RENEW_GAP_S`` between them (RFC 6887 section 11.2.1), however often this is called.
        """
        if self.state is State.HELD:
            self._renew_at(now + delay)
        elif self.state is State.RESTING:
            self._look_at(now + delay)

    def withdraw(self, now: float) -> None:
        """Give the mapping back, also one whose granting is still under way.

        UPnP grants nothing before its last exchange, so only PCP and NAT-PMP are told in that case. ``state`` becomes
        ``LEAVING``, or ``GONE`` when there is nothing to give back.
        """
        if self.state in (State.LEAVING, State.GONE):
            return
        held = self.mapping.external if self.mapping is not None else None
        asking = self.state is State.ASKING and isinstance(self.talk, DatagramTalk)
        self.talk.stop()
        self._drop()
        self._timer = None
        self.state = State.LEAVING if held is not None or asking else State.GONE
        if self.state is State.LEAVING:
            self.talk.ask(0, held, now)

    def abandon(self) -> None:
        """Drop the mapping without telling the router: there is no way to it any more."""
        self.talk.stop()
        self._timer = None
        self._drop()
        self.state = State.GONE

    # ---- what the router says

    def takes(self, message: Message) -> bool:
        """Return True when ``message`` answers what is asked now."""
        return self.talk.takes(message)

    def on_message(self, message: Message, now: float) -> None:
        """Take an answer that ``takes`` was true for."""
        self._end(self.talk.on_message(message, now), now)

    def on_http(self, number: int, status: int | None, body: bytes, now: float) -> None:
        """Take the end of a fetch; another lease's is ignored."""
        self._end(self.talk.on_http(number, status, body, now), now)

    def next_deadline(self) -> float | None:
        """Return when ``tick`` has something to do (monotonic seconds); None for never."""
        times = [self.talk.deadline, self._timer, self.mapping.expires if self.mapping is not None else None]
        return min((at for at in times if at is not None and at != float("inf")), default=None)

    def tick(self, now: float) -> None:
        """Let what is due happen."""
        if self.mapping is not None and now >= self.mapping.expires:
            self.talk.stop()
            self.start(now)
        if self.talk.deadline is not None and now >= self.talk.deadline:
            self._end(self.talk.tick(now), now)
        if self._timer is not None and now >= self._timer:
            self._timer = None
            if self.state is State.HELD:
                self._ask(now)
            else:
                self.start(now)

    # ---- inside

    def _ask(self, now: float) -> None:
        self._since = now
        held = self.mapping.external if self.mapping is not None else None
        self.talk.ask(UPNP_LEASE_S if self.talk.protocol is Protocol.UPNP else PORTMAP_LIFETIME_S, held, now)

    def _renew_at(self, at: float) -> None:
        if self.talk.deadline is None:  # otherwise it is being asked already
            at = max(at, self._since + PORTMAP_RENEW_GAP_S)
            self._timer = at if self._timer is None else min(at, self._timer)

    def _look_at(self, at: float) -> None:
        if at >= self._since + PORTMAP_RECHECK_S:
            self._timer = at if self._timer is None else min(at, self._timer)

    def _end(self, outcome: Outcome | None, now: float) -> None:
        """Take the outcome of an exchange; None while it goes on."""
        if outcome is None:
            return
        if self.state is State.LEAVING:
            self.state = State.GONE
        elif isinstance(outcome, Granted):
            self._granted(outcome, now)
        elif isinstance(outcome, Refused):
            self._count(REFUSED)
            self._retry = max(self._retry, outcome.retry)
            self._not_granted(outcome.why, True, now)
        else:
            self._count(UNANSWERED)
            self._not_granted("no answer", False, now)

    def _granted(self, grant: Granted, now: float) -> None:
        if grant.lifetime < PORTMAP_MIN_LIFETIME_S or not is_possible(grant.external, self.route.internal):
            self._count(BAD_GRANT)
            self._not_granted(f"granted {grant.external} for {grant.lifetime:g} s", True, now)
            return
        self._count(GRANTED)
        before = self.mapping
        self.state = State.HELD
        self.mapping = Mapping(self.talk.protocol, grant.external, self.internal, now + grant.lifetime)
        self._checking = False
        self._plan(now)
        if before is None or before.external != grant.external:
            self._out(Changed())

    def _plan(self, now: float) -> None:
        """Renew somewhere between 1/2 and 5/8 of what is left (RFC 6887 section 11.2.1)."""
        assert self.mapping is not None
        left = min(self.mapping.expires - now, UPNP_LEASE_S if self.talk.protocol is Protocol.UPNP else float("inf"))
        share = 0.5 + int.from_bytes(self._entropy(2), "big") / 65_536 / 8
        self._timer = now + max(PORTMAP_RENEW_GAP_S, left * share)

    def _not_granted(self, why: str, refused: bool, now: float) -> None:
        if self.mapping is not None:
            if refused or self._checking:
                self.start(now)
            else:
                self._plan(now)  # the mapping lives on until it expires; the router may answer next time
            return
        self.said[self.talk.protocol.value] = why
        if self._turns.advance():
            self._ask(now)
        else:
            self.state = State.RESTING
            self._since = now
            self._timer = now + max(PORTMAP_REST_S, self._retry)

    def _drop(self) -> None:
        self._checking = False
        if self.mapping is not None:
            self.mapping = None
            self._out(Changed())
