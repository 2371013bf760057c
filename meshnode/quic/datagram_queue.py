"""DATAGRAM frames of a connection that wait to be sent (RFC 9221). Sans-IO."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from meshnode.base.limits import MAX_DATAGRAM_PAYLOAD, MAX_DATAGRAMS_UNSENT


class DatagramQueue:
    """What an engine has to send in DATAGRAM frames: before what streams have waiting, and never again.

    Args:
        waiting: The payloads, which the engine takes from the left as far as its congestion window allows; a deque
            is made for the first one where there is none.
        limit: Returns the largest frame that the peer takes; None or 0 when it takes none, or is not known yet.

    Attributes:
        has_flows: Whether flows are open, so that what comes must be handed on though streams are not read.
    """

    __slots__ = ("_limit", "has_flows", "waiting")

    waiting: deque[bytes] | tuple[()]

    def __init__(self, waiting: deque[bytes] | tuple[()], limit: Callable[[], int | None]) -> None:
        self.waiting = waiting
        self.has_flows = False
        self._limit = limit

    @property
    def supported(self) -> bool:
        """True when the peer takes frames of ``MAX_DATAGRAM_PAYLOAD`` bytes: a frame that it does not take ends it."""
        return (self._limit() or 0) > MAX_DATAGRAM_PAYLOAD

    def send(self, data: bytes) -> bool:
        """Queue a payload; False, and it is dropped, when ``MAX_DATAGRAMS_UNSENT`` wait.

        So it is when the payload is longer than ``MAX_DATAGRAM_PAYLOAD``: one that no packet has room for would block
        the others for ever, or end the connection.
        """
        if len(data) > MAX_DATAGRAM_PAYLOAD or len(self.waiting) >= MAX_DATAGRAMS_UNSENT or not self.supported:
            return False
        if isinstance(self.waiting, tuple):
            self.waiting = deque()
        self.waiting.append(data)
        return True
