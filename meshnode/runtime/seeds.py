"""Seeds as a source: their names are resolved now, and again with growing pauses while no contact answers.

A seed gives no record but unsigned addresses; the record comes with the first connection to it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from meshnode.base.address import Addr, canonical_host
from meshnode.base.metrics import Metrics
from meshnode.base.path import ViaTunnel
from meshnode.config import Seed
from meshnode.discovery.source import RecordSource, Sink
from meshnode.runtime.tasks import Spawn

RETRY_S = (1.0, 2.0, 5.0, 15.0, 60.0)  # between attempts while no contact answers
HTTPS_PORT = 443
log = logging.getLogger("meshnode.node")


class SeedSource(RecordSource):
    """The configured seeds.

    ``spawn`` runs a coroutine until the node closes; ``is_joined`` says whether a contact answers, so that no name need
    be resolved.
    """

    name = "seeds"

    def __init__(self, seeds: Sequence[Seed], spawn: Spawn, is_joined: Callable[[], bool], metrics: Metrics) -> None:
        self._seeds = seeds
        self._spawn = spawn
        self._is_joined = is_joined
        self._metrics = metrics
        self._errors: dict[str, str] = {}  # by host name

    def start(self, sink: Sink, now: float) -> None:
        """Resolve the names in a task."""
        self._spawn(self._follow(sink))

    def status(self) -> dict[str, object]:
        """Return how many seeds are configured, and the last error of each name that could not be resolved."""
        return {"configured": len(self._seeds), "errors": dict(self._errors)}

    async def _follow(self, sink: Sink) -> None:
        attempt = 0
        while True:
            if self._is_joined():
                attempt = len(RETRY_S) - 1
            else:
                for seed in self._seeds:
                    await self._find(seed, sink)
            await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
            attempt += 1

    async def _find(self, seed: Seed, sink: Sink) -> None:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(seed.host, seed.port, type=2)
        except OSError as error:
            self._metrics.count("seed_name_errors")
            self._errors[seed.host] = str(error)
            log.debug("seed %s: %s", seed.host, error)
            return
        self._errors.pop(seed.host, None)
        addrs = list(dict.fromkeys(Addr(canonical_host(str(item[4][0])), seed.port) for item in found))
        tunnels = [ViaTunnel(str(seed.id), seed.host, port) for port in dict.fromkeys((seed.port, HTTPS_PORT))]
        sink.seed(seed.id, [*addrs, *tunnels])
