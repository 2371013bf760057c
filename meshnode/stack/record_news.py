"""Newer records of live peers, told to the components that stand on them, at each peer's pace."""

from __future__ import annotations

from collections.abc import Callable

from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from meshnode.stack.component import tell
from meshnode.stack.context import Context
from meshnode.stack.record_pace import RecordPace


class RecordNews:
    """Tells each component of the newest record of a peer that has a session.

    ``cached`` returns that record; ``after`` is called with it when the components have it.
    """

    def __init__(
        self,
        context: Context,
        cached: Callable[[NodeId], EndpointRecord | None],
        after: Callable[[EndpointRecord, float], None],
    ) -> None:
        self.pace = RecordPace(context.timers, context.metrics)
        self._context = context
        self._cached = cached
        self._after = after

    def tell_soon(self, peer: NodeId, now: float) -> None:
        """Tell of a peer's record at once, or when its pace allows it.

        Nothing happens without a session.
        """
        if peer in self._context.peers.sessions:
            self.pace.run(peer, lambda then: self.tell(peer, then), now)

    def tell(self, peer: NodeId, now: float) -> None:
        """Tell of a peer's record now, if it still has a session."""
        session, record = self._context.peers.sessions.get(peer), self._cached(peer)
        if session is None or record is None:
            return
        session.paths.peer_record(record, now)
        tell(self._context.hooks.newer_record, self._context.timers.on_error, session, record, now)
        self._context.probes.settle(session, now)
        self._after(record, now)
