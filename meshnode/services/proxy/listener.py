"""The proxy's listener: SOCKS5 and HTTP on one port, told apart by the first byte; each client leads to a service."""

from __future__ import annotations

import asyncio
import socket

from meshnode.base.address import Addr, canonical_host
from meshnode.base.fair_table import FairTable, source_shares
from meshnode.base.limits import MAX_PROXY_CLIENTS, MAX_PROXY_SILENT, PROXY_REQUEST_S
from meshnode.base.log_lines import Logger, rated_logger
from meshnode.base.refusals import listen_refusal
from meshnode.errors import AddressInUse, ConfigError, MeshError, StreamLimitError
from meshnode.runtime.acceptor import Acceptor, listen_at
from meshnode.runtime.host_names import look_up
from meshnode.sdk.datagrams import Datagrams
from meshnode.sdk.node import Node, runtime_of
from meshnode.sdk.places import Places
from meshnode.services.ends import End, bound_end, parse_listen
from meshnode.services.forward import is_loopback
from meshnode.services.proxy.clients import Client, SocksClient, client_of
from meshnode.services.proxy.dns_server import DnsServer
from meshnode.services.proxy.opening import open_for
from meshnode.services.proxy.overlay import OverlayNames
from meshnode.services.proxy.socks5 import Reply, reply
from meshnode.services.proxy.socks_udp import Association
from meshnode.services.splice import abort

log = rated_logger("meshnode.proxy")

CHUNK = 1 << 14  # bytes read at once of a client that has not asked
LINGER_S = 1.0  # for the end of a client that was refused and still sends


