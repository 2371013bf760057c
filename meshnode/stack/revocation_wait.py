"""Streams that wait at a node that was away, until it has heard what was revoked meanwhile.

The word of one peer will not do: it may be in league with a key that is revoked. A stream goes on when the DHT was
asked about its opener's keys and grants, and every connected peer but its opener has told what it knows: at least
``REVOCATION_QUORUM``, with the configured seeds that answer among them; and when the newest policy that one of them has
is here. At the latest after ``revocation_wait``.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection

from meshnode.base.limits import (
    HELD_STREAMS,
    HELD_STREAMS_OF_PEER,
    REVOCATION_LOOKUPS,
    REVOCATION_QUORUM,
    REVOCATION_SEEDS,
)
from meshnode.base.metrics import describe
from meshnode.errors import MeshError
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection, State
from meshnode.quic.preface import StreamStatus
from meshnode.quic.stream import Stream
from meshnode.stack.context import Context
from meshnode.trust.revocation import dht_key_of
from meshnode.trust.succession import open_links

AGAIN_S = 0.25  # until the DHT is asked that has no room for another question

HELD = describe("streams_held_for_revocations", "streams that waited for the first word of revocations")


class RevocationWait:
    """Holds streams of peers back; ``connected`` are the peers that are to tell what they know."""

    def __init__(self, context: Context, connected: Collection[NodeId]) -> None:
        self.is_there = False
        self._context = context
        self._connected = connected
        self._told: dict[NodeId, None] = {}
        self._dialled: dict[NodeId, bool] = {}  # configured seeds, and whether they have told or do not answer
        self._streams: list[tuple[Connection, Stream]] = []
        self._unasked: dict[NodeId, int] = {}  # openers, and about how many of their targets the DHT is still to tell
        self._queue: deque[tuple[NodeId, bytes]] = deque()
        self._asking = 0
        self._deadline = context.timers.timer(self._over)
        self._again = context.timers.timer(self._ask_next)
        context.policies.on_current = self._settle

    def begin(self, now: float) -> None:
        """Hold streams back from now on; what was told before counts no more."""
        wait = self._context.settings.revocation_wait
        if wait <= 0:
            return
        self.is_there = True
        for of_before in (self._told, self._dialled, self._unasked, self._queue):
            of_before.clear()
        self._deadline.set(now + wait)
        for peer in list(self._context.records.hints):
            self.on_seed(peer, now)

    def on_seed(self, peer: NodeId, now: float) -> None:
        """Dial a configured seed: it tells what it knows, as every peer does."""
        if not self.is_there or peer in self._dialled or len(self._dialled) >= REVOCATION_SEEDS:
            return
        self._dialled[peer] = peer in self._connected
        if peer in self._connected:
            return

        def answered(result: Connection | MeshError) -> None:
            if isinstance(result, MeshError):
                self.on_gone(peer)

        self._context.dials.connect_member(peer, now, answered)

    def on_told(self, peer: NodeId) -> None:
        """Note that a peer has told all it knows."""
        if self.is_there:
            self._told[peer] = None
            self.on_gone(peer)

    def on_gone(self, peer: NodeId) -> None:
        """Note that a peer tells nothing more."""
        if self.is_there:
            if peer in self._dialled:
                self._dialled[peer] = True
            self._settle()

    def takes(self, connection: Connection, stream: Stream, now: float) -> bool:
        """Keep a stream back while others may know that its opener is revoked."""
        peer = connection.peer
        if not self.is_there or stream.background:
            return False
        self._ask(peer, now)
        if self._is_settled(peer):
            return False
        self._context.metrics.count(HELD)
        self._streams.append((connection, stream))
        counts = Counter(held[0].peer for held in self._streams)
        if len(self._streams) > HELD_STREAMS or counts[peer] > HELD_STREAMS_OF_PEER:
            self._refuse_one_of(max(counts, key=counts.__getitem__))
        return True

    def _refuse_one_of(self, peer: NodeId) -> None:
        """Refuse the last stream of the peer that holds most: so several together take no place of others."""
        held = next(held for held in reversed(self._streams) if held[0].peer == peer)
        self._streams.remove(held)
        if held[1].error is None:
            held[1].refuse(StreamStatus.DENIED)

    def _is_settled(self, peer: NodeId) -> bool:
        told = [other for other in self._told if other != peer]
        return (
            len(told) >= REVOCATION_QUORUM
            and all(other in self._told for other in self._connected if other != peer)
            and all(self._dialled.values())
            and self._context.policies.is_current
            and not self._unasked.get(peer, 1)
        )

    # ---- the DHT's word on an opener

    def _ask(self, peer: NodeId, now: float) -> None:
        """Look for revocations of what a peer's standing rests on, once."""
        if peer in self._unasked:
            return
        statements, targets = self._context.records.statements, self._targets(peer)
        self._unasked[peer] = 0 if statements is None else len(targets)
        self._queue.extend((peer, target) for target in targets if statements is not None)
        self._ask_next(now)

    def _targets(self, peer: NodeId) -> list[bytes]:
        standing = self._context.standings.standing(peer)
        links = open_links(standing.chain) if standing is not None else []
        found = [bytes(peer)]
        for link in links:
            found += [bytes(link.subject), bytes.fromhex(link.id), *link.lineage]
        return list(dict.fromkeys(found))

    def _ask_next(self, now: float) -> None:
        statements = self._context.records.statements
        while statements is not None and self._queue and self._asking < REVOCATION_LOOKUPS:
            if not statements.has_room:  # an answer without a question is none
                self._again.set(now + AGAIN_S)
                return
            peer, target = self._queue.popleft()
            self._asking += 1
            statements.find_statement(dht_key_of(target), now, self._answered(peer))

    def _answered(self, peer: NodeId) -> Callable[[float], None]:
        def done(now: float) -> None:
            self._asking -= 1
            if self._unasked.get(peer):
                self._unasked[peer] -= 1
            self._ask_next(now)
            self._settle()

        return done

    # ---- the end

    def _settle(self) -> None:
        self._let_go([held for held in self._streams if self._is_settled(held[0].peer)])

    def _over(self, now: float) -> None:
        """Wait no longer: not enough others were there to ask."""
        self.is_there = False
        self._queue.clear()
        self._let_go(self._streams)

    def _let_go(self, streams: list[tuple[Connection, Stream]]) -> None:
        self._streams = [held for held in self._streams if held not in streams]
        for connection, stream in streams:
            if connection.state is State.READY and stream.error is None:
                self._context.links.on_stream(connection, stream)
