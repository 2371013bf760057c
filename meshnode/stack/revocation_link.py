"""Revocations on their way through the mesh, and what follows from each at this node.

A new statement goes to every connected peer at once, so it takes one way per hop, and only all of a node's peers
together could keep it from that node. At the start of a connection and once a minute both ends compare their sets
(REVOKED_HAVE) and ask bucket by bucket for what they lack (REVOKED_ASK, REVOKED). Every node also answers from its set
in the DHT, and stores there what it was given by hand. A node that was away (off, cut off from all others, or asleep)
lets the streams of peers wait until it was told what it missed (``revocation_wait.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from meshnode.base.limits import (
    AWAY_S,
    MAX_RECORD,
    MAX_REVOCATION,
    REVOCATION_ASKS_BURST,
    REVOCATION_ASKS_PER_S,
    REVOCATION_PAGE,
    REVOCATIONS_BURST,
    REVOCATIONS_LOOK_S,
    REVOCATIONS_PER_S,
)
from meshnode.base.metrics import describe
from meshnode.base.token_bucket import TokenBucket
from meshnode.base.value import state
from meshnode.errors import GrantError
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection
from meshnode.quic.hello import Frame
from meshnode.quic.stream import Stream
from meshnode.stack.component import Component
from meshnode.stack.context import Context
from meshnode.stack.revocation_dht import RevocationsInDht
from meshnode.stack.revocation_wait import RevocationWait
from meshnode.trust.chain import Chain
from meshnode.trust.grant import Grant
from meshnode.trust.revocation import (
    NAME_LENGTH,
    Revocation,
    RevocationError,
    RevocationReject,
    dht_key_of,
    name_of,
    open_revocation,
)
from meshnode.trust.revocations import BUCKETS, PRINTS_LENGTH, Revocations, differing
from meshnode.trust.succession import open_links

TAKEN = describe("revocations_taken", "revocations that this node has taken")
BAD = describe("revocation_drop_malformed", "frames about revocations that were malformed, not asked for, or too many")
REJECTED = {
    RevocationReject.MALFORMED: describe("revocation_drop_bytes", "revocations dropped: not one"),
    RevocationReject.FUTURE: describe("revocation_drop_future", "revocations dropped: dated in the future"),
    RevocationReject.UNPROVEN: describe("revocation_drop_unproven", "revocations dropped: of a key that is no member"),
    RevocationReject.FORGED: describe("revocation_drop_forged", "revocations dropped: their issuer did not sign them"),
}
FORGED_COST = 100.0  # tokens: no honest node passes on a forged one


@state
class _Peer:
    """A connected peer: what it may send and ask for, and the buckets that it was asked for."""

    statements: TokenBucket
    asks: TokenBucket
    open: set[int]


class RevocationLink(Component):
    """Holds what is revoked, spreads it, and ends what it ends. ``on_taken`` is to save the set."""

    frames = (Frame.REVOKED_HAVE, Frame.REVOKED_ASK, Frame.REVOKED)

    def __init__(self, context: Context) -> None:
        self.on_taken: Callable[[], None] = lambda: None
        self.held: Revocations | None = None
        self._context = context
        self._peers: dict[NodeId, _Peer] = {}
        self._wait = RevocationWait(context, self._peers)
        self._offset = context.clock.wall() - context.clock.monotonic()
        self._alone_since: float | None = None
        self._timer = context.timers.timer(self._look)
        settings = context.settings
        if settings.authority is not None:
            self.held = held = Revocations(settings.authority)
            context.is_revoked, context.is_barred = held.covers, held.has
            now = context.clock.monotonic()
            self._timer.set(now + REVOCATIONS_LOOK_S)
            if (dht := context.records.statements) is not None:
                dht.keep_statements(RevocationsInDht(held, self._open, lambda found: self._add(found, None)))
            if settings.was_away:
                self._wait.begin(now)

    # ---- what others ask

    def own_revoked(self) -> bool:
        """Return whether this node's own key or grants are revoked."""
        context = self._context
        return context.is_barred(context.identity.id) or context.is_revoked(_links(context.grants))

    def take(self, encoded: bytes) -> Revocation | None:
        """Take a revocation and spread it; None when it was known. Raises RevocationError: it is none."""
        found = self._take(encoded)
        dht = self._context.records.statements
        if found is not None and dht is not None and len(encoded) <= MAX_RECORD:
            dht.publish_statement(dht_key_of(found.target), encoded, self._context.clock.monotonic())
        return found

    def _take(self, encoded: bytes) -> Revocation | None:
        if self.held is None:
            raise RevocationError(RevocationReject.UNPROVEN)
        found = self._open(encoded)
        return found if self._add(found, None) else None

    def _open(self, encoded: bytes, *, is_kept: bool = False) -> Revocation:
        authority = self._context.settings.authority
        assert authority is not None
        return open_revocation(encoded, authority, inf if is_kept else self._context.clock.wall())

    def _add(self, found: Revocation, source: NodeId | None) -> bool:
        assert self.held is not None
        if not self.held.add(found, self._context.clock.wall()):
            return False
        self._carry_out([found], source)
        return True

    def restore(self, statements: list[bytes] | None) -> None:
        """Take what an earlier process of this node knew; what does not hold is left out.

        A clock that was set back since makes none of it doubtful. None: it is lost, as if this node had been away.
        """
        if statements is None:
            self._was_away(self._context.clock.monotonic())
            return
        for encoded in statements:
            try:
                self._add(self._open(encoded, is_kept=True), None)
            except RevocationError as error:
                self._context.metrics.count(REJECTED[error.reason])

    # ---- peers come and go

    def on_link(self, connection: Connection, up: bool, now: float) -> None:
        """Compare sets with a new peer; forget one that is gone."""
        if self.held is None:
            return
        peer = connection.peer
        if not up:
            self._peers.pop(peer, None)
            if not self._peers:
                self._alone_since = now
            self._wait.on_gone(peer)
            return
        if self._alone_since is not None and now - self._alone_since > AWAY_S:
            self._was_away(now)
        self._alone_since = None
        self._peers[peer] = _Peer(
            TokenBucket(REVOCATIONS_PER_S, REVOCATIONS_BURST, now),
            TokenBucket(REVOCATION_ASKS_PER_S, REVOCATION_ASKS_BURST, now),
            set(),
        )
        connection.send_frame(Frame.REVOKED_HAVE, self.held.prints())

    def _look(self, now: float) -> None:
        """Compare with all peers, for what was lost at a full rate; forget what can hit nothing any more."""
        assert self.held is not None
        self.held.expire(self._context.clock.wall())
        if len(self.held):
            for peer in list(self._peers):
                self._send(peer, Frame.REVOKED_HAVE, self.held.prints())
        self._timer.set(now + REVOCATIONS_LOOK_S * self._context.rng.uniform(0.8, 1.2))

    # ---- frames

    def on_control(self, connection: Connection, fields: list[object], now: float) -> None:
        """Compare, answer a question, or take statements."""
        peer = self._peers.get(connection.peer)
        if peer is None or self.held is None:
            return
        match fields:
            case [Frame.REVOKED_HAVE, bytes(prints)] if len(prints) == PRINTS_LENGTH:
                self._compare(connection.peer, peer, prints, now)
            case [Frame.REVOKED_ASK, int(bucket), bytes(names)] if 0 <= bucket < BUCKETS:
                self._answer(connection, peer, bucket, names, now)
            case [Frame.REVOKED, None | int() as bucket, list(statements)]:
                self._take_all(connection.peer, peer, statements, now)
                if bucket is not None and bucket in peer.open:
                    peer.open.discard(bucket)
                    if not peer.open:
                        self._wait.on_told(connection.peer)
            case _:
                self._context.metrics.count(BAD)

    def _compare(self, peer: NodeId, known: _Peer, prints: bytes, now: float) -> None:
        assert self.held is not None
        buckets = differing(self.held.prints(), prints)
        known.open = set(buckets)
        for bucket in buckets:
            self._send(peer, Frame.REVOKED_ASK, bucket, b"".join(self.held.names(bucket)))
        if not buckets:
            self._wait.on_told(peer)

    def _answer(self, connection: Connection, peer: _Peer, bucket: int, names: bytes, now: float) -> None:
        assert self.held is not None
        if not peer.asks.take(1, now):
            self._context.metrics.count(BAD)
            return
        known = [names[at : at + NAME_LENGTH] for at in range(0, len(names), NAME_LENGTH)]
        pages = _pages(self.held.others(bucket, known))
        for page in pages[:-1]:
            connection.send_frame(Frame.REVOKED, None, page)
        connection.send_frame(Frame.REVOKED, bucket, pages[-1])

    def _take_all(self, peer: NodeId, known: _Peer, statements: list[object], now: float) -> None:
        """Take what is new, and pass it on to all others together."""
        assert self.held is not None
        taken = []
        for encoded in statements:
            if type(encoded) is not bytes or len(encoded) > MAX_REVOCATION:
                self._context.metrics.count(BAD)
                break
            if self.held.knows(name_of(encoded)):
                continue
            if not known.statements.take(1, now):
                self._context.metrics.count(BAD)
                break
            found = self._opened(peer, known, encoded, now)
            if found is not None and self.held.add(found, self._context.clock.wall()):
                taken.append(found)
        if taken:
            self._carry_out(taken, peer)

    def _opened(self, peer: NodeId, known: _Peer, encoded: bytes, now: float) -> Revocation | None:
        context = self._context
        try:
            return self._open(encoded)
        except RevocationError as error:
            context.metrics.count(REJECTED[error.reason])
            if error.reason is not RevocationReject.FUTURE:
                known.statements.take(FORGED_COST, now)
                if context.gossip is not None:
                    context.gossip.blame(peer, now, forged=True)
            return None

    def _send(self, peer: NodeId, kind: Frame, *fields: object) -> None:
        connection = self._context.peers.connection(peer)
        if connection is not None:
            connection.send_frame(kind, *fields)

    # ---- what follows

    def _carry_out(self, taken: list[Revocation], source: NodeId | None) -> None:
        """Pass statements on, forget what their keys have published, and end their connections."""
        context, now = self._context, self._context.clock.monotonic()
        context.metrics.count(TAKEN, len(taken))
        for page in _pages([each.encoded for each in taken]):
            for peer in list(self._peers):
                if peer != source:
                    self._send(peer, Frame.REVOKED, None, page)
        for each in taken:
            context.events.on_revoked(each)
            if each.is_key and context.gossip is not None and context.is_barred(key := NodeId(each.target)):
                context.gossip.bar(key, now)
        context.standings.end_revoked(now)
        self.on_taken()

    # ---- a node that was away

    @property
    def waits(self) -> bool:
        """Whether streams of peers wait for the first word of revocations."""
        return self._wait.is_there

    def takes_stream(self, connection: Connection, stream: Stream) -> bool:
        """Keep a stream back while others may know that its opener is revoked.

        It may come before the first tick behind a sleep of the host, so the clocks are compared here too.
        """
        now = self._context.clock.monotonic()
        self.on_clock_set(now)
        return self._wait.takes(connection, stream, now)

    def on_seed(self, peer: NodeId, now: float) -> None:
        """Ask a configured seed too."""
        self._wait.on_seed(peer, now)

    def on_clock_set(self, now: float) -> None:
        """Ask all again where the host has slept: its clock went on, this process did not."""
        offset = self._context.clock.wall() - now
        step, self._offset = offset - self._offset, offset
        if step > AWAY_S:
            self._was_away(now)

    def _was_away(self, now: float) -> None:
        if self.held is None:
            return
        self._wait.begin(now)
        for peer, known in list(self._peers.items()):
            known.open = set(range(BUCKETS))
            for bucket in range(BUCKETS):
                self._send(peer, Frame.REVOKED_ASK, bucket, b"".join(self.held.names(bucket)))


def _links(chain: Chain) -> list[Grant]:
    try:
        return open_links(chain)
    except GrantError:
        return []


def _pages(statements: list[bytes]) -> list[list[bytes]]:
    """Return statements in parts that fit a control frame each; one empty part when there are none."""
    pages: list[list[bytes]] = [[]]
    size = 0
    for encoded in statements:
        if pages[-1] and size + len(encoded) > REVOCATION_PAGE:
            pages.append([])
            size = 0
        pages[-1].append(encoded)
        size += len(encoded)
    return pages
