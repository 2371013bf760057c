"""Requests about the node and its peers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from meshnode.daemon.request import Json, Request, request
from meshnode.errors import MeshError, NotFound

if TYPE_CHECKING:
    from meshnode.daemon.context import Daemon

PING_GAP_S = 1.0


@request("status")
class Status(Request):
    """The node's status, and its services."""

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield one object."""
        status = daemon.node.status()
        status["exposes"] = [
            {"name": e.name, "target": e.target, "allow": list(e.allow)} for e in daemon.book.exposes.values()
        ]
        status["forwards"] = [{"listen": f.listen, "to": f.to} for f in daemon.book.forwards.values()]
        yield status


@request("peers")
class Peers(Request):
    """The live peers."""

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield one object a peer."""
        for peer in daemon.node.peers():
            yield peer


@request("peer")
class Peer(Request):
    """One live peer, with every address that it may be at."""

    id: str

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield one object. Raises NotFound when there is no connection."""
        from meshnode.daemon.diagnose import describe_peer

        peer = await daemon.identify(self.id)
        found = describe_peer(daemon.node, peer)
        if not found["connected"]:
            raise NotFound(f"there is no connection to {peer.short}", hint=f"why: meshnode doctor {peer}")
        yield found


@request("doctor")
class Doctor(Request):
    """What this network is and, with an id, why that peer is reached by its present path."""

    id: str | None = None

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield what is being looked at, then the snapshot."""
        from meshnode.daemon.diagnose import diagnose  # 0.4 MB, for a question that is seldom asked

        peer = await daemon.identify(self.id) if self.id is not None else None
        async for result in diagnose(daemon.node, peer):
            yield result


@request("resolve")
class Resolve(Request):
    """The verified record of a node, its source and the time it took."""

    id: str

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield one object."""
        found = await daemon.node.resolve(await daemon.identify(self.id))
        yield {"record": found.record.to_json(), "source": found.source, "ms": round(found.ms, 3)}


@request("ping")
class Ping(Request):
    """Echoes, ``interval`` seconds apart."""

    id: str
    count: int
    interval: float = PING_GAP_S

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield one object an echo. Once the peer has answered, whatever goes wrong is a lost echo."""
        import asyncio

        from meshnode.base.path import ViaTunnel
        from meshnode.daemon.diagnose import last_change
        from meshnode.stack.probe import Pinged

        outcome = Pinged(None, "none")
        peer = await daemon.identify(self.id)
        for seq in range(self.count):
            if seq:
                await asyncio.sleep(self.interval)
            try:
                outcome = await daemon.node.ping(peer)
            except MeshError:
                if not seq:
                    raise
                outcome = Pinged(None, outcome.path)
            endpoint = outcome.endpoint
            yield {
                "seq": seq,
                "rtt_ms": round(outcome.rtt * 1000, 3) if outcome.rtt is not None else None,
                "path": outcome.path,
                "endpoint": str(endpoint) if endpoint is not None else None,
                "tunnel": isinstance(endpoint, ViaTunnel),
                "change": last_change(daemon.node, peer),
            }


@request("rebind")
class Rebind(Request):
    """Move the node's socket."""

    address: str | None = None

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield the address that is bound now."""
        yield {"listen": str(await daemon.node.rebind(self.address))}
