"""Neighbours on the LAN by multicast DNS, through zeroconf: no flags, no route out, no server.

A stranger on the LAN learns that a node exists and nothing else: the instance name is a keyed hash of key
and hour, the TXT record is the signed endpoint record encrypted to the mesh, and no address is published
(stale ones would stay in caches; peers dial from the signed record alone).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from zeroconf import (
    Error,
    InterfaceChoice,
    IPVersion,
    RecordUpdate,
    RecordUpdateListener,
    ServiceBrowser,
    ServiceInfo,
    ServiceStateChange,
    Zeroconf,
)
from zeroconf._dns import DNSText
from zeroconf.asyncio import AsyncZeroconf

from meshnode.base.address import Addr
from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_NEIGHBOURS
from meshnode.base.metrics import Metrics
from meshnode.discovery.source import RecordSource, Sink
from meshnode.errors import RecordError
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord, open_record
from meshnode.identity.sealing import Sealer

SERVICE_TYPE = "_meshnode._udp.local."
MAX_STRING = 255  # RFC 1035 section 3.3.14
MAX_TEXT = 1_300
MAX_SEEN = 512  # texts that are not opened again
ROTATE_S = 3600
RETRY_S = 2.0
Interfaces = InterfaceChoice | list[str | int | tuple[tuple[str, int, int], int]]
log = logging.getLogger("meshnode.mdns")
logging.getLogger("zeroconf").setLevel(logging.ERROR)  # it warns of every address that is still coming up


def encode_text(sealed: bytes) -> bytes:
    """Return the TXT rdata: strings of at most 255 bytes, each behind its length (RFC 1035 section 3.3.14).

    The cut is without meaning; ``decode_text`` joins the strings.
    """
    parts = [sealed[at : at + MAX_STRING] for at in range(0, len(sealed), MAX_STRING)]
    return b"".join(bytes([len(part)]) + part for part in parts)


def decode_text(text: bytes) -> bytes:
    """Join the strings of a TXT rdata; whatever is cut short is left out."""
    parts, at = [], 0
    while at < len(text):
        size = text[at]
        parts.append(text[at + 1 : at + 1 + size])
        at += 1 + size
    return b"".join(parts)


def instance_name(sealer: Sealer, own: NodeId, wall: float) -> str:
    """Return the instance name of ``own`` in this hour.

    Members recompute it from the mesh key, the id and the hour; others cannot link the names of two hours. ``wall`` is
    Unix time in seconds.
    """
    return sealer.blind(bytes(own) + int(wall // ROTATE_S).to_bytes(8, "big"))


class Neighbours(RecordUpdateListener):
    """Records that other nodes announced on this LAN, as zeroconf hears them; each goes to ``sink`` once."""

    sink: Sink

    def __init__(self, own: NodeId, sealer: Sealer, metrics: Metrics) -> None:
        super().__init__()
        self._own = own
        self._sealer = sealer
        self._metrics = metrics
        self._seen: BoundedDict[bytes, None] = BoundedDict(MAX_SEEN)
        self._known: BoundedDict[NodeId, None] = BoundedDict(MAX_NEIGHBOURS)

    def __len__(self) -> int:
        return len(self._known)

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Take the TXT records of the service type among the DNS records that zeroconf heard.

        Called in the event loop's thread. A text that was opened before is not opened again (``MAX_SEEN`` are
        remembered); oversized ones and those of other meshes are counted and dropped.
        """
        for update in records:
            record = update.new
            if isinstance(record, DNSText) and record.name.endswith(SERVICE_TYPE):
                self._take(record.text)

    def async_update_records_complete(self) -> None:
        """Nothing to do after a batch."""

    def _take(self, text: bytes) -> None:
        if len(text) > MAX_TEXT:
            self._metrics.count("mdns_oversized")
            return
        if text in self._seen:
            return
        encoded = self._sealer.decrypt_hint(decode_text(text))
        if encoded is None:
            self._metrics.count("mdns_foreign")
            return
        self._note(encoded)
        self._seen[text] = None
        self.sink.record(encoded)

    def _note(self, encoded: bytes) -> None:
        try:
            peer = open_record(encoded, time.time()).id
        except RecordError:
            return  # the resolver counts the reason
        if peer != self._own:
            self._known[peer] = None


