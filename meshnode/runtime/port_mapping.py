"""Sockets of port mapping: they carry out what ``portmap.client`` decides.

One UDP socket for each of our addresses on a default route, one each for the announcements of routers (RFC 6887
section 14.1.1), and short TCP exchanges with the router for UPnP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable

from meshnode.base.address import Addr, canonical_host
from meshnode.base.clock import Clock, Entropy
from meshnode.base.limits import MAX_SSDP, MAX_UPNP_REPLY, PORTMAP_WITHDRAW_S, UPNP_EXCHANGE_S
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import RETRY_S, OnError, reraise
from meshnode.nat.portmap import http, pcp
from meshnode.nat.portmap.client import PortMapper
from meshnode.nat.portmap.vocabulary import Changed, Effect, Fetch, Mapping, Send
from meshnode.runtime.descriptors import watch_on
from meshnode.runtime.host_names import connect_address
from meshnode.runtime.routes import default_routes

log = logging.getLogger("meshnode.portmaps")
ALL_HOSTS = "224.0.0.1"
ALL_NODES = "ff02::1"
BATCH = 16  # datagrams a wake-up
SEND_ERRORS = describe("portmap_send_errors", "mapping requests that the kernel would not send")


class PortMapping:
    """A node's port mappings on real sockets; ``on_change`` is called when another set of them is held."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        secret: bytes,
        entropy: Entropy,
        on_change: Callable[[], None],
        metrics: Metrics,
        on_error: OnError = reraise,
        *,
        upnp: bool,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._on_change = on_change
        self._metrics = metrics
        self._on_error = on_error
        self._core = PortMapper(secret, entropy, metrics, upnp=upnp)
        self._sockets: dict[str, socket.socket] = {}
        self._listeners: dict[str, socket.socket] = {}
        self._fetches: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._closed = False

    # ---- life

    def update(self, bound: Addr) -> None:
        """Map the port of ``bound`` on every default route; call it again when the port or an interface changes.

        New routes are asked, mappings that stay are verified, and those whose port or route is gone are given back.
        """
        if self._closed:
            return
        routes = default_routes(bound)
        self._close_sockets({route.internal for route in routes})
        self._listen({"6:" + route.router.partition("%")[2] if route.is_ipv6 else "4" for route in routes})
        self._core.set_routes(routes, bound.port, self._clock.monotonic())
        self._pump()

    async def close(self) -> None:
        """Give the mappings back, then close all sockets.

        Waits at most ``PORTMAP_WITHDRAW_S`` (0.5 s) for the routers' answers; ``on_change`` is not called any more.
        """
        if self._closed:
            return
        self._closed = True  # changes are not reported from here on
        self._core.withdraw(self._clock.monotonic())
        self._pump()
        if not self._core.is_idle:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), PORTMAP_WITHDRAW_S)
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._fetches):
            task.cancel()
        await asyncio.gather(*self._fetches, return_exceptions=True)
        self._close_sockets(set())
        self._listen(set())

    def mappings(self) -> list[Mapping]:
        """Return the mappings that are granted now."""
        return self._core.mappings()

    def to_json(self) -> dict[str, object]:
        """Return the mappings and the routers that were asked, as ``meshnode status --json`` prints them.

        ``mappings`` lists those that are granted, ``port_mapping`` the state of every route with what each protocol
        said.
        """
        now = self._clock.monotonic()
        return {
            "mappings": [mapping.to_json(now) for mapping in self._core.mappings()],
            "port_mapping": self._core.to_json(now),
        }

    # ---- driving the core

    def _pump(self) -> None:
        changed = False
        while effects := self._core.take_effects():
            for effect in effects:
                self._carry_out(effect)
                changed = changed or isinstance(effect, Changed)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self._core.next_deadline()
        if at is not None:
            self._timer = self._loop.call_later(max(0.0, at - self._clock.monotonic()), self._tick)
        if self._core.is_idle:
            self._idle.set()
        if changed and not self._closed:
            self._on_change()

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self._send(effect)
        elif isinstance(effect, Fetch):
            task = self._loop.create_task(self._fetch(effect))
            self._fetches.add(task)
            task.add_done_callback(self._fetches.discard)

    def _tick(self) -> None:
        self._timer = None
        try:
            self._core.tick(self._clock.monotonic())
            self._pump()
        except Exception as error:
            self._timer = self._timer or self._loop.call_later(RETRY_S, self._tick)
            self._on_error(error)

    # ---- UDP

    def _send(self, effect: Send) -> None:
        try:
            own = self._sockets.get(effect.internal) or self._open(effect.internal)
            host, _, scope = effect.to.host.partition("%")
            if ":" in host:
                own.sendto(effect.data, (host, effect.to.port, 0, socket.if_nametoindex(scope) if scope else 0))
            else:
                own.sendto(effect.data, (host, effect.to.port))
        except OSError as error:  # the address or the route is gone; an event will say so
            self._metrics.count(SEND_ERRORS)
            log.debug("cannot ask %s: %s", effect.to, error)

    def _open(self, internal: str) -> socket.socket:
        ipv6 = ":" in internal
        own = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            own.bind((internal, 0))
            if not ipv6:
                own.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(internal))
                own.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)  # the router is on the link
        except OSError:
            own.close()
            raise
        self._sockets[internal] = own
        self._loop.add_reader(own, self._readable, own, internal)
        return own

    def _close_sockets(self, kept: set[str]) -> None:
        for internal in [internal for internal in self._sockets if internal not in kept]:
            self._drop(self._sockets.pop(internal))

    def _drop(self, own: socket.socket) -> None:
        self._loop.remove_reader(own)
        own.close()

    def _listen(self, wanted: set[str]) -> None:
        """Hear announcements: of IPv4 routers, and of IPv6 ones by interface. Bound to the groups: nothing unicast."""
        for key in [key for key in self._listeners if key not in wanted]:
            self._drop(self._listeners.pop(key))
        for key in wanted - self._listeners.keys():
            family, _, interface = key.partition(":")
            ipv6 = family == "6"
            own = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # every program on this host hears them
                if ipv6:
                    own.bind((ALL_NODES, pcp.ANNOUNCE_PORT, 0, socket.if_nametoindex(interface)))
                else:
                    own.bind((ALL_HOSTS, pcp.ANNOUNCE_PORT))
            except OSError as error:  # then a restart is noticed at the next renewal
                own.close()
                log.debug("no announcements: %s", error)
                continue
            self._listeners[key] = own
            self._loop.add_reader(own, self._readable, own, None)

    def _readable(self, own: socket.socket, internal: str | None) -> None:
        for _ in range(BATCH):
            try:
                data, name = own.recvfrom(MAX_SSDP + 1)
                source = _source(name)
            except BlockingIOError:
                break
            except OSError:  # an ICMP error, an interface that is gone, or the system has ended it
                watch_on(self._loop, own, self._readable, own, internal)
                break
            now = self._clock.monotonic()
            if internal is not None:
                self._core.datagram(data, source, internal, now)
            else:
                self._core.announcement(data, source, now)
        self._pump()

    # ---- HTTP

    async def _fetch(self, effect: Fetch) -> None:
        status, body = None, b""
        try:
            status, body = http.parse(await _exchange(effect))
        except (OSError, ValueError) as error:
            log.debug("no answer from %s: %r", effect.to, error)
        self._core.on_http(effect.number, status, body, self._clock.monotonic())
        self._pump()


def _source(name: tuple[object, ...]) -> Addr:
    host, port = str(name[0]), int(str(name[1]))
    if len(name) == 4 and name[3] and "%" not in host:
        host = f"{host}%{socket.if_indextoname(int(str(name[3])))}"
    return Addr(canonical_host(host), port)


async def _exchange(effect: Fetch) -> bytes:
    """Send the request; return what came until it was whole, the router closed or time was up.

    Raises OSError, and ValueError for an answer without end.
    """
    raw = bytearray()
    try:
        async with asyncio.timeout(UPNP_EXCHANGE_S):
            await _read_into(raw, effect)
    except TimeoutError:
        pass  # it may be whole all the same: chunks, on a connection that the router keeps open
    return bytes(raw)


async def _read_into(raw: bytearray, effect: Fetch) -> None:
    sock = await connect_address(*effect.to, effect.internal)
    reader, writer = await asyncio.open_connection(sock=sock)
    try:
        writer.write(effect.request)
        whole: int | None = None
        while (whole is None or len(raw) < whole) and (piece := await reader.read(8_192)):
            raw += piece
            if len(raw) > MAX_UPNP_REPLY:
                raise ValueError("an answer without end")
            whole = whole or http.whole(raw)
    finally:
        writer.close()
