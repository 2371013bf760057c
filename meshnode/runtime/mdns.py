"""Neighbours on the LAN by multicast DNS, through zeroconf: no flags, no route out, no server.

zeroconf has the sockets, the interfaces and the DNS codec; what is said, and when, is in ``discovery/lan.py``. Nothing
is registered with zeroconf, so it has no answer to any query, whatever its source and port; and it asks nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress

from zeroconf import (  # type: ignore[attr-defined]  # DNSOutgoing and DNSText are there, not in its __all__
    DNSOutgoing,
    DNSText,
    InterfaceChoice,
    IPVersion,
    RecordUpdate,
    RecordUpdateListener,
    Zeroconf,
)
from zeroconf.asyncio import AsyncZeroconf

from meshnode.base.address import Addr
from meshnode.base.metrics import Metrics
from meshnode.discovery.lan import Lan
from meshnode.discovery.source import RecordSource, Sink
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from meshnode.identity.sealing import Sealer
from meshnode.runtime.routes import tentative_addresses

SERVICE_TYPE = "_meshnode._udp.local."
RESPONSE = 0x8400  # RFC 6762 sections 18.2 and 18.4: a response, authoritative
TXT, IN = 16, 1  # RFC 1035 section 3.2
TTL_S = 10  # no cache has a use for it
NAME_BYTES = 16  # each announcement has a name of its own, which needs no probing (RFC 6762 section 8)
RETRY_S = 2.0
COMING_UP_S = 0.5  # duplicate address detection takes 1 to 2 s
Interfaces = InterfaceChoice | list[str | int | tuple[tuple[str, int, int], int]]
log = logging.getLogger("meshnode.mdns")
logging.getLogger("zeroconf").setLevel(logging.ERROR)  # it warns of every address that is still coming up


class Ear(RecordUpdateListener):
    """Gives the texts of the service type, among the DNS records that zeroconf hears, to ``hear``."""

    def __init__(self, hear: Callable[[bytes], None]) -> None:
        super().__init__()
        self._hear = hear
        self._zeroconf: Zeroconf | None = None

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Take the records of one datagram, in the event loop's thread."""
        self._zeroconf = zc
        for update in records:
            record = update.new
            if isinstance(record, DNSText) and record.name.endswith(SERVICE_TYPE):
                self._hear(record.text)

    def async_update_records_complete(self) -> None:
        """Empty zeroconf's cache, which nothing here asks: any host of the link can fill it, with 90 MB for years."""
        if self._zeroconf is not None:
            self._zeroconf.cache.async_expire(float("inf"))


