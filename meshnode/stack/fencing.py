"""Two processes with one key: one of them stands down, by their boot ids (``key_twins.py``) and this node's setting.

With ``newest`` a node stands down when it is shown a record that its own key has signed in a later process; with
``first`` when peers refuse it for an earlier one that lives. A node that stands down sends nothing any more and
serves nothing, but for one dial a minute, to a node that knew the other process: when that one admits it, the other is
gone, and this node goes on, as a process that begins now.
"""

from __future__ import annotations

import base64
from collections.abc import Hashable
from functools import partial

from meshnode.base.address import Addr
from meshnode.base.bounded import BoundedDict
from meshnode.base.fair_table import source_shares
from meshnode.base.metrics import describe
from meshnode.base.token_bucket import TokenBucket
from meshnode.errors import MeshError, NodeClosed, PeerRestarted, RecordError
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord, open_record
from meshnode.quic.connection import Connection, KeyInUse, State
from meshnode.quic.hello import CloseCode, Hello
from meshnode.stack.component import Component
from meshnode.stack.context import Context
from meshnode.stack.key_twins import boot_of, first_stays, make_boot
from meshnode.stack.session import Session

CONFIRM_S = 0.5  # after which a node that stands down asks first: so the other process and the peers hear of it too
ASK_S = 60.0, 90.0  # between the dials afterwards
OUTBID_S = 2.0  # between two records that this node signs because another process of its key is there ...
OUTBIDS = 8  # ... after so many at once: each of a crowd of processes is shown one that was signed since it began
TOGETHER_S = 0.05  # behind such a wish, for its record is not signed yet
MAX_FENCERS = 8
WITNESSES = 2
MAX_PROOF = 800  # characters of base64 in the reason of a close: with a datagram's rest it fits 1,200 bytes

STOOD_DOWN = describe("stood_down", "times that this node gave way to another process with its key")
FENCED = describe("fenced", "connections ended or refused: another process with the peer's key has precedence")


