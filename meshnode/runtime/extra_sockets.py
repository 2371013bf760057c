"""Extra UDP sockets beside the node's own: many for seconds while a port is searched, a few that then carry a path."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

from meshnode.base.address import Addr
from meshnode.base.metrics import Metrics, describe
from meshnode.base.path import Path, ViaSocket
from meshnode.errors import MeshError
from meshnode.runtime.udp import OnBatch, UdpSocket

if TYPE_CHECKING:
    from meshnode.nat.translation import Translation

REFUSED = describe("sides_refused", "extra sockets that the system refused (too many open files, say)")


class ExtraSockets:
    """All extra sockets of a node, by number."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_batch: OnBatch, metrics: Metrics) -> None:
        self._loop = loop
        self._on_batch = on_batch
        self._metrics = metrics
        self._buffer = bytearray(65_536)
        self.translation: Translation | None = None  # of those that are opened from now on
        self.refused: Collection[Path] = ()
        self._sockets: dict[int, UdpSocket] = {}
        self._count = 0

    def open(self, count: int, like: Addr) -> list[int]:
        """Open ``count`` sockets on the host of ``like``, each at a port of the kernel's choice.

        Returns their numbers, fewer than ``count`` when the system refuses one (counted as ``sides_refused``). A number
        is never used twice by one node.
        """
        opened = []
        for _ in range(count):
            self._count += 1
            gone = partial(self.close_one, self._count)
            made = UdpSocket(
                self._loop, self._on_batch, self._metrics, side=self._count, buffer=self._buffer, on_end=gone
            )
            made.refused = self.refused
            made.translate(self.translation)
            try:
                made.bind(Addr(like.host, 0))
            except (OSError, MeshError):
                self._metrics.count(REFUSED)
                break
            self._sockets[self._count] = made
            opened.append(self._count)
        return opened

    def send(self, path: ViaSocket, datagrams: list[bytes]) -> bool:
        """Send by the socket that the path names; False when it is closed."""
        found = self._sockets.get(path.socket)
        return found is not None and found.send(path.addr, datagrams)

    def close_one(self, side: int) -> None:
        """Close one."""
        found = self._sockets.pop(side, None)
        if found is not None:
            found.close()

    def close(self) -> None:
        """Close all."""
        for side in list(self._sockets):
            self.close_one(side)
