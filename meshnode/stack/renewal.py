"""Renewal of this node's grants by connected peers, and of peers' grants by this node where its own allow it.

A node asks from half of its grants' lifetime on, at a random time, so that neither one renewer that is away for long
nor many nodes of one age are a problem. Which peers renew is in their grants.
"""

from __future__ import annotations

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_RENEWERS, MAX_SESSIONS, RENEWALS_BURST, RENEWALS_PER_S
from meshnode.base.metrics import describe
from meshnode.base.token_bucket import TokenBucket
from meshnode.errors import GrantError, MeshError
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection
from meshnode.quic.hello import Frame, as_grants
from meshnode.stack.component import Component
from meshnode.stack.context import Context
from meshnode.trust.chain import Standing, verify_chain
from meshnode.trust.renewal import WINDOW, Renewer, is_renewal
from meshnode.trust.succession import without_succession

RETRY_PART = 0.02  # of the lifetime, between two attempts: 25 while half of it is left, and ...
RETRY_S = 1.0, 3600.0  # ... not more often, nor less often, than this

RENEWED = describe("grants_renewed", "times that a peer renewed this node's grants")
MADE = describe("grants_made", "grants of peers that this node renewed")
REFUSED = describe("grants_not_made", "renewals that this node refused: its own grants do not allow it, or too early")
BAD = describe("drop_renewed", "renewed grants dropped: not asked for, not valid, or not like those before")


class Renewal(Component):
    """Asks for renewals in time, and answers peers that ask."""

    frames = (Frame.RENEW, Frame.RENEWED)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._asked: NodeId | None = None
        self._renewers: BoundedDict[NodeId, None] = BoundedDict(MAX_RENEWERS)  # peers that have shown that they renew
        self._paces: BoundedDict[NodeId, TokenBucket] = BoundedDict(MAX_SESSIONS)
        self._timer = context.timers.timer(self._look)
        self._part = context.rng.uniform(*WINDOW) if context.settings.authority is not None else 0.0
        if context.settings.authority is not None:
            self._timer.set(context.clock.monotonic())

    # ---- this node's own grants

    def _look(self, now: float) -> None:
        """Ask a renewer when it is time, or connect to one; else wait until it is."""
        context, own = self._context, self._context.standings.own()
        if own is None:
            return
        wall = context.clock.wall()
        lifetime = (own.expires - own.not_before) / 1000
        left = (self._part - own.part_over(wall)) * lifetime
        if left > 0:
            self._timer.set(now + left)
            return
        self._timer.set(now + min(max(lifetime * RETRY_PART * context.rng.uniform(0.5, 1.5), RETRY_S[0]), RETRY_S[1]))
        connected = [session.connection for session in context.peers.sessions.values() if session.connection]
        able = [connection for connection in connected if self._renews(connection.peer)]
        if able:
            self._ask(context.rng.choice(able))
            return
        for peer in dict.fromkeys((*self._renewers, *own.keys[1:-1])):
            context.dials.connect_member(peer, now, _ignore)

    def _ask(self, connection: Connection) -> None:
        self._asked = connection.peer
        connection.send_frame(Frame.RENEW)

    def _renews(self, peer: NodeId) -> bool:
        standing = self._context.standings.standing(peer)
        return standing is not None and standing.delegation is not None and standing.delegation.renews

    def on_link(self, connection: Connection, up: bool, now: float) -> None:
        """Remember a peer that renews, and ask it when it is time."""
        if up and self._renews(connection.peer):
            self._renewers.put(connection.peer, None)
            self._timer.set(now)

    def on_clock_set(self, now: float) -> None:
        """Reckon with the new time."""
        if self._context.settings.authority is not None:
            self._timer.set(now)

    # ---- frames

    def on_control(self, connection: Connection, fields: list[object], now: float) -> None:
        """Answer a peer that asks, or take an answer."""
        if fields[0] == Frame.RENEW:
            self._answer(connection, now)
        else:
            self._take(connection, as_grants(fields[1] if len(fields) == 2 else None), now)

    def _answer(self, connection: Connection, now: float) -> None:
        context, peer = self._context, connection.peer
        own, old = context.standings.own(), context.standings.standing(peer)
        pace = self._paces.get(peer)
        if pace is None:
            pace = self._paces[peer] = TokenBucket(RENEWALS_PER_S, RENEWALS_BURST, now)
        if own is None or old is None or not pace.take(1, now):
            context.metrics.count(REFUSED)
            return
        try:
            chain = Renewer(context.identity, own).renew(old, context.clock.wall(), context.entropy)
        except GrantError:
            context.metrics.count(REFUSED)
            chain = ()
        else:
            context.metrics.count(MADE)
        connection.send_frame(Frame.RENEWED, list(chain))

    def _take(self, connection: Connection, chain: tuple[bytes, ...], now: float) -> None:
        context, own = self._context, self._context.standings.own()
        authority, asked = context.settings.authority, self._asked
        self._asked = None
        if asked != connection.peer or own is None or authority is None:
            context.metrics.count(BAD)
            return
        new = self._verified(chain, authority)
        if new is None or not is_renewal(new, own):
            context.metrics.count(BAD)
            return
        context.metrics.count(RENEWED)
        context.standings.set_own((*chain, *context.grants[len(without_succession(context.grants)) :]))
        self._part = context.rng.uniform(*WINDOW)
        self._timer.set(now)

    def _verified(self, chain: tuple[bytes, ...], authority: NodeId) -> Standing | None:
        context = self._context
        try:
            return verify_chain(chain, context.identity.id, authority, context.clock.wall(), context.is_revoked)
        except GrantError:
            return None


def _ignore(outcome: Connection | MeshError) -> None:
    """The next look finds the connection, if there is one."""
