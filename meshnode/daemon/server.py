"""The process behind ``meshnode up``: a node, its services and the control socket (0600, one per home)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from meshnode.config import Config
from meshnode.daemon.diagnose import describe_peer, last_change
from meshnode.daemon.paths import is_private, socket_path
from meshnode.daemon.shared import Commons, is_endless
from meshnode.errors import ConfigError, MeshError, NotFound
from meshnode.sdk.node import Node
from meshnode.services.registry import ServiceBook
from meshnode.stack.probe import Pinged

log = logging.getLogger("meshnode.daemon")

MAX_REQUEST = 1 << 16
PING_GAP_S = 1.0


class ControlServer:
    """Answers one request a connection: ``{"method", "arguments"}`` in, result lines and an end out."""

    def __init__(self, node: Node, book: ServiceBook, path: Path) -> None:
        self._node = node
        self._book = book
        self._path = path
        self._commons = Commons(node)
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.Task[None], None] = {}

    async def start(self) -> None:
        """Listen. This process holds the home's lock, so a socket that is there already was left by a dead one."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_private(self._path):
            raise ConfigError(
                f"{self._path.parent} is not yours alone", hint="use a shorter --home, or set XDG_RUNTIME_DIR"
            )
        self._path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._client, str(self._path), limit=MAX_REQUEST)
        finally:
            os.umask(mask)

    async def close(self) -> None:
        """Stop listening and remove the socket."""
        if self._server is not None:
            self._server.close()
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients[task] = None
        try:
            line = await reader.readline()
            if is_endless(line):
                await self._answer_while_heard(line, reader, writer)
            else:
                await self._answer(line, writer)
        except (ConnectionError, ValueError, asyncio.CancelledError) as error:
            log.debug("a control client went away: %r", error)
        finally:
            self._clients.pop(task, None)
            writer.close()

    async def _answer_while_heard(
        self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """An answer without an end: over when the client goes away, which says no more until then."""
        answering = asyncio.ensure_future(self._answer(line, writer))
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(line)
            method, arguments = str(request["method"]), dict(request["arguments"])
            handler = getattr(self, f"do_{method}", None) or getattr(self._commons, f"do_{method}", None)
            if handler is None:
                raise MeshError(f"the running node knows no {method!r}", hint="is it an older version? restart it")
            async for result in handler(**arguments):
                writer.write(json.dumps({"result": result}).encode() + b"\n")
                await writer.drain()
            answer: dict[str, Any] = {"end": True}
        except MeshError as error:
            answer = error.to_json()
        except (TypeError, KeyError, ValueError) as error:
            answer = MeshError(f"bad request: {error}", hint="are both ends of one version?").to_json()
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()

    async def do_status(self) -> AsyncIterator[dict[str, Any]]:
        """The node's status, and its services."""
        status = self._node.status()
        status["exposes"] = [
            {"name": e.name, "target": e.target, "allow": list(e.allow)} for e in self._book.exposes.values()
        ]
        status["forwards"] = [{"listen": f.listen, "to": f.to} for f in self._book.forwards.values()]
        yield status

    async def do_peers(self) -> AsyncIterator[dict[str, Any]]:
        """The live peers, one by one."""
        for peer in self._node.peers():
            yield peer

    async def do_peer(self, id: str) -> AsyncIterator[dict[str, Any]]:
        """One live peer, with every address that it may be at. Raises NotFound when there is no connection."""
        peer = await self._node.identify(id)
        found = describe_peer(self._node, peer)
        if not found["connected"]:
            raise NotFound(f"there is no connection to {peer.short}", hint=f"why: meshnode doctor {peer}")
        yield found

    async def do_doctor(self, id: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """Return what is known of this network and, with an id, why that peer is reached by its present path."""
        from meshnode.daemon.diagnose import diagnose  # 0.4 MB, for a question that is seldom asked

        peer = await self._node.identify(id) if id is not None else None
        async for result in diagnose(self._node, peer):
            yield result

    async def do_resolve(self, id: str) -> AsyncIterator[dict[str, Any]]:
        """The verified record, its source and the time it took."""
        found = await self._node.resolve(id)
        yield {"record": found.record.to_json(), "source": found.source, "ms": round(found.ms, 3)}

    async def do_ping(self, id: str, count: int, interval: float = PING_GAP_S) -> AsyncIterator[dict[str, Any]]:
        """Echoes, one result each. Once the peer has answered, whatever goes wrong is a lost echo."""
        outcome = Pinged(None, "none")
        peer = await self._node.identify(id)
        for seq in range(count):
            if seq:
                await asyncio.sleep(interval)
            try:
                outcome = await self._node.ping(peer)
            except MeshError:
                if not seq:
                    raise
                outcome = Pinged(None, outcome.path)
            rtt = round(outcome.rtt * 1000, 3) if outcome.rtt is not None else None
            endpoint = outcome.endpoint
            yield {
                "seq": seq,
                "rtt_ms": rtt,
                "path": outcome.path,
                "endpoint": str(endpoint) if endpoint is not None else None,
                "tunnel": endpoint is not None and endpoint.is_tunnel,
                "change": last_change(self._node, peer),
            }

    async def do_expose(
        self,
        name: str,
        target: str,
        allow: list[str],
        announce: bool | None = None,
        meta: dict[str, str] | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Serve a TCP target."""
        yield self._book.expose(name, target, tuple(allow), announce, meta)

    async def do_unexpose(self, name: str) -> AsyncIterator[dict[str, Any]]:
        """Withdraw a service."""
        yield self._book.unexpose(name)

    async def do_forward(self, listen: str, to: str, sticky: bool = False) -> AsyncIterator[dict[str, Any]]:
        """Listen for a service of one node, or of any."""
        yield await self._book.forward(listen, to, sticky)

    async def do_unforward(self, listen: str) -> AsyncIterator[dict[str, Any]]:
        """Stop a forward."""
        yield await self._book.unforward(listen)

    async def do_rebind(self, address: str | None) -> AsyncIterator[dict[str, Any]]:
        """Move the socket."""
        yield {"listen": str(await self._node.rebind(address))}


async def run(config: Config, ready: Callable[[Node], None]) -> None:
    """Run a node until SIGINT or SIGTERM; ``ready`` is called once others may talk to it. Raises MeshError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with Node(config) as node:
        book = ServiceBook(node)
        control = ControlServer(node, book, socket_path(config.home_path))
        await control.start()
        try:
            await book.restore()
            for number in (signal.SIGINT, signal.SIGTERM):
                with suppress(NotImplementedError):
                    loop.add_signal_handler(number, stop.set)
            ready(node)
            await stop.wait()
        finally:
            await control.close()
            await book.close()
