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
        from meshnode.daemon.describe import describe_exposes, describe_forwards

        status = daemon.node.status()
        status["exposes"] = describe_exposes(daemon.book)
        status["forwards"] = describe_forwards(daemon.book)
        status["proxies"] = daemon.proxies.describe()
        forwards = daemon.book.forwards.values()
        status["degraded"] += [f"forward {f.listen} waits: {f.error}" for f in forwards if f.error]
        status["degraded"] += [f"proxy {p['listen']} waits: {p['error']}" for p in status["proxies"] if "error" in p]
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
        """Yield one object: what ``meshnode peers`` has of the peer, and its ``candidates``.

        Asking makes no connection: raises NotFound when there is none; InvalidId and NameChanged as ``identify``.
        """
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
        from meshnode.daemon.describe import look_at_services
        from meshnode.daemon.diagnose import diagnose  # 0.4 MB, for a question that is seldom asked

        peer = await daemon.identify(self.id) if self.id is not None else None
        async for result in diagnose(daemon.node, peer):
            if "snapshot" in result and (daemon.book.exposes or daemon.book.forwards):
                yield {"progress": "asking the services"}
                result["snapshot"].update(await look_at_services(daemon))
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
        """Yield one object an echo: ``seq``, ``rtt_ms`` (null when it was lost), the path it took, the last change.

        Once the peer has answered, whatever goes wrong is a lost echo. Raises what ``Node.ping`` raises when already
        the first one cannot be sent.
        """
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
