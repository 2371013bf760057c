"""Seeds as a source: their names are resolved now, when this host moves, and with growing pauses while they are silent.

A seed may come back elsewhere behind its name, and one that has lost its home can tell no node of that. It gives no
record but unsigned addresses; the record comes with the first connection to it. A name that does not resolve delays no
other seed. A seed that is not reached is told in the log once, and again when it is.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from meshnode.base.address import Addr, canonical_host
from meshnode.base.metrics import Metrics
from meshnode.base.path import ViaTunnel
from meshnode.config import Seed
from meshnode.discovery.source import RecordSource, Sink
from meshnode.identity.node_id import NodeId
from meshnode.runtime.host_names import look_up
from meshnode.runtime.tasks import Spawn

RETRY_S = (1.0, 2.0, 5.0, 15.0, 60.0)  # between lookups of a name; the last only where another contact answers
WARN_AFTER_S = 5.0  # a handshake's time
LOOK_EVERY_S = 1.0
REFUSED_S = 0.5  # an ICMP error is here by then
HTTPS_PORT = 443
log = logging.getLogger("meshnode.node")


class SeedSource(RecordSource):
    """The configured seeds.

    ``spawn`` runs a coroutine until the node closes; ``is_joined`` says whether a contact answers; ``is_reached``
    whether that node does, so that its name need not be resolved.
    """

    name = "seeds"

    def __init__(
        self,
        seeds: Sequence[Seed],
        spawn: Spawn,
        is_joined: Callable[[], bool],
        is_reached: Callable[[NodeId], bool],
        metrics: Metrics,
    ) -> None:
        self._seeds = seeds
        self._spawn = spawn
        self._is_joined = is_joined
        self._is_reached = is_reached
        self._metrics = metrics
        self._errors: dict[str, str] = {}  # by host name
        self._found: dict[Seed, list[Addr]] = {}
        self._has_moved = asyncio.Event()

    def start(self, sink: Sink, now: float) -> None:
        """Resolve each name in a task of its own."""
        for seed in self._seeds:
            self._spawn(self._follow(seed, sink))
            self._spawn(self._watch(seed))

    def moved(self, now: float) -> None:
        """Resolve the names of seeds that are not reached at once: another network has another name server."""
        self._has_moved.set()
        self._has_moved = asyncio.Event()

    def status(self) -> dict[str, object]:
        """Return how many seeds are configured, and the last error of each name that could not be resolved."""
        return {"configured": len(self._seeds), "errors": dict(self._errors)}

    async def _follow(self, seed: Seed, sink: Sink) -> None:
        attempt, last = 0, len(RETRY_S) - 1
        while True:
            moved = self._has_moved  # also while a name server is waited for that is of another network by now
            if seed not in self._found or not self._is_reached(seed.id):
                await self._find(seed, sink)
            pause = last if self._is_joined() else min(attempt, last - 1)
            attempt = pause + 1
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S[pause]):
                    await moved.wait()
                attempt = 0

    async def _find(self, seed: Seed, sink: Sink) -> None:
        try:
            hosts = await look_up(seed.host)
        except OSError as error:
            self._metrics.count("seed_name_errors")
            self._errors[seed.host] = error.strerror or str(error)
            log.debug("seed %s: %s", seed.host, error)
            return
        self._errors.pop(seed.host, None)
        before = self._found.get(seed, [])
        found = self._found[seed] = [Addr(host, seed.port) for host in dict.fromkeys(map(canonical_host, hosts))]
        if self._is_joined() and set(found) == set(before):
            return  # it is tried there now and then, as all that is known
        known = [(other, addrs) for other, addrs in self._found.items() if other.id == seed.id]
        addrs = dict.fromkeys(addr for _, addrs in known for addr in addrs)
        tunnels = dict.fromkeys(
            ViaTunnel(str(seed.id), other.host, port) for other, _ in known for port in (other.port, HTTPS_PORT)
        )
        sink.seed(seed.id, [*addrs, *tunnels])

    # ---- what is told of them

    async def _watch(self, seed: Seed) -> None:
        """Tell once that a seed is not reached, and why as far as it shows; tell when it is."""
        loop = asyncio.get_running_loop()
        begun, told = loop.time(), False
        while not self._is_reached(seed.id):
            if not told and loop.time() - begun >= WARN_AFTER_S:
                told = True
                log.warning("seed %s is not reached: %s", _named(seed), await self._why(seed))
            await asyncio.sleep(LOOK_EVERY_S)
        log.info("seed %s is reached", _named(seed))

    async def _why(self, seed: Seed) -> str:
        if seed.host in self._errors:
            return f"its name does not resolve ({self._errors[seed.host]})"
        addrs = self._found.get(seed)
        if not addrs:
            return "its name does not resolve (the name server does not answer)"
        silent = [addr for addr in addrs if not await _is_refused(addr)]
        if not silent:
            return f"nothing listens at {', '.join(map(str, addrs))}"
        # a node does not answer what is not sealed for its own id and mesh: these look alike from here
        return (
            f"no answer from {', '.join(map(str, silent))}: is it down, does it have another id, "
            "is it in another mesh, is a clock wrong, or does a firewall drop UDP?"
        )


def _named(seed: Seed) -> str:
    return f"{seed.id.short} at {Addr(seed.host, seed.port)}"


async def _is_refused(addr: Addr) -> bool:
    """Return whether the host says that no program listens at an address (ICMP port unreachable)."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in addr.host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.setblocking(False)
            probe.connect((addr.host, addr.port))
            probe.send(b"\0")  # no message of this protocol: a node drops it
            async with asyncio.timeout(REFUSED_S):
                await asyncio.get_running_loop().sock_recv(probe, 1)
    except ConnectionRefusedError:
        return True
    except OSError:  # TimeoutError is one, and where no descriptor is left nothing is known
        return False
    return False