class MdnsSource(RecordSource):
    """Multicast DNS as a source: announces this node's record, and listens to others; all work is in one task.

    ``local`` returns the address that the node's socket is bound to: one bound to a single address neither speaks nor
    listens on other networks.
    """

    name = "mdns"

    def __init__(self, own: NodeId, sealer: Sealer, local: Callable[[], Addr], metrics: Metrics) -> None:
        self.neighbours = Neighbours(own, sealer, metrics)
        self._own = own
        self._sealer = sealer
        self._local = local
        self._metrics = metrics
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: ServiceBrowser | None = None
        self._info: ServiceInfo | None = None
        self._record: EndpointRecord | None = None
        self._wake = asyncio.Event()
        self._has_moved = False
        self._task: asyncio.Task[None] | None = None
        self._announced = False
        self._error = ""

    def start(self, sink: Sink, now: float) -> None:
        """Begin in a task; returns at once, whatever the network is like."""
        self.neighbours.sink = sink
        self._wake.set()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def publish(self, record: EndpointRecord, now: float) -> None:
        """Announce a newer record, on the interfaces of its addresses."""
        if self._record is not None and self._record.endpoints != record.endpoints:
            self._has_moved = True  # a bridge that a first container came up on is no move of this node
        self._record = record
        self._wake.set()

    def moved(self, now: float) -> None:
        """Join the multicast groups of new interfaces (zeroconf does not notice them itself)."""
        self._has_moved = True
        self._wake.set()

    async def close(self) -> None:
        """Withdraw the announcement; takes at most a second.

        The goodbye (TTL 0, RFC 6762 section 10.1) lets others forget this node at once. Errors of zeroconf are ignored.
        """
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._zeroconf is not None:
            with suppress(Exception):  # a goodbye is a courtesy: nothing may hold up the exit
                async with asyncio.timeout(1.0):
                    if self._browser is not None:
                        self._zeroconf.zeroconf.remove_listener(self.neighbours)
                    await self._zeroconf.async_close()

    async def _run(self) -> None:
        while True:
            try:
                await self._step()
                self._error = ""
                timeout: float = ROTATE_S - time.time() % ROTATE_S + 1
            except (OSError, Error, TimeoutError, AssertionError) as error:
                self._metrics.count("mdns_errors")
                self._error = str(error) or type(error).__name__
                log.debug("mDNS: %r", error)
                timeout = RETRY_S
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._wake.wait()

    async def _step(self) -> None:
        self._wake.clear()
        if self._zeroconf is None:
            self._zeroconf = _open(self._choice())
            zeroconf = self._zeroconf.zeroconf
            zeroconf.add_listener(self.neighbours, None)
            self._browser = ServiceBrowser(zeroconf, SERVICE_TYPE, handlers=[_ignore])
        elif self._has_moved:
            self._has_moved = False
            await self._zeroconf.async_update_interfaces(interfaces=self._choice())
        if self._record is None:
            return
        name = instance_name(self._sealer, self._own, time.time())
        info = ServiceInfo(
            SERVICE_TYPE,
            f"{name}.{SERVICE_TYPE}",
            port=self._local().port,
            properties=encode_text(self._sealer.encrypt_hint(self._record.encoded)),
            server=f"{name}.local.",
        )
        old, self._info = self._info, info
        if old is not None and old.name == info.name:
            await self._zeroconf.async_update_service(info)
            self._announced = True
            return
        if old is not None:
            await self._zeroconf.async_unregister_service(old)
        registering = await self._zeroconf.async_register_service(info, allow_name_change=False, strict=False)
        await registering
        self._announced = True

    def _choice(self) -> Interfaces:
        """Return the interfaces to use: all, or only that of the address to which the node is bound."""
        host = self._local().host
        return InterfaceChoice.All if host in ("::", "0.0.0.0") else [host.partition("%")[0]]

    def status(self) -> dict[str, object]:
        """Return whether this node has announced itself, the last error, and how many neighbours were heard.

        ``error`` is "" when the last step succeeded; at most ``MAX_NEIGHBOURS`` are counted, including some that have
        left.
        """
        return {"on": True, "announced": self._announced, "error": self._error, "neighbours": len(self.neighbours)}


def _open(interfaces: Interfaces) -> AsyncZeroconf:
    """Open with IPv6 where there is any."""
    if not isinstance(interfaces, InterfaceChoice):
        return AsyncZeroconf(interfaces=interfaces)
    try:
        return AsyncZeroconf(interfaces=interfaces, ip_version=IPVersion.All)
    except OSError:
        return AsyncZeroconf(interfaces=interfaces, ip_version=IPVersion.V4Only)


def _ignore(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
    """Ignore the browser's own event: answers come through ``Neighbours``."""
