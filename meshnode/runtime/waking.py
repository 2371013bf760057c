"""Waking of peers that sleep: an HTTPS request to the URL in a peer's signed record, and a dial that goes on meanwhile.

A platform stops what is not called: a function, a container that is scaled to zero, a machine. Its record says where a
request starts it again. Another node has chosen that URL, so a request is this node's own decision, and guarded against
being led elsewhere (server-side request forgery):

- only for a peer that a program of this node connects to, and only from a record that the peer has signed;
- only to hosts that ``Config.wake_allow`` names, nowhere by default;
- only by HTTPS, with a certificate for that host that the system's authorities have signed; port 443, unless the
  setting names another;
- the host is looked up once, and what is connected to are addresses of that answer which are public, or in a network
  that the setting names: so no name leads to this host, its network or a cloud's metadata, now or a moment later;
- no redirect is followed, no proxy asked, no cookie or credential sent;
- each peer once in ``WAKE_EVERY_S``, all together at ``WAKES_A_MINUTE``; at most ``MAX_WAKE_ANSWER`` bytes are read.

The request is ``POST`` with the JSON object ``{"wake": ID, "by": ID, "record": BASE64}``: the node that is to wake, and
this one with its signed record, for a function that cannot be reached can call back. The answer may have the woken
node's record: ``{"record": BASE64}``. It counts only when its signature does, like that of every source.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import logging
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import h11

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_RECORD, MAX_WAKE_ANSWER, MAX_WOKEN, WAKE_EVERY_S, WAKES_A_MINUTE
from meshnode.base.metrics import Metrics, describe
from meshnode.base.token_bucket import TokenBucket
from meshnode.base.value import value
from meshnode.base.wake_url import HTTPS_PORT, WakeUrl, parse_wake_url
from meshnode.errors import HandshakeTimeout, NoPathError
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from meshnode.quic.connection import Connection
from meshnode.runtime.host_names import connect_tcp, look_up
from meshnode.runtime.tasks import Spawn

log = logging.getLogger("meshnode.wake")

WAKE_AFTER_S = 0.3  # a peer that runs has answered by then: half a second of round trips is rare
WAKE_S = 20.0  # for a cold start, from the request to the first answer of the node
REDIAL_S = 0.2
REQUEST_S = 15.0
MAX_ADDRESSES = 2  # of a host, that are tried
ANY = "any"

WAKES = describe("wakes", "requests made to wake a peer")
REFUSED = describe("wakes_refused", "wake URLs that this node may not call")
SLOWED = describe("wakes_slowed", "peers not woken, for they were a moment ago, or too many others")
FAILED = describe("wakes_failed", "requests to wake a peer that came to nothing")

T = TypeVar("T")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# public by their number, and yet these lead to IPv4 addresses of any kind: 6to4, Teredo, NAT64 (RFC 6052)
EMBEDDING = [ipaddress.ip_network(text) for text in ("2002::/16", "2001::/32", "64:ff9b::/96", "64:ff9b:1::/48")]


class Permission:
    """What ``Config.wake_allow`` says: hosts, and networks in which they may be beside public addresses.

    A host is a name, with ``:PORT`` where that is not 443; ``.example.org`` stands for all names below that domain,
    ``any`` for every name.
    """

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._networks: list[Network] = [ipaddress.ip_network(text) for text in allowed if "/" in text]
        self._hosts = {text.removesuffix(f":{HTTPS_PORT}") for text in allowed if "/" not in text}

    def __bool__(self) -> bool:
        return bool(self._hosts)

    def has_host(self, url: WakeUrl) -> bool:
        """Return whether a URL's host and port may be called, whatever its address is."""
        place = "" if url.port == HTTPS_PORT else f":{url.port}"
        above = url.host
        names = [url.host]
        while above:
            _, _, above = above.partition(".")
            names += [f".{above}"] if above else []
        return any(f"{name}{place}" in self._hosts for name in [*names, ANY])

    def has_address(self, text: str) -> bool:
        """Return whether an address of a host may be connected to."""
        ip: Address = ipaddress.ip_address(text.partition("%")[0])
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        if any(ip in network for network in self._networks):
            return True
        return ip.is_global and not ip.is_multicast and not any(ip in network for network in EMBEDDING)


@value
class Sleepers:
    """Parts of the stack that a waker needs: dials, records, where an answer's record goes, and ``Context.ran``."""

    dial: Callable[[NodeId], Coroutine[Any, Any, Connection]]
    record: Callable[[NodeId], EndpointRecord | None]
    own: Callable[[], EndpointRecord | None]
    offer: Callable[[bytes], None]
    ran: Callable[[], float]


