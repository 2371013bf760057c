"""Local listeners whose connections go to a service of the mesh."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from meshnode.base.address import Addr
from meshnode.base.fair_table import source_shares
from meshnode.base.log_lines import Logger, rated_logger
from meshnode.base.refusals import listen_refusal
from meshnode.errors import AddressInUse, MeshError
from meshnode.identity.node_id import NodeId
from meshnode.runtime.acceptor import Acceptor, listen_at
from meshnode.runtime.host_names import look_up
from meshnode.sdk.node import Node, runtime_of
from meshnode.sdk.places import Places
from meshnode.services.ends import End, bound_end, parse_listen
from meshnode.services.splice import abort, end_by_reset, splice
from meshnode.services.unix import UnixListener
from meshnode.services.usage import Rates, Tolls

log = rated_logger("meshnode.services")

LISTEN_RETRY_S = 1.0  # between attempts to listen at an address that is not there yet, or taken
NAMES_S = 2.0  # that a node's start waits for names at which it shall listen; the others are waited for beside it
NOT_YET = "its name is being looked up"
MAX_CLIENTS = 1024  # connections one forward carries at once, shared by source network and host


def is_loopback(host: str) -> bool:
    """Return True for an address that only this host reaches."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def _log_of(node: Node) -> Logger:
    """Return the log of a node: its lines have the node's rate."""
    return runtime_of(node).journal.rate.of_node(log)


async def attempt(start: Callable[[], Awaitable[object]], name: str, known: str) -> str:
    """Start a listener, and return why it cannot be now; "" when it listens. A reason that is not ``known`` is logged.

    What no listener is known to raise is a fault, and no end of the attempts.
    """
    try:
        await start()
    except MeshError as error:
        why = error.message
        if why != known:
            log.warning("%s waits for its address: %s", name, why)
    except Exception as error:
        why = str(error) or repr(error)
        if why != known:
            log.error("%s could not be started, and is tried again", name, exc_info=error)
    else:
        return ""
    return why


class Forward:
    """A local listener whose connections go to a service of one node, or, without ``peer``, of ``trusted`` ones."""

    def __init__(
        self,
        node: Node,
        listen: str,
        peer: NodeId | str | None,
        service: str,
        sticky: bool = False,
        trusted: tuple[str, ...] = (),
    ) -> None:
        self.listen, self.peer, self.service, self.sticky, self.trusted = listen, peer, service, sticky, trusted
        self._node = node
        self.error = ""  # why it does not listen now
        self.failed: tuple[MeshError, float] | None = None  # the last connection's error, and its loop time
        self._acceptor: Acceptor | None = None
        self._unix: UnixListener | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._places = Places(MAX_CLIENTS)
        runtime = runtime_of(node)
        self.tolls = Tolls(Rates(), runtime.metrics, runtime.clock.monotonic)

    @property
    def connections(self) -> int:
        """How many connections it has now, those that wait for a place among them."""
        return len(self._tasks)

    @property
    def to(self) -> str:
        """The service that it goes to, as it was written."""
        return self.service if self.peer is None else f"{self.peer}/{self.service}"

    async def start(self) -> str:
        """Listen, and return where, as ``HOST:PORT`` or ``unix:PATH``.

        Port 0 is replaced by the kernel's choice. Raises AddressInUse (also for an address that this host does not
        have) and ConfigError.
        """
        end = parse_listen(self.listen)
        listeners = self._listen_unix(end.path) if end.path else await _listen_tcp(end)
        accepted = runtime_of(self._node).sockets.accepted
        self._acceptor = Acceptor(asyncio.get_running_loop(), accepted, listeners, self._on_connection)
        if end.path:
            return str(end)
        return self._told(end, listeners)

    def _told(self, end: End, listeners: Sequence[socket.socket]) -> str:
        """Return where it listens, and say so when other hosts reach that."""
        bound = str(bound_end(end, listeners[0]))
        if not all(is_loopback(sock.getsockname()[0]) for sock in listeners):
            log.warning("forward %s opens %s to every host that reaches this one", bound, self.to)
        return bound

    def _listen_unix(self, path: str) -> list[socket.socket]:
        self._unix = UnixListener(path, MAX_CLIENTS)
        return [self._unix.socket]

    async def restore(self) -> None:
        """Listen, or as soon as the address can be had: why it cannot yet is its ``error``.

        A name that is not found within ``NAMES_S`` is waited for no longer, as any other address.
        """
        tried = asyncio.Event()
        self.error = NOT_YET
        self._waiting = asyncio.create_task(self._listen_later(tried))
        with suppress(TimeoutError):
            async with asyncio.timeout(NAMES_S):
                await tried.wait()

    async def _listen_later(self, tried: asyncio.Event) -> None:
        self.error = await self._attempt("")
        tried.set()
        if not self.error:
            return
        while self.error:
            await asyncio.sleep(LISTEN_RETRY_S)
            self.error = await self._attempt(self.error)
        log.warning("forward %s listens now", self.listen)

    async def _attempt(self, known: str) -> str:
        return await attempt(self._listen_now, f"forward {self.listen}", known)

    async def _listen_now(self) -> None:
        self.listen = await self.start()

    def _on_connection(self, sock: socket.socket, source: Addr) -> None:
        if len(self._tasks) >= 2 * MAX_CLIENTS:
            abort(sock)
            return
        task = asyncio.get_running_loop().create_task(self._client(sock, source))
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._on_end(done, sock))

    def _on_end(self, task: asyncio.Task[None], sock: socket.socket) -> None:
        self._tasks.pop(task, None)
        if task.cancelled():
            sock.close()  # before it began
        elif (error := task.exception()) is not None:
            sock.close()
            _log_of(self._node).error("forward %s: a connection failed", self.listen, exc_info=error)

    async def _client(self, sock: socket.socket, source: Addr) -> None:
        end_by_reset(sock, True)
        try:
            try:
                if await self._places.take(*source_shares(source.host)):
                    await self._carry(sock)
                else:
                    _log_of(self._node).warning(
                        "forward %s to %s: more than %d connections at once", self.listen, self.to, MAX_CLIENTS
                    )
                    abort(sock)
            finally:
                self._places.leave()
        except MeshError as error:
            _log_of(self._node).warning(
                "forward %s to %s: %s (%s) %s", self.listen, self.to, error, error.code, error.hint
            )
            self.failed = error, asyncio.get_running_loop().time()
            abort(sock)
        except asyncio.CancelledError:
            abort(sock)  # the forward is being closed, or another network has fewer of its places

    async def _carry(self, sock: socket.socket) -> None:
        """Open a stream for a client, and carry its bytes until both have ended. Raises MeshError."""
        if self.peer is None:
            mesh = await self._node.open_any(self.service, trusted=self.trusted or None, sticky=self.sticky)
        else:
            mesh = await self._node.open(self.peer, self.service)
        self.failed = None
        toll = self.tolls.of()
        toll.begin()
        await splice(sock, mesh, toll)

    async def close(self) -> None:
        """Stop listening and drop its connections.

        They are aborted, not closed: the programs at both ends see a reset.
        """
        if self._waiting is not None:
            self._waiting.cancel()
        if self._acceptor is not None:
            self._acceptor.close()
        if self._unix is not None:
            self._unix.remove()
        for task in list(self._tasks):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)


async def _listen_tcp(end: End) -> list[socket.socket]:
    try:
        return listen_at(await look_up(end.host), end.port, MAX_CLIENTS)
    except OSError as error:
        reason, hint = listen_refusal(error, end.port)
        raise AddressInUse(f"cannot listen on {end}: {reason}", hint=hint) from error
