"""Roles of nodes that are not connected: each node tells its grants by gossip, and every node verifies them offline.

Rules about topics and names are asked about origins whose messages come by way of others.
"""

from __future__ import annotations

from meshnode.base.limits import GOSSIP_MAX_TTL_S
from meshnode.base.metrics import describe
from meshnode.base.wire import WireError
from meshnode.errors import GrantError
from meshnode.gossip import Changed, Entry, Kind
from meshnode.identity.node_id import NodeId
from meshnode.stack.component import Component, Spread
from meshnode.stack.context import Context
from meshnode.trust.authority import pack_chain, parse_chain
from meshnode.trust.chain import Chain, Standing, verify_chain

LOOK_S = 10.0  # between looks for grants that have expired

TOO_LONG = describe("grants_not_told", "own grants that are too long for gossip")


class RoleLink(Component):
    """Publishes this node's grants, and keeps those of others in ``Context.heard``."""

    def __init__(self, context: Context, gossip: Spread) -> None:
        self._context = context
        self._gossip = gossip
        self._told: Chain | None = None
        self._timer = context.timers.timer(self._publish)
        self._looking = context.timers.timer(self._look)
        if context.settings.authority is not None:
            gossip.check(Kind.GRANTS, self._fits)
            gossip.subscribe(Kind.GRANTS, self._on_entry)
            gossip.on_expiry(self._on_expired)
            context.guard.on_change.append(self._on_change)
            self._timer.set(context.clock.monotonic())
            self._looking.set(context.clock.monotonic() + LOOK_S)

    def _on_change(self) -> None:
        if self._context.grants != self._told:
            self._timer.set(self._context.clock.monotonic())

    def on_clock_set(self, now: float) -> None:
        """Say it again: it was dated by a clock that was wrong."""
        if self._context.settings.authority is not None:
            self._timer.set(now)

    def _publish(self, now: float) -> None:
        self._told = self._context.grants
        own = self._context.standings.own()
        if own is None:
            return
        try:
            self._gossip.publish_soon(Kind.GRANTS, "", pack_chain(own.chain), GOSSIP_MAX_TTL_S, now)
        except ValueError:
            self._context.metrics.count(TOO_LONG)
            return
        self._timer.set(now + GOSSIP_MAX_TTL_S * self._context.rng.uniform(0.3, 0.5))

    def _fits(self, entry: Entry) -> bool:
        """Return whether the grants in an entry held for its origin when it was issued."""
        if entry.name:
            return False
        return entry.value is None or self._standing(entry, entry.issued / 1000) is not None

    def _standing(self, entry: Entry, wall: float) -> Standing | None:
        authority = self._context.settings.authority
        if entry.value is None or authority is None:
            return None
        try:
            return verify_chain(parse_chain(entry.value), entry.origin, authority, wall)
        except (WireError, GrantError):
            return None

    def _on_entry(self, change: Changed, now: float) -> None:
        context, origin = self._context, change.entry.origin
        if origin == context.identity.id:
            return
        before, standing = context.heard.get(origin), self._standing(change.entry, context.clock.wall())
        if standing is not None:
            try:
                context.standings.check(standing, now)
            except GrantError:
                standing = None
        if standing is None:
            context.heard.pop(origin, None)
        else:
            context.heard.put(origin, standing)
        if _given(before) != _given(standing):
            self._tell(origin)

    def _on_expired(self, entry: Entry, now: float) -> None:
        """Forget grants that gossip keeps no longer, so that those of a crowd take the place of no others here."""
        heard = self._context.heard.get(entry.origin)
        if entry.kind == Kind.GRANTS and heard is not None and entry.value == pack_chain(heard.chain):
            self._context.heard.pop(entry.origin, None)
            self._tell(entry.origin)

    def _look(self, now: float) -> None:
        """Forget grants that have expired."""
        self._looking.set(now + LOOK_S)
        is_over = self._context.standings.is_over
        for peer in [peer for peer, standing in self._context.heard.items() if is_over(standing)]:
            self._context.heard.pop(peer, None)
            self._tell(peer)

    def _tell(self, peer: NodeId) -> None:
        guard = self._context.guard
        if guard.mesh is None and guard.local is None:
            guard.heard_of(peer)
        else:
            guard.reconsider((peer,))  # names that it has claimed, topics that it has joined


def _given(standing: Standing | None) -> tuple[object, object]:
    return (standing.roles, standing.services) if standing is not None else (None, None)
