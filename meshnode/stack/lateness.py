"""Time in which this process did not run: what waits for a peer is given it again, a handshake or a name's search.

On a busy machine a node comes to its timers late, and to the peer's packets too: they wait to be read. So
``HANDSHAKE_TIMEOUT_S`` is of time in which answers could have been read. A node that is kept late for ever, as by a
flood, gives at most ``HANDSHAKE_LATE_S`` more, so that half-open connections still end.
"""

from __future__ import annotations

from meshnode.base.limits import HANDSHAKE_LATE_S
from meshnode.base.timers import NEVER
from meshnode.paths.liveness import TIMER_SLACK_S
from meshnode.quic.connection import State
from meshnode.stack.context import Context


class Lateness:
    """Looks at each tick of the stack, before its timers, how late that is.

    A deadline that is past when it is set makes no tick late: it was awaited since then (``Context.awaited``).
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def look(self, now: float) -> None:
        """Add up how late ticks are, and excuse handshakes by as much, as far as they had begun."""
        due, self._context.awaited = self._context.awaited, NEVER
        if now - due <= TIMER_SLACK_S:
            self._context.late_by = 0.0
            return
        self._context.late_by = now - due
        self._context.late_s += now - due
        for connection in self._context.peers.session_of:
            if connection.state is State.HANDSHAKE:
                late = connection.handshake.late + now - max(due, connection.started)
                connection.handshake.late = min(late, HANDSHAKE_LATE_S)