class Proxy:
    """A listener whose clients say by SOCKS5 or HTTP which service of the mesh they want.

    Attributes:
        listen: Where it listens, or shall.
        is_public: Whether it may listen where other hosts reach it: they use the mesh as this node then.
        error: Why it does not listen now; "" when it does.
        failed: The last client's error, and the loop's time of it; None when that one was connected.
    """

    def __init__(
        self, node: Node, overlay: OverlayNames, listen: str, is_public: bool = False, dns: str | None = None
    ) -> None:
        self.listen, self.is_public = listen, is_public
        self._overlay = overlay
        self._dns = DnsServer(node, dns, overlay) if dns is not None else None
        self.error = ""
        self.failed: tuple[MeshError, float] | None = None
        self._node = node
        self._acceptor: Acceptor | None = None
        self._tasks: dict[asyncio.Task[None], socket.socket] = {}
        self._silent: FairTable[asyncio.Task[None]] = FairTable(MAX_PROXY_SILENT)  # and those that were refused
        self._places = Places(MAX_PROXY_CLIENTS)

    @property
    def connections(self) -> int:
        """How many clients it has now, those among them that have not asked yet."""
        return len(self._tasks)

    @property
    def dns(self) -> str | None:
        """Where it answers DNS; None when it does not."""
        return self._dns.listen if self._dns is not None else None

    @property
    def place(self) -> str:
        """``listen`` with its host.

        Raises ConfigError: it is no address.
        """
        return str(_tcp(self.listen))

    @property
    def _log(self) -> Logger:
        return runtime_of(self._node).journal.rate.of_node(log)

    async def start(self) -> None:
        """Listen; ``listen`` and ``dns`` have the ports afterwards that are bound.

        Raises ConfigError for an address that other hosts reach, unless it is public, and AddressInUse.
        """
        end = _tcp(self.listen)
        host, port = end.host, end.port
        try:
            hosts = await look_up(host)
            if not self.is_public and not all(map(is_loopback, hosts)):
                message = f"{host} is not on loopback: other hosts could use the mesh as this node"
                raise ConfigError(message, hint=f"write 127.0.0.1:{port}, or add --public")
            listeners = listen_at(hosts, port, MAX_PROXY_CLIENTS)
        except OSError as error:
            reason, hint = listen_refusal(error, port)
            raise AddressInUse(f"cannot listen on {end}: {reason}", hint=hint) from error
        if self._dns is not None:
            try:
                await self._dns.start()
            except BaseException:
                for listener in listeners:
                    listener.close()
                raise
        accepted = runtime_of(self._node).sockets.accepted
        self._acceptor = Acceptor(asyncio.get_running_loop(), accepted, listeners, self._on_connection)
        self.listen = str(bound_end(end, listeners[0]))
        self.error = ""

    def _on_connection(self, sock: socket.socket, source: Addr) -> None:
        """Serve a client. Clients that ask nothing push out those of the host with most, and none that has asked."""
        if len(self._tasks) >= 2 * MAX_PROXY_CLIENTS:
            sock.close()
            return
        task = asyncio.get_running_loop().create_task(self._client(sock, source))
        self._tasks[task] = sock
        task.add_done_callback(self._on_end)
        self._enter_silent(task, source)

    def _enter_silent(self, task: asyncio.Task[None], source: Addr) -> None:
        pushed_out = self._silent.add(task, *source_shares(source.host))
        if pushed_out is not None:
            pushed_out.cancel()

    def _on_end(self, task: asyncio.Task[None]) -> None:
        sock = self._tasks.pop(task)
        self._silent.discard(task)
        if task.cancelled():
            sock.close()  # before it began
        elif (error := task.exception()) is not None:
            sock.close()
            self._log.error("proxy %s: a client failed", self.listen, exc_info=error)

    async def _client(self, sock: socket.socket, source: Addr) -> None:
        try:
            async with asyncio.timeout(PROXY_REQUEST_S):
                client = await _asked(sock)
            task = asyncio.current_task()
            assert task is not None
            self._silent.discard(task)
            if client is None:
                sock.close()
            elif await self._serve(client, sock, source):
                self._enter_silent(task, source)
                await _linger(sock)
                sock.close()
        except (OSError, asyncio.CancelledError) as error:  # a timeout too
            log.debug("a client of the proxy is over: %r", error)
            abort(sock)

    async def _serve(self, client: Client, sock: socket.socket, source: Addr) -> bool:
        """Lead a client to what it wants and close it, or tell it why that cannot be; True when it has been told so."""
        try:
            wanted = client.wanted
            assert wanted is not None
            if not await self._places.take(*source_shares(source.host)):
                raise StreamLimitError(f"the proxy has {MAX_PROXY_CLIENTS} connections", hint="close some")
            if isinstance(client, SocksClient) and client.is_for_datagrams:
                await self._associate(sock, wanted[1])
                return False
            mesh = await open_for(self._node, self._overlay, wanted, self._node.open)
            self.failed = None
            await client.carry(sock, mesh)
            return False
        except MeshError as error:
            self.failed = error, asyncio.get_running_loop().time()
            self._log.info("proxy %s: %s (%s) %s", self.listen, error, error.code, error.hint)
            _tell(sock, client.refused(error))
            return True
        finally:
            self._places.leave()

    async def _associate(self, sock: socket.socket, port: int) -> None:
        """Carry a client's datagrams as long as its connection is there. Raises OSError."""

        async def open_flow(host: str, port: int) -> Datagrams:
            return await open_for(self._node, self._overlay, (host, port), self._node.datagrams)

        here, client = canonical_host(sock.getsockname()[0]), canonical_host(sock.getpeername()[0])
        association = Association(here, (client, port), open_flow, runtime_of(self._node).metrics)
        try:
            _tell(sock, reply(Reply.SUCCEEDED, association.bound))
            await _until_gone(sock)
            sock.close()
        finally:
            await association.close()

    async def close(self) -> None:
        """Stop listening, and reset its clients."""
        if self._dns is not None:
            await self._dns.close()
        if self._acceptor is not None:
            self._acceptor.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _tcp(listen: str) -> End:
    """Return where to listen. Raises ConfigError: programs reach a proxy by TCP alone."""
    end = parse_listen(listen)
    if end.path or end.udp:
        raise ConfigError(f"a proxy listens at a TCP port, not at {end}", hint="write PORT or HOST:PORT")
    return end


async def _asked(sock: socket.socket) -> Client | None:
    """Read until a client has asked, or is to be refused; None when it went away before. Raises OSError."""
    loop = asyncio.get_running_loop()
    client: Client | None = None
    while data := await loop.sock_recv(sock, CHUNK):
        if client is None:
            client = client_of(data[0])
        client.receive(data)
        _tell(sock, client.to_send())
        try:
            if client.wanted is not None:
                return client
        except MeshError:
            return client
    return None


def _tell(sock: socket.socket, answer: bytes) -> None:
    """Send an answer, which is shorter than any buffer. Raises OSError, also where a client has taken none of many."""
    if answer and sock.send(answer) < len(answer):
        raise ConnectionResetError("a client of the proxy does not read its answers")


async def _until_gone(sock: socket.socket) -> None:
    """Read until a client has ended its direction. Raises OSError."""
    while await asyncio.get_running_loop().sock_recv(sock, CHUNK):
        pass


async def _linger(sock: socket.socket) -> None:
    """End a connection behind an answer: a kernel that has unread bytes sends a reset, which would overtake it."""
    sock.shutdown(socket.SHUT_WR)
    try:
        async with asyncio.timeout(LINGER_S):
            await _until_gone(sock)
    except TimeoutError:
        return