class Waker:
    """Connects to peers and opens streams to them; wakes those that do not answer. For nodes that may call a host."""

    def __init__(self, allow: Permission, peers: Sleepers, spawn: Spawn, metrics: Metrics) -> None:
        self._allow = allow
        self._peers = peers
        self._spawn = spawn
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._woken: BoundedDict[NodeId, float] = BoundedDict(MAX_WOKEN)
        self._refused: BoundedDict[NodeId, float] = BoundedDict(MAX_WOKEN)
        self._bucket = TokenBucket(WAKES_A_MINUTE / 60, WAKES_A_MINUTE, self._loop.time())

    async def connect(self, peer: NodeId) -> Connection:
        """Return a connection to a peer. One that stays silent for ``WAKE_AFTER_S`` is woken, and given ``WAKE_S``.

        Raises as the dial does.
        """
        dial = self._loop.create_task(self._peers.dial(peer))
        try:
            await self._listen(dial)
            if not _is_silent(dial) or not self._wake(peer):
                return await dial
            until = self._loop.time() + WAKE_S
            while True:
                try:
                    return await dial
                except (NoPathError, HandshakeTimeout):
                    if self._loop.time() >= until:
                        raise
                await asyncio.sleep(REDIAL_S)
                dial = self._loop.create_task(self._peers.dial(peer))
        finally:
            dial.cancel()

    async def opened(self, link: Connection, opening: Coroutine[Any, Any, T]) -> T:
        """Return what a coroutine returns that opens a stream; a peer that acknowledges nothing of it is woken.

        So is one whose process a platform has frozen between two calls, with its connections. Raises as the coroutine.
        """
        task, heard = self._loop.create_task(opening), link.bytes_in
        try:
            await self._listen(task)
            if not task.done() and link.bytes_in == heard:
                self._wake(link.peer)
            return await task
        finally:
            task.cancel()

    async def _listen(self, task: asyncio.Task[T]) -> None:
        """Wait until it is done, for ``WAKE_AFTER_S`` of time in which this process runs and can hear the peer."""
        until = self._peers.ran() + WAKE_AFTER_S
        while not task.done() and (left := until - self._peers.ran()) > 0:
            await asyncio.wait((task,), timeout=left)

    def _wake(self, peer: NodeId) -> bool:
        """Begin to wake a peer, or wait for an earlier request of the last moments; False when it cannot be woken."""
        record = self._peers.record(peer)
        if record is None or not record.wake:
            return False
        try:
            url = parse_wake_url(record.wake)
        except ValueError:
            return False
        now = self._loop.time()
        if not self._allow.has_host(url):
            self._refuse(peer, url, now)
            return False
        if now - self._woken.get(peer, float("-inf")) < WAKE_EVERY_S:
            self._metrics.count(SLOWED)
            return now - self._woken[peer] < WAKE_S
        if not self._bucket.take(1, now):
            self._metrics.count(SLOWED)
            return False
        self._woken.put(peer, now)
        self._metrics.count(WAKES)
        self._spawn(self._call(peer, url))
        return True

    def _refuse(self, peer: NodeId, url: WakeUrl, now: float) -> None:
        self._metrics.count(REFUSED)
        if now - self._refused.get(peer, float("-inf")) >= WAKE_EVERY_S:  # programs may ask a hundred times a second
            self._refused.put(peer, now)
            log.warning("%s sleeps, and wake_allow does not name the host that would wake it: %s", peer.short, url.host)

    async def _call(self, peer: NodeId, url: WakeUrl) -> None:
        own = self._peers.own()
        said = {"wake": str(peer)}
        if own is not None:
            said |= {"by": str(own.id), "record": base64.b64encode(own.encoded).decode()}
        try:
            async with asyncio.timeout(REQUEST_S):
                answer = await request(url, json.dumps(said).encode(), self._allow)
        except (OSError, h11.RemoteProtocolError) as error:  # ssl.SSLError and TimeoutError are OSErrors
            log.warning("%s could not be woken: %s: %s", peer.short, url.host, error or type(error).__name__)
            self._metrics.count(FAILED)
            return
        if (record := record_in(answer)) is not None:
            self._peers.offer(record)


def _is_silent(dial: asyncio.Task[Connection]) -> bool:
    """Return whether a dial got no answer, up to now."""
    return not dial.done() or (not dial.cancelled() and isinstance(dial.exception(), NoPathError | HandshakeTimeout))


def record_in(answer: bytes) -> bytes | None:
    """Return the bytes of the record in an answer, unverified; None without one."""
    try:
        said = json.loads(answer)
        encoded = base64.b64decode(said["record"], validate=True)
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return encoded if 0 < len(encoded) <= MAX_RECORD else None


async def request(url: WakeUrl, body: bytes, allow: Permission) -> bytes:
    """Make the request; return the body of the answer.

    Raises OSError, h11.RemoteProtocolError: no address that is allowed, none that answers, a certificate that does not
    hold, a refusal, or an answer that is none.
    """
    addresses = [address for address in await look_up(url.host) if allow.has_address(address)]
    if not addresses:
        raise ConnectionError("it has no address that wake_allow permits")
    context = await asyncio.to_thread(ssl.create_default_context)
    sock = None
    for address in addresses[:MAX_ADDRESSES]:
        try:
            sock = await connect_tcp(address, url.port)  # a number: nothing is looked up again
            break
        except OSError as error:
            failed = error
    if sock is None:
        raise failed
    reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname=url.host)
    try:
        return await _exchange(url, body, reader, writer)
    finally:
        writer.transport.abort()


async def _exchange(url: WakeUrl, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_WAKE_ANSWER)
    host = url.host if url.port == HTTPS_PORT else f"{url.host}:{url.port}"
    headers = {
        "host": host,
        "user-agent": "meshnode",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
    }
    for part in (h11.Request(method="POST", target=url.path, headers=list(headers.items())), h11.Data(body)):
        writer.write(http.send(part) or b"")
    writer.write(http.send(h11.EndOfMessage()) or b"")
    answer = b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(4096))
        elif isinstance(event, h11.Response) and not 200 <= event.status_code < 300:
            raise ConnectionError(f"it answers {event.status_code}")
        elif isinstance(event, h11.Data):
            answer += event.data
            if len(answer) > MAX_WAKE_ANSWER:
                raise ConnectionError("its answer is too long")
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return answer
