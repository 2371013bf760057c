"""Requests of programs that use this node as theirs (``meshnode.attach``), beside those of the commands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import field
from typing import TYPE_CHECKING

from meshnode.daemon.request import Json, Request, request

if TYPE_CHECKING:
    from meshnode.daemon.carry import Carried
    from meshnode.daemon.carry_flow import CarriedFlow
    from meshnode.daemon.context import Daemon


@request("identify")
class Identify(Request):
    """What a node's name or the beginning of its id means."""

    peer: str

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield its ``id``.

        Raises InvalidId, NotFound, NameChanged, NameDisputed.
        """
        yield {"id": str(await daemon.identify(self.peer))}


@request("find")
class Find(Request):
    """The instances of a service on other nodes."""

    service: str

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield each, best first: ``node``, ``offer``, ``expires``, ``state``, ``rtt``.

        Raises ConfigError.
        """
        for one in await daemon.node.find(self.service):
            offer, known = one.offer, {"expires": one.expires, "state": one.state, "rtt": one.rtt}
            told = {"restricted": offer.restricted, "healthy": offer.healthy, "load": offer.load}
            yield {"node": str(one.node), "offer": told | {"meta": dict(offer.meta)}, **known}


@request("echo")
class Echo(Request):
    """One echo, as ``Node.ping``."""

    peer: str
    timeout: float

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield ``rtt`` in seconds, ``path``, and ``endpoint``, where that is a UDP address.

        Raises as ``Node.ping``.
        """
        from meshnode.base.address import Addr

        found = await daemon.node.ping(await daemon.identify(self.peer), self.timeout)
        endpoint = str(found.endpoint) if isinstance(found.endpoint, Addr) else None
        yield {"rtt": found.rtt, "path": found.path, "endpoint": endpoint}


@request("record")
class Record(Request):
    """The signed record of a node, as it was signed."""

    id: str

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield ``encoded`` (base64), ``source`` and ``ms``.

        Raises NotFound.
        """
        import base64

        found = await daemon.node.resolve(self.id)
        encoded = base64.b64encode(found.record.encoded).decode()
        yield {"encoded": encoded, "source": found.source, "ms": found.ms}


@request("events", endless=True)
class Events(Request):
    """What happens to the node, until the client goes away."""

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield one object an event: ``kind``, ``peer``, ``detail`` and ``service``; first an empty one: it listens."""
        import asyncio
        from contextlib import aclosing

        async with aclosing(daemon.node.events()) as events:
            following = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            try:
                yield {}
                while True:
                    event = await following
                    following = asyncio.ensure_future(anext(events))
                    yield {
                        "kind": event.kind.value,
                        "peer": str(event.peer),
                        "detail": event.detail,
                        "service": event.service,
                    }
            except StopAsyncIteration:
                return
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)


@request("serve", endless=True)
class Serve(Request):
    """A service whose streams, or flows of datagrams, the client takes as long as it is there."""

    name: str
    allow: tuple[str, ...] = ()
    announce: bool | None = None
    meta: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    datagrams: bool = False

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield that it is served, then ``stream`` and ``peer`` for each stream, which ``take`` gives.

        Raises ConfigError, InvalidId.
        """
        import asyncio

        from meshnode.daemon.carry import Carried
        from meshnode.daemon.carry_flow import CarriedFlow
        from meshnode.identity.node_id import NodeId
        from meshnode.sdk.datagrams import Datagrams
        from meshnode.sdk.service import LIMIT
        from meshnode.sdk.streams import MeshReader, MeshWriter

        limit = LIMIT if self.limit is None else self.limit
        words: dict[str, None] = {}
        came: asyncio.Queue[tuple[str, NodeId]] = asyncio.Queue()

        async def wait(stream: Carried | CarriedFlow, peer: NodeId) -> None:
            if not service.is_served:
                return
            word = daemon.waiting.add(stream)
            words[word] = None
            came.put_nowait((word, peer))  # at most ``limit``, each of which waits here
            try:
                await daemon.waiting.until_over(word)
            finally:
                del words[word]

        async def handle(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
            await wait(Carried(reader, writer, asyncio.Event()), peer)

        async def handle_flow(flow: Datagrams, peer: NodeId) -> None:
            await wait(CarriedFlow(flow, asyncio.Event()), peer)

        meta = self.meta or None
        if self.datagrams:
            service = daemon.node.serve_datagrams(
                self.name, handle_flow, self.allow, accept=False, announce=self.announce, meta=meta, limit=limit
            )
        else:
            service = daemon.node.serve(
                self.name, handle, self.allow, accept=False, announce=self.announce, meta=meta, limit=limit
            )
        try:
            yield {"serving": self.name}
            while True:
                word, peer = await came.get()
                yield {"stream": word, "peer": str(peer)}
        finally:
            service.close()
            for word in list(words):
                daemon.waiting.give_up(word)


@request("take", carries=True)
class Take(Request):
    """A stream or a flow that came for a service of the client."""

    stream: str
    peer: str
    service: str

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json | Carried | CarriedFlow]:
        """Yield ``peer`` and ``service``, then the stream or the flow.

        Raises NotFound.
        """
        from meshnode.daemon.carry import handed_over

        stream = daemon.waiting.take(self.stream)
        with handed_over(stream):
            yield {"peer": self.peer, "service": self.service}
        yield stream