class MdnsSource(RecordSource):
    """Multicast DNS as a source: announces this node's record, and listens to others; all work is in one task.

    ``local`` returns the address that the node's socket is bound to: one bound to a single address neither speaks nor
    listens on other networks.
    """

    name = "mdns"

    def __init__(self, own: NodeId, sealer: Sealer, local: Callable[[], Addr], metrics: Metrics) -> None:
        self.lan = Lan(own, sealer, random.Random(os.urandom(16)), metrics)
        self._local = local
        self._metrics = metrics
        self._ear = Ear(self.hear)
        self._zeroconf: AsyncZeroconf | None = None
        self._sink: Sink | None = None
        self._wake = asyncio.Event()
        self._has_moved = False
        self._tentative: frozenset[str] = frozenset()  # addresses that zeroconf could not use when it opened
        self._task: asyncio.Task[None] | None = None
        self._announced = False
        self._error = ""

    def start(self, sink: Sink, now: float) -> None:
        """Begin in a task; returns at once, whatever the network is like."""
        self._sink = sink
        self._task = asyncio.get_running_loop().create_task(self._run())

    def publish(self, record: EndpointRecord, now: float) -> None:
        """Announce a newer record, on the interfaces of its addresses."""
        if self.lan.publish(record, now):
            self._has_moved = True
        self._wake.set()

    def resolve(self, peer: NodeId, now: float) -> None:
        """Ask which nodes are on the link."""
        self.lan.ask(now)
        self._wake.set()

    def moved(self, now: float) -> None:
        """Join the multicast groups of new interfaces (zeroconf does not notice them itself), and announce again."""
        self.lan.moved(now)
        self._has_moved = True
        self._wake.set()

    async def close(self) -> None:
        """End within a second. Nothing is withdrawn: an announcement holds for 10 s, and a goodbye would be a trace.

        Errors of zeroconf are ignored.
        """
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._zeroconf is not None:
            with suppress(Exception):  # nothing may hold up the exit
                async with asyncio.timeout(1.0):
                    self._zeroconf.zeroconf.remove_listener(self._ear)
                    await self._zeroconf.async_close()

    async def _run(self) -> None:
        while True:
            try:
                await self._step()
                self._error = ""
                at = self.lan.next_deadline()
                timeout = None if at is None else max(0.0, at - time.monotonic())
                if self._tentative:
                    timeout = COMING_UP_S if timeout is None else min(timeout, COMING_UP_S)
            except Exception as error:  # of the network, of zeroconf: whatever it is, the next step may work
                self._metrics.count("mdns_errors")
                self._error = str(error) or type(error).__name__
                log.debug("mDNS: %r", error)
                timeout = RETRY_S
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._wake.wait()

    async def _step(self) -> None:
        self._wake.clear()
        if self._tentative and not self._tentative & tentative_addresses():  # no event tells that a check is over
            self.moved(time.monotonic())
        if self._zeroconf is None:
            self._tentative = tentative_addresses()
            self._zeroconf = _open(self._choice())
            self._zeroconf.zeroconf.add_listener(self._ear, None)
            await self._zeroconf.zeroconf.async_wait_for_start()
            self._has_moved = False
        elif self._has_moved:
            self._has_moved = False
            self._tentative = tentative_addresses()
            try:
                await self._zeroconf.async_update_interfaces(interfaces=self._choice())
            except BaseException:
                self._has_moved = True  # else no step would join a group on the new interface again
                raise
        text = self.lan.take(time.monotonic(), time.time())
        if text is not None:
            self._zeroconf.zeroconf.async_send(_response(os.urandom(NAME_BYTES).hex(), text))
            self._announced = True

    def hear(self, text: bytes) -> None:
        """Take the text of an announcement, by whatever host it was sent."""
        record = self.lan.hear(text, time.monotonic(), time.time())
        if record is not None and self._sink is not None:
            self._sink.record(record)
        self._wake.set()

    def _choice(self) -> Interfaces:
        """Return the interfaces to use: all, or only that of the address to which the node is bound."""
        host = self._local().host
        return InterfaceChoice.All if host in ("::", "0.0.0.0") else [host.partition("%")[0]]

    def status(self) -> dict[str, object]:
        """Return whether this node has announced itself, the last error, and how many neighbours were heard.

        ``error`` is "" when the last step succeeded; at most ``MAX_NEIGHBOURS`` are counted, including some that have
        left.
        """
        return {"on": True, "announced": self._announced, "error": self._error, "neighbours": len(self.lan)}


def _response(name: str, text: bytes) -> DNSOutgoing:
    made = DNSOutgoing(RESPONSE)
    made.add_answer_at_time(DNSText(f"{name}.{SERVICE_TYPE}", TXT, IN, TTL_S, text), 0)
    return made


def _open(interfaces: Interfaces) -> AsyncZeroconf:
    """Open with IPv6 and IPv4, or with the one that there is."""
    if not isinstance(interfaces, InterfaceChoice):
        return AsyncZeroconf(interfaces=interfaces)
    for versions in (IPVersion.All, IPVersion.V4Only):
        with suppress(OSError):
            return AsyncZeroconf(interfaces=interfaces, ip_version=versions)
    return AsyncZeroconf(interfaces=interfaces, ip_version=IPVersion.V6Only)