class Fencing(Component):
    """Decides between processes of one key: for this node's own, and as their peer."""

    def __init__(self, context: Context) -> None:
        self.stood_down = False
        self._context = context
        self._asked: NodeId | None = None
        self._asks = 0
        self._first: list[NodeId] = []  # peers to ask before the others
        self._fencers: BoundedDict[NodeId, None] = BoundedDict(MAX_FENCERS)
        self._witnesses: BoundedDict[Hashable, None] = BoundedDict(MAX_FENCERS)  # networks that say so of an earlier
        self._bids = TokenBucket(1 / OUTBID_S, OUTBIDS, context.clock.monotonic())
        self._bid_at = float("-inf")  # when the last record was to be signed, or will be
        self._timer = context.timers.timer(self._ask)

    # ---- as a peer of both

    def decides(self, session: Session, arrival: Connection, hello: Hello) -> bool:
        """Refuse an arrival, or end the connection that is, when they are of two processes and one has precedence.

        Returns whether the arrival is dealt with; else it goes on as that of a node that has restarted.
        """
        context, old, now = self._context, session.connection, self._context.clock.monotonic()
        other = self._other(session, hello.boot)
        if other is None:
            return False
        boot, record, lives = other
        if hello.boot > boot and not (first_stays(hello.boot) and lives):
            if old is not None and lives:
                context.metrics.count(FENCED)
                _fence(old, hello.record)
            return False
        if not lives:
            return False
        if hello.boot > boot and old is not None and session.deferred is None and old.peer_boot == boot:
            self._ask_first(session, old, arrival, hello, record)
            return True
        self._refuse(arrival, record, now)
        return True

    def _other(self, session: Session, boot: bytes) -> tuple[bytes, bytes, bool] | None:
        """Return boot id and record of another process with a peer's key, and whether it seems to live."""
        context, old, now = self._context, session.connection, self._context.clock.monotonic()
        cached = context.records.cached(session.peer)
        if old is not None and old.peer_boot not in (b"", boot):
            is_same = cached is not None and boot_of(cached) == old.peer_boot
            record = cached.encoded if cached is not None and is_same else old.peer_record
            return old.peer_boot, record, session.is_heard(now)
        known = boot_of(cached)
        if cached is None or known <= boot or context.gossip is None or first_stays(boot):
            return None
        return known, cached.encoded, context.gossip.lives(session.peer)

    def _refuse(self, arrival: Connection, record: bytes, now: float) -> None:
        context, peer = self._context, arrival.peer
        context.metrics.count(FENCED)
        context.note_twin(peer, now)
        _fence(arrival, record)
        context.admission.tell_of_twin(peer)

    def _ask_first(self, session: Session, old: Connection, arrival: Connection, hello: Hello, record: bytes) -> None:
        """Ask the first process whether it lives: it may have ended just now, and this be its restart."""
        session.deferred = arrival, hello

        def answered(alive: bool) -> None:
            if session.deferred is None or session.deferred[0] is not arrival:
                return
            if alive:
                session.deferred = None
                self._refuse(arrival, record, self._context.clock.monotonic())
            elif session.connection is old:
                _fence(old, hello.record)
                self._context.admission.resume(session)

        self._context.admission.is_alive(old, answered)

    # ---- this node's own key

    def on_proof(self, peer: NodeId, proof: str, now: float, *, was_ready: bool = False) -> None:
        """Take a peer's word, with its proof, that another process uses this node's key."""
        context = self._context
        context.note_twin(context.identity.id, now)
        try:
            raw = base64.b64decode(proof, validate=True)
            record = open_record(raw, context.clock.wall(), expected=context.identity.id)
        except (ValueError, RecordError):
            return
        boot = boot_of(record)
        if self._gives_way_to(boot):
            self._fencers.put(peer, None)
            if boot > context.boot or self._is_witnessed(peer, record):
                self._stand_down(now, peer if was_ready else None)

    def _gives_way_to(self, boot: bytes) -> bool:
        """Return whether a boot id is that of another process, which has precedence."""
        own = self._context.boot
        later = boot > own
        return boot not in (b"", own) and later != first_stays(own)

    def _is_witnessed(self, peer: NodeId, record: EndpointRecord) -> bool:
        """Return whether an earlier process lives: it has signed since this one began, or peers in two networks say so.

        Any peer may have kept a record of a process that has ended, this node's own before its restart, and ids are
        free. Those that were dialled by detours are one network, for a peer may have any relay.
        """
        session = self._context.peers.sessions.get(peer)
        path = session.paths.active if session is not None else None
        self._witnesses.put(source_shares(path.host)[0] if isinstance(path, Addr) else None, None)
        return self._is_later(record) or len(self._witnesses) >= WITNESSES

    def _is_later(self, record: EndpointRecord) -> bool:
        """Return whether a record was signed since this process began."""
        return record.issued > int.from_bytes(self._context.boot[:6], "big")

    def heard(self, record: EndpointRecord, now: float) -> None:
        """Take a record of this node's key that it did not sign: give way to its process, or outbid that."""
        context, boot = self._context, boot_of(record)
        if not boot or boot == context.boot or self.stood_down:
            return
        if self._gives_way_to(boot) and (boot > context.boot or self._is_later(record)):
            self._stand_down(now)
        else:
            self.outbid(now)

    def outbid(self, now: float) -> None:
        """Sign a record, as soon as it may: it shows that this process lives, and others are refused with it."""
        if self.stood_down or now < self._bid_at + TOGETHER_S:
            return
        self._bid_at = now + self._bids.wait(1, now)
        self._context.timers.at(self._bid_at, self._bid)

    def _bid(self, now: float) -> None:
        if not self.stood_down and self._bids.take(1, now):
            self._context.own.changed(now)

    def _stand_down(self, now: float, ended_by: NodeId | None = None) -> None:
        """Give way; one that ended a ready connection takes the other process for a restart until asked."""
        context = self._context
        self._asked = None
        self._timer.set(now + (context.rng.uniform(*ASK_S) if self.stood_down else CONFIRM_S))
        if self.stood_down:
            context.sender.only = frozenset()
            return
        self.stood_down = True
        context.metrics.count(STOOD_DOWN)
        context.note_twin(context.identity.id, now)
        for session in list(context.peers.sessions.values()):
            if session.connection is not None:
                self._fencers.setdefault(session.peer, None)
            for connection in session.connections():
                if connection.state is State.READY:
                    connection.close(CloseCode.SHUTDOWN, "another process has this node's key")
                else:
                    connection.abandon(NodeClosed("this node stands down: another process has its key"))
        asked = () if ended_by is None else (ended_by,)
        self._first = list(dict.fromkeys((*asked, *list(self._fencers)[-1:])))
        context.links.flush(now)
        context.sender.only = frozenset()
        context.events.on_stood_down(True)

    def refusal(self, peer: NodeId) -> MeshError | None:
        """Return why a peer may not be dialled now; None when it may."""
        if not self.stood_down or peer == self._asked:
            return None
        return KeyInUse(
            "this node stands down: another host uses its key", hint="stop one of the two, or give it a key of its own"
        )

    def _ask(self, now: float) -> None:
        """Dial a node that knew the other process: if that is gone, this one goes on."""
        context = self._context
        if not self.stood_down:
            return
        self._timer.set(now + context.rng.uniform(*ASK_S))
        peers = list(self._fencers)
        if not peers:
            self._go_on(now)
            return
        peer = self._first.pop(0) if self._first else peers[-1 - self._asks % len(peers)]
        self._asks += 1
        context.sender.only = frozenset((peer,))
        self._asked = peer
        context.dials.connect(peer, now, partial(self._answered, peer))

    def _answered(self, peer: NodeId, outcome: Connection | MeshError) -> None:
        now = self._context.clock.monotonic()
        self._asked = None
        if isinstance(outcome, Connection):
            outcome.close(CloseCode.NORMAL, "goes on as a later process")
            self._go_on(now)
        else:
            self._context.sender.only = frozenset()
            if self._first:
                self._timer.set(now + CONFIRM_S)

    def _go_on(self, now: float) -> None:
        context = self._context
        self._witnesses.clear()
        self._first.clear()
        context.boot = make_boot(context.next_seq(), first_stays(context.boot), context.entropy(1))
        self.stood_down = False
        context.sender.only = None
        self._timer.set(None)
        context.own.changed(now)
        context.events.on_stood_down(False)


def _fence(connection: Connection, record: bytes) -> None:
    """Close because the peer's key is used by another process, whose record is the proof."""
    proof = base64.b64encode(record).decode()
    error = PeerRestarted(f"{connection.peer.short} runs as another process now")
    connection.refuse(proof if len(proof) <= MAX_PROOF else "", error, CloseCode.KEY_IN_USE)
