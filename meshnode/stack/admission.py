"""Which of a peer's connections lives: arrivals whose dialler has proven its key are admitted, refused, or wait.

A node dials because it has something to say, and both may dial at once, or again after a restart. One connection is
kept for a peer; the other is told so. Two hosts that use one key are told from a restart in ``key_twins.py``.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.fair_rate import path_shares
from meshnode.base.limits import HANDSHAKE_TIMEOUT_S
from meshnode.base.metrics import describe
from meshnode.errors import ConnectionLost, NodeClosed, PeerRestarted, PolicyDenied
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection
from meshnode.quic.hello import RULE, CloseCode, Frame, Hello
from meshnode.stack.component import Component
from meshnode.stack.context import Context
from meshnode.stack.probe import Pinged
from meshnode.stack.session import Session
from meshnode.trust.decision import Decision
from meshnode.trust.policy import Act

NOT_ALLOWED = "not allowed here"
REFUSED = describe("refused_policy", "peers that policy does not admit")
ACCEPTED_FULL = describe("connections_pushed_out", "connections ended: too many of their network, and of all")
ALIVE_S = 1.0  # for an answer of the first of two processes with one key
GRANT_HINT = "ask for a ticket (`meshnode invite` where the mesh was made), and join with it"


class Admission(Component):
    """Decides about arrivals, and notes the boot ids of those that are admitted."""

    frames = (Frame.KEY_IN_USE,)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._id = context.identity.id

    def on_hello(self, connection: Connection, hello: Hello) -> None:
        """Decide about a peer that has proven its key: admit it, refuse it, or wait.

        A dial is decided at once. An arrival waits while this node's own dial, which has precedence, may live.
        """
        if connection.dialler:
            self._on_welcome(connection, hello)
            return
        session = self._context.peers.sessions.get(connection.peer)
        if session is None or self._context.links.closed:
            connection.abandon(NodeClosed("the node was closed"))
            return
        error = self._context.standings.take(connection.peer, hello.grants)
        if error is not None:
            refusal = Decision(False, None, None, error.message)
            self._context.events.on_refused(connection.peer, Act.CONNECT, "", refusal)
            connection.close(CloseCode.POLICY_DENIED, error.message)
            return
        decision = self._context.guard.ask(Act.CONNECT, connection.peer)
        if not decision.allowed:
            self._context.metrics.count(REFUSED)
            self._context.events.on_refused(connection.peer, Act.CONNECT, "", decision)
            connection.close(CloseCode.POLICY_DENIED, f"{RULE}{decision.told}" if decision.told else NOT_ALLOWED)
            return
        self._note_boot(connection.peer, hello.boot)
        if self._context.fencing.decides(session, connection, hello):
            return
        dial = session.dial
        if dial is not None and self._id < connection.peer and dial.engine.peer_certificate_key is not None:
            session.deferred = connection, hello  # this node's Hello is out and the peer may take it: only one may live
            self.ask_of(dial)  # or it has restarted since, and does not know the dial
            return
        if session.connection is None:
            self._admit(session, connection)
        else:
            self._replace(session, session.connection, connection, hello)

    def _on_welcome(self, connection: Connection, said: Hello) -> None:
        """Admit a listener, unless its grants do not hold."""
        error = self._context.standings.take(connection.peer, said.grants)
        if error is None:
            connection.admit()
        else:
            denied = PolicyDenied(f"{connection.peer.short} is not admitted here: {error.message}", hint=GRANT_HINT)
            connection.refuse(error.message, denied)

    def on_control(self, connection: Connection, fields: list[object], now: float) -> None:
        """Take a peer's word that another host has tried to connect with this node's key."""
        self._context.note_twin(self._id, now)
        self._context.fencing.outbid(now)

    def on_link(self, connection: Connection, up: bool, now: float) -> None:
        """Take the boot id of the peer's process."""
        if up and connection.peer_boot:
            self._note_boot(connection.peer, connection.peer_boot)

    def _note_boot(self, peer: NodeId, boot: bytes) -> None:
        if self._context.peers.twins.on_boot(peer, boot):
            self._context.note_twin(peer, self._context.clock.monotonic())

    def tell_of_twin(self, peer: NodeId) -> None:
        """Tell a connected peer that another process has tried to connect with its key."""
        connection = self._context.peers.connection(peer)
        if connection is not None:
            connection.send_frame(Frame.KEY_IN_USE)

    def is_alive(self, connection: Connection, answer: Callable[[bool], None]) -> None:
        """Ask a connection's peer for a sign of life, for ``ALIVE_S`` at most."""

        def answered(outcome: Pinged) -> None:
            answer(outcome.rtt is not None)

        self._context.probes.ping(connection, ALIVE_S, self._context.clock.monotonic(), answered)

    def _replace(self, session: Session, old: Connection, new: Connection, hello: Hello) -> None:
        """Put an arrival in the place of the live connection, unless that has precedence."""
        if old.peer_boot == hello.boot and old.dialler and self._id < new.peer:
            self._choose(session, old, new, hello)
            return
        restarted = old.peer_boot != hello.boot
        kind = PeerRestarted if restarted else ConnectionLost
        old.abandon(kind(f"{new.peer.short} {'has restarted' if restarted else 'has connected again'}"))
        self._admit(session, new)

    def _admit(self, session: Session, connection: Connection) -> None:
        """Admit an arrival if there is a place for it: the network with most connections loses its newest one."""
        accepted, arrival = self._context.peers.accepted, session.arrivals.get(connection)
        if arrival is not None and connection not in accepted:
            pushed_out = accepted.add(connection, *path_shares(arrival.source))
            if pushed_out is not None:
                self._context.metrics.count(ACCEPTED_FULL)
                pushed_out.close(CloseCode.NORMAL, "too many connections from that network")
            if pushed_out is connection:
                return
        connection.admit()

    def _choose(self, session: Session, old: Connection, new: Connection, hello: Hello) -> None:
        """Ask the peer which connection it has: this node's dial lives, and the peer's arrives all the same.

        It may be late, or the peer has closed the older one and its goodbye was lost.
        """
        if session.deferred is not None:
            new.close(CloseCode.DUPLICATE, "another connection lives")
            return
        session.deferred = new, hello

        def answered(outcome: Pinged) -> None:
            if outcome.rtt is not None:
                new.close(CloseCode.DUPLICATE, "another connection lives")

        self._context.probes.ping(old, HANDSHAKE_TIMEOUT_S, self._context.clock.monotonic(), answered)

    def resume(self, session: Session) -> None:
        """Decide again about an arrival that was deferred.

        It was while this node's own dial, or an older connection, might live.
        """
        deferred, session.deferred = session.deferred, None
        if deferred is not None and session.connection is None:
            self.on_hello(*deferred)

    def ask_of(self, connection: Connection) -> None:
        """Ask the peer whether it knows this connection.

        When it does not, the connection is given up.
        """
        now = self._context.clock.monotonic()
        self._context.probes.ping(connection, HANDSHAKE_TIMEOUT_S, now, lambda outcome: None)
