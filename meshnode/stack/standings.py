"""What the peers' grants say of them: verified before a peer is admitted, held to their dates while it is connected.

In a mesh with an authority a dialler's grants come with its Hello, a listener's before its Welcome. The guard asks here
for the ``Caller`` that a node is. A peer whose grants expire is cut off, one that has renewed them says so on the live
connection.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from meshnode.base.limits import GRANT_SKEW_S, GRANTS_BURST, GRANTS_PER_S
from meshnode.base.metrics import describe
from meshnode.base.token_bucket import TokenBucket
from meshnode.base.value import state
from meshnode.errors import GrantError, GrantReject
from meshnode.identity.node_id import KEY_LENGTH, NodeId
from meshnode.quic.connection import Connection
from meshnode.quic.hello import CloseCode, Frame, as_grants
from meshnode.stack.component import Component
from meshnode.stack.context import Context
from meshnode.stack.session import Session
from meshnode.trust.caller import Caller
from meshnode.trust.chain import Chain, Standing, verify_chain
from meshnode.trust.decision import Decision
from meshnode.trust.grant import Grant
from meshnode.trust.policy import Act
from meshnode.trust.redemptions import Redemptions
from meshnode.trust.succession import open_links, open_succession
from meshnode.trust.successors import Share, share_of

REFUSED = describe("refused_grant", "peers that were not admitted, for their grants")
CUT_REVOKED = describe("cut_revoked", "connections ended: the peer's key or grants were revoked")
CUT = describe("grants_expired", "connections ended: the peer's grants had expired")
NOT_TAKEN = describe("drop_grants", "grants on live connections that do not hold, or come too often")


@state
class _Held:
    standing: Standing
    pace: TokenBucket


class Standings(Component):
    """The grants of peers, and this node's own."""

    frames = (Frame.GRANTS,)

    def __init__(self, context: Context) -> None:
        self.redemptions = Redemptions()
        self.on_own: Callable[[Chain], None] = lambda chain: None
        self._context = context
        self._held: dict[NodeId, _Held] = {}  # of nodes that have a session
        self._counted = False
        self._timer = context.timers.timer(self._cut)
        if context.settings.authority is not None:
            context.guard.callers = self.caller
            context.successors.on_new.append(lambda old, new: self._arm())

    # ---- what others ask

    def caller(self, peer: NodeId) -> Caller:
        """Return a node as rules see it: without roles when no grants of it are known."""
        standing = self.own() if peer == self._context.identity.id else self.standing(peer) or self._heard(peer)
        if standing is None:
            return Caller(peer)
        return Caller(peer, None, standing.roles, standing.services, standing.grants[-1], standing.former)

    def standing(self, peer: NodeId) -> Standing | None:
        """Return what the grants of a peer give; None without any."""
        held = self._held.get(peer)
        return held.standing if held is not None else None

    def _heard(self, peer: NodeId) -> Standing | None:
        """Return what the grants of a node that is not connected give, as it has told all."""
        heard = self._context.heard.get(peer)
        if heard is None or self.is_over(heard):
            return None
        return None if self._covered(heard) else heard

    def own(self) -> Standing | None:
        """Return what this node's own grants give; None when they do not hold now."""
        context, authority = self._context, self._context.settings.authority
        if authority is None:
            return None
        try:
            return verify_chain(context.grants, context.identity.id, authority, context.clock.wall())
        except GrantError:
            return None

    # ---- peers come and go

    def take(self, peer: NodeId, grants: Chain) -> GrantError | None:
        """Verify a peer's grants; returns why it is not to be admitted, None when it is."""
        context, settings = self._context, self._context.settings
        if settings.authority is None:
            return None
        wall, now = context.clock.wall(), context.clock.monotonic()
        try:
            standing = verify_chain(grants, peer, settings.authority, wall, context.is_revoked)
            self.check(standing, now)
        except GrantError as error:
            if not settings.needs_grant and not context.is_barred(peer):
                return None
            context.metrics.count(REFUSED)
            return error
        self._hold(standing, TokenBucket(GRANTS_PER_S, GRANTS_BURST, now))
        return None

    def check(self, standing: Standing, now: float) -> None:
        """Note what verified grants of a node say, and hold them to what others said before. Raises GrantError."""
        if self._context.is_barred(standing.id) or self._rests_on_lost(standing):
            raise GrantError(GrantReject.REVOKED)
        if self.is_over(standing):
            raise GrantError(GrantReject.EXPIRED)
        if not self.count(standing):
            raise GrantError(GrantReject.USED_UP)
        if standing.former is not None:
            self._note_successor(open_succession(standing.chain[-1]), share_of(standing), now)

    def _note_successor(self, link: Grant, share: Share, now: float) -> None:
        """Note that a key has replaced another one. Raises GrantError: two claim it, or it has replaced another."""
        context, successors = self._context, self._context.successors
        if successors.replaces_another(link):
            raise GrantError(GrantReject.BROKEN)
        if successors.note(link, share) and (successors.is_disputed(link.issuer) or self._is_hidden(link.issuer)):
            context.events.on_dirty()
            self.end_revoked(now)
        if successors.is_disputed(link.issuer):
            raise GrantError(GrantReject.REVOKED)

    def _is_hidden(self, old: NodeId) -> bool:
        """Return whether the renewed grants of a node that is known rest on an old key."""
        raw, known = bytes(old), [*(held.standing for held in self._held.values()), *self._context.heard.values()]
        having = (each.chain for each in known if any(raw in encoded for encoded in each.chain))  # 0.2 us each
        return any(raw in link.lineage for chain in having for link in open_links(chain))

    def count(self, standing: Standing) -> bool:
        """Count the use of an invitation; False when as many others, this node before all, have used it."""
        wall = self._context.clock.wall()
        if not self._counted and (own := self.own()) is not None:
            self._counted = self.redemptions.admit(own, wall)
        return self.redemptions.admit(standing, wall)

    def on_session_gone(self, session: Session, now: float) -> None:
        """Forget what is known of a peer with all else."""
        if self._held.pop(session.peer, None) is not None:
            self._context.guard.heard_of(session.peer)

    def on_control(self, connection: Connection, fields: list[object], now: float) -> None:
        """Take grants that a connected peer has renewed.

        When they do not hold, those of before count on.
        """
        context, held = self._context, self._held.get(connection.peer)
        grants = as_grants(fields[1] if len(fields) == 2 else None)
        authority = context.settings.authority
        if held is None or authority is None:
            return
        if not held.pace.take(1, now):
            context.metrics.count(NOT_TAKEN)
            return
        try:
            standing = verify_chain(grants, connection.peer, authority, context.clock.wall(), context.is_revoked)
            self.check(standing, now)
        except GrantError:
            context.metrics.count(NOT_TAKEN)
            return
        before = held.standing
        self._hold(standing, held.pace)
        if (before.roles, before.services, before.former) != (standing.roles, standing.services, standing.former):
            context.guard.changed()

    def _hold(self, standing: Standing, pace: TokenBucket) -> None:
        self._held[standing.id] = _Held(standing, pace)
        self._context.guard.heard_of(standing.id)
        self._arm()

    # ---- own grants

    def set_own(self, chain: Chain) -> None:
        """Show these grants to peers from now on, those that are connected first."""
        self._context.grants = chain
        for session in list(self._context.peers.sessions.values()):
            if session.connection is not None:
                session.connection.send_frame(Frame.GRANTS, list(chain))
        self.on_own(chain)
        self._context.guard.changed()

    # ---- revocations

    def end_revoked(self, now: float) -> None:
        """End the connections of peers whose key or grants are revoked; where grants only give roles, they lose these.

        What the peer has opened ends with its connection, which tells it why.
        """
        context, why = self._context, GrantError(GrantReject.REVOKED).message
        gone = [session for session in context.peers.sessions.values() if self._is_revoked(session.peer)]
        for session in gone:
            self._held.pop(session.peer, None)
            connection = session.connection
            if connection is not None and (context.settings.needs_grant or context.is_barred(session.peer)):
                context.metrics.count(CUT_REVOKED)
                context.events.on_cut(session.peer, Act.CONNECT, "", Decision(False, None, None, why))
                connection.close(CloseCode.POLICY_DENIED, why)
        if gone or context.heard:
            context.guard.changed()

    def _is_revoked(self, peer: NodeId) -> bool:
        held = self._held.get(peer)
        return self._context.is_barred(peer) or (held is not None and self._covered(held.standing))

    def _rests_on_lost(self, standing: Standing) -> bool:
        """Return whether a chain has a key that was replaced by a revoked one, or replaced one that two keys claim.

        With a stolen machine its old key is stolen, which counts as long as its grace.
        """
        context, successors = self._context, self._context.successors
        if any(context.is_barred(new) for key in standing.keys for new in successors.line(key)):
            return True
        for link in open_links(standing.chain):
            line = [*(NodeId(each) for each in link.lineage if len(each) == KEY_LENGTH), link.subject]
            if any(successors.has_another(old, new) for old, new in pairwise(line)):
                return True
        return False

    def _covered(self, standing: Standing) -> bool:
        lost = self._context.successors.is_disputed(standing.former) or self._rests_on_lost(standing)
        return lost or self._context.is_revoked(open_links(standing.chain))

    # ---- dates

    def on_clock_set(self, now: float) -> None:
        """Reckon with the new time."""
        self._arm()

    def _ends(self, standing: Standing) -> int:
        """Return until when grants hold, in Unix milliseconds; those of a key that was replaced end with its grace."""
        return min(standing.expires, self._context.successors.ends(standing.id))

    def is_over(self, standing: Standing) -> bool:
        """Return whether grants hold no longer, or are those of a key whose grace is over."""
        return self._context.clock.wall() > self._ends(standing) / 1000 + GRANT_SKEW_S

    def _arm(self) -> None:
        if self._held:
            first = min(self._ends(held.standing) for held in self._held.values()) / 1000 + GRANT_SKEW_S
            clock = self._context.clock
            self._timer.set(clock.monotonic() + max(0.0, first - clock.wall()) + 0.001)

    def _cut(self, now: float) -> None:
        """End the connections of peers whose grants have expired."""
        sessions = self._context.peers.sessions
        for peer, held in list(self._held.items()):
            if not self.is_over(held.standing):
                continue
            del self._held[peer]
            self._context.guard.heard_of(peer)
            session = sessions.get(peer)
            if session is not None and session.connection is not None:
                self._context.metrics.count(CUT)
                session.connection.close(CloseCode.POLICY_DENIED, GrantError(GrantReject.EXPIRED).message)
        self._arm()
