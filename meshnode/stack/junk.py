"""Sources that send junk: those whose datagrams the sockets drop unread for a second. Sans-IO.

A datagram by a stranger costs 3 to 5 us here until its seal, knock or connection id has failed, and one that is dropped
for its source alone less than half of that. A source is refused when it has sent more junk than a peer's old
connections make (after this node's restart they are a window of packets), or any while its network sends much. So what
is refused has sent junk within the second. Junk "from" an address may be spoofed, so one that answered this node is not
refused for what its network sends, and one that a connection uses never; ids are free, so an answer alone is no pardon.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import lru_cache
from typing import TypeVar

from meshnode.base.bounded import BoundedDict
from meshnode.base.fair_rate import Rate
from meshnode.base.fair_table import network_of
from meshnode.base.limits import (
    JUNK_PER_NETWORK_BURST,
    JUNK_PER_NETWORK_PER_S,
    JUNK_PER_SOURCE_BURST,
    JUNK_PER_SOURCE_PER_S,
    MAX_JUNK_SOURCES,
)
from meshnode.base.path import Path, ViaTunnel, udp_address
from meshnode.base.timers import Timers
from meshnode.base.token_bucket import TokenBucket

REFUSED_S = 1.0  # a source that has been wronged waits no longer than a first retransmission (RFC 9002 section 6.2)

ONE_SOURCE = Rate(JUNK_PER_SOURCE_PER_S, JUNK_PER_SOURCE_BURST)
ONE_NETWORK = Rate(JUNK_PER_NETWORK_PER_S, JUNK_PER_NETWORK_BURST)
K = TypeVar("K")

_network = lru_cache(maxsize=4096)(network_of)


class Junk:
    """Counts junk by source and network; ``refused`` are the sources to be dropped unread.

    ``tunnels`` are those of members, which are to be closed.
    """

    def __init__(self, proven: Container[Path], in_use: Callable[[], Container[Path | None]], timers: Timers) -> None:
        """Refuse none yet.

        Args:
            proven: The addresses that answered this node.
            in_use: Returns the paths of live connections; it is asked once a second of a flood.
            timers: Of the stack.
        """
        self.refused: BoundedDict[Path, None] = BoundedDict(MAX_JUNK_SOURCES)
        self.tunnels: BoundedDict[Path, None] = BoundedDict(MAX_JUNK_SOURCES)
        self._proven = proven
        self._ask_in_use = in_use
        self._in_use: Container[Path | None] = ()
        self._in_use_until = float("-inf")
        self._sources: BoundedDict[Path, TokenBucket] = BoundedDict(MAX_JUNK_SOURCES)
        self._networks: BoundedDict[bytes, TokenBucket] = BoundedDict(MAX_JUNK_SOURCES)
        self._timer = timers.timer(self._forgive)

    def note(self, source: Path, now: float, *, excess: bool = False) -> None:
        """Take note of a datagram from ``source`` that proved nothing.

        ``excess`` means that it was not tried because there are too many of its kind. Then only a source that goes on
        is refused: others of its network may be newcomers that a flood keeps waiting.
        """
        addr = udp_address(source)
        if addr is None:
            self._note_tunnel(source, now)
            return
        if _take(self._sources, source, ONE_SOURCE, now):
            spared = excess or addr in self._proven
            if spared or _take(self._networks, _network(addr.host), ONE_NETWORK, now):
                return
        if self.is_in_use(source, now):
            return
        self.refused[source] = None
        if not self._timer.live:
            self._timer.set(now + REFUSED_S)

    def _note_tunnel(self, source: Path, now: float) -> None:
        """Count junk of a WebSocket that a member opened, which can not be spoofed: all of its host are one source."""
        if not isinstance(source, ViaTunnel) or source.peer:
            return
        if not _take(self._sources, ViaTunnel("", source.host, 0), ONE_SOURCE, now):
            self.tunnels[source] = None
            if not self._timer.live:
                self._timer.set(now + REFUSED_S)

    def is_in_use(self, source: Path, now: float) -> bool:
        """Return whether a live connection used this path within the last second."""
        if now >= self._in_use_until:
            self._in_use, self._in_use_until = self._ask_in_use(), now + REFUSED_S
        return source in self._in_use

    def _forgive(self, now: float) -> None:
        self.refused.clear()
        self.tunnels.clear()


def _take(buckets: BoundedDict[K, TokenBucket], key: K, rate: Rate, now: float) -> bool:
    bucket = buckets.get(key)
    if bucket is None:
        bucket = buckets[key] = rate.bucket(now)
    return bucket.take(1, now)
