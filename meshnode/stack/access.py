"""Ends what peers may do no longer: connections and streams are looked at again when the guard's answers change.

Admission and the other doors ask the guard when something begins; this component asks for all that runs, and so do the
doors in ``Context.access_changed``.
"""

from __future__ import annotations

from meshnode.base.metrics import describe
from meshnode.errors import PolicyDenied
from meshnode.quic.connection import Connection
from meshnode.quic.hello import RULE, CloseCode
from meshnode.quic.preface import StreamStatus
from meshnode.stack.component import Component
from meshnode.stack.context import Context
from meshnode.trust.policy import Act

LOOK_AGAIN_S = 1.0  # between two looks for what nodes say of themselves: each is at all connections, streams and claims
CUT_CONNECTIONS = describe("cut_connections", "connections ended: their peer may be connected no longer")
CUT_STREAMS = describe("cut_streams", "streams ended: their peer may use the service no longer")


class Access(Component):
    """Ends what is no longer allowed, within the turn of the loop in which a policy changes."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._timer = context.timers.timer(self._look)
        self._looked = float("-inf")
        context.guard.on_change.append(self._on_change)
        context.guard.on_service = self._on_change  # streams of a service that was there before, for others too
        context.guard.on_reconsider = self._on_reconsider

    def _on_change(self) -> None:
        self._timer.set(self._context.clock.monotonic())
        self._context.events.on_dirty()  # the timer may be the earliest now

    def _on_reconsider(self) -> None:
        if not self._timer.live:
            self._timer.set(max(self._context.clock.monotonic(), self._looked + LOOK_AGAIN_S))
            self._context.events.on_dirty()

    def _look(self, now: float) -> None:
        self._looked = now
        self._cut(now)
        for changed in self._context.access_changed:
            changed(now)

    def _cut(self, now: float) -> None:
        """Close connections, and reset streams that peers opened, where the guard allows them no longer.

        A connection that this node dialled to a configured seed stays, as when it is dialled.
        """
        context = self._context
        for session in list(context.peers.sessions.values()):
            connection = session.connection
            if connection is None:
                continue
            decision = context.guard.ask(Act.CONNECT, session.peer)
            if decision.allowed or (connection.dialler and session.peer in context.records.hints):
                self._cut_streams(connection)
                continue
            context.metrics.count(CUT_CONNECTIONS)
            context.events.on_cut(session.peer, Act.CONNECT, "", decision)
            connection.close(CloseCode.POLICY_DENIED, f"{RULE}{decision.told}" if decision.told else "not allowed here")

    def _cut_streams(self, connection: Connection) -> None:
        for stream in connection.streams.accepted():
            service = stream.service
            if stream.background:  # of the mesh itself
                continue
            decision = self._context.guard.ask(Act.SERVICE, connection.peer, service)
            if not decision.allowed:
                self._context.metrics.count(CUT_STREAMS)
                self._context.events.on_cut(connection.peer, Act.SERVICE, service, decision)
                why = f"{connection.peer.short} may use {service} no longer: {decision.why}"
                stream.reset(int(StreamStatus.DENIED), PolicyDenied(why, rule=decision.rule or ""))
