"""Uses of invitations over gossip: each node that joined by a counted one says so, and every node counts.

An entry's name is the invitation's grant, its value the chain of grants of its origin, which proves the use: only the
holder of a ticket can make one, and only for its own key.
"""

from __future__ import annotations

from meshnode.base.limits import GOSSIP_MAX_TTL_S
from meshnode.base.metrics import describe
from meshnode.base.wire import WireError
from meshnode.errors import GrantError
from meshnode.gossip import Changed, Entry, Kind
from meshnode.stack.component import Component, Spread
from meshnode.stack.context import Context
from meshnode.trust.authority import pack_chain, parse_chain
from meshnode.trust.chain import Standing, verify_chain

EXCESS = describe("invitations_overused", "keys that used an invitation too often")
TOO_LONG = describe("invitations_not_told", "own uses of an invitation whose grants are too long for gossip")


class RedemptionLink(Component):
    """Publishes this node's own use, and hands those of others to the count."""

    def __init__(self, context: Context, gossip: Spread) -> None:
        self._context = context
        self._gossip = gossip
        self._timer = context.timers.timer(self._publish)
        if context.settings.authority is not None:
            gossip.check(Kind.REDEMPTION, self._fits)
            gossip.subscribe(Kind.REDEMPTION, self._on_entry)
            self._timer.set(context.clock.monotonic())

    def _publish(self, now: float) -> None:
        own = self._context.standings.own()
        if own is None or own.invite is None:
            return
        try:
            self._gossip.publish_soon(Kind.REDEMPTION, own.invite.id, pack_chain(own.chain), GOSSIP_MAX_TTL_S, now)
        except ValueError:
            self._context.metrics.count(TOO_LONG)
            return
        self._timer.set(now + GOSSIP_MAX_TTL_S * self._context.rng.uniform(0.3, 0.5))

    def on_clock_set(self, now: float) -> None:
        """Say it again: it was dated by a clock that was wrong."""
        if self._context.settings.authority is not None:
            self._timer.set(now)

    def _fits(self, entry: Entry) -> bool:
        return entry.value is None or self._use(entry) is not None

    def _use(self, entry: Entry) -> Standing | None:
        """Return what the grants in an entry gave when it was issued, if they prove the use that it names."""
        authority = self._context.settings.authority
        if entry.value is None or authority is None:
            return None
        try:
            standing = verify_chain(parse_chain(entry.value), entry.origin, authority, entry.issued / 1000)
        except (WireError, GrantError):
            return None
        return standing if standing.invite is not None and standing.invite.id == entry.name else None

    def _on_entry(self, change: Changed, now: float) -> None:
        context, use = self._context, self._use(change.entry)
        if use is not None and not context.standings.count(use):
            context.metrics.count(EXCESS)
