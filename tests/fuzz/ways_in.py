"""Parsers of the ways in: what a member sends to a service, a program of this host to a proxy, and a resolver asks.

Most of these have a second reading of the same bytes, and the target compares the two: h11's of a head, that of bytes
which come one by one, that of what was written.
"""

from __future__ import annotations

import asyncio
import random
import socket
from ipaddress import IPv6Address
from types import SimpleNamespace
from typing import cast

import h11

from meshnode.base.limits import MAX_DATAGRAM_QUEUE, MAX_FLOWS, MAX_PROXY_HEAD
from meshnode.base.metrics import Metrics
from meshnode.base.wake_url import parse_wake_url
from meshnode.base.wire import WireError
from meshnode.daemon.carry import FromClient
from meshnode.daemon.frames import END, WHOLE, frame
from meshnode.daemon.request import known_requests
from meshnode.daemon.request import parse as parse_request
from meshnode.errors import GrantError, InvalidId, MeshError, NotFound
from meshnode.gossip import Gossip, decode_message, encode_message
from meshnode.gossip import messages as m
from meshnode.gossip.entry import DOMAIN as ENTRY
from meshnode.gossip.entry import Kind, sign_entry
from meshnode.gossip.kinds import Member
from meshnode.identity.keys import Identity
from meshnode.quic.flows import FlowTable, encode_datagram
from meshnode.quic.seam import Engine
from meshnode.quic.stream import Stream
from meshnode.runtime.waking import record_in
from meshnode.services.http.heads import Caller, RequestRefused, check_head, for_target, head_end
from meshnode.services.proxy.destination import destination
from meshnode.services.proxy.dns import Query, answer_with, answer_without, read_query
from meshnode.services.proxy.http import HttpClient, request_for
from meshnode.services.proxy.overlay import OverlayNames
from meshnode.services.proxy.socks5 import Handshake
from meshnode.services.proxy.socks_udp import unwrap
from meshnode.services.proxy_protocol import SIGNATURE, proxy_header
from meshnode.trust.chain import verify_chain
from meshnode.trust.grant import sign_grant
from meshnode.trust.succession import DOMAIN as SUCCESSION
from meshnode.trust.succession import is_signed_by_both, open_succession, sign_succession
from tests.fuzz.target import Target, refused

ME, PEER, NEW = (Identity(bytes(31) + bytes([n])) for n in (1, 2, 3))
WALL = 1_700_000_100.0
MS = round(WALL * 1000)
CALLER = Caller("abc", "fd00::1", "laptop", ("dev", "web"))
OURS = {b"meshnode-id": b"abc", b"meshnode-name": b"laptop", b"meshnode-roles": b"dev,web"}
ADDRESS = IPv6Address("fd00::1")
GRANT = sign_grant(
    ME,
    PEER.id,
    roles=("dev",),
    services=None,
    not_before=MS - 1000,
    expires=MS + 10**6,
    delegation=None,
    serial=bytes(8),
)
OVERLAY = OverlayNames(bytes(32))
OVERLAY.address_of("web", PEER.id)


# ---- members, to services


def http_head(data: bytes) -> None:
    """A head that passes is read by h11 as it was here, and reaches the target with one caller in it: the real one."""
    try:
        end = head_end(data)
        if not end:
            return
        check_head(data[:end])
    except RequestRefused:
        return
    server = h11.Connection(h11.SERVER)
    server.receive_data(data[:end])
    try:
        request = server.next_event()
    except h11.RemoteProtocolError:
        return  # the relay answers 400
    assert isinstance(request, h11.Request)
    headers = for_target(list(request.headers.raw_items()), CALLER, b"host")
    try:
        out = h11.Connection(h11.CLIENT).send(
            h11.Request(method=request.method, target=request.target, headers=headers)
        )
    except h11.LocalProtocolError:
        return  # the relay resets the stream
    assert out is not None
    check_head(out)
    said = [(line.split(b":")[0].lower(), line.split(b":", 1)[1].strip()) for line in out[:-4].split(b"\r\n")[1:]]
    for name, text in said:
        plain = name.replace(b"_", b"-")
        assert text == OURS.get(plain, text), (name, text)
    assert [name for name, _ in said if name.startswith(b"x-forwarded")] == [b"x-forwarded-for"]


def datagrams(data: bytes) -> None:
    """DATAGRAM frames of any flow, each behind a byte of its length; flows begin and end between them."""
    engine = cast("Engine", SimpleNamespace(datagrams=SimpleNamespace(supported=True, has_flows=False)))
    table = FlowTable(engine, dirty=lambda: None, dropped=lambda why: None)
    held = {number: table.open(number) for number in (0, 1, 4, 64)}
    at = 0
    while at < len(data):
        size = data[at]
        table.on_datagram(data[at + 1 : at + 1 + size])
        if size == 1:
            table.end(data[at + 1] if at + 1 < len(data) else 0)
        elif size == 2 and (flow := held[0]) is not None and flow.queue:
            flow.take()
        at += 1 + size
    assert 0 <= table.held <= MAX_DATAGRAM_QUEUE + 4 * 2000
    assert len(table) <= MAX_FLOWS
    table.close()


def gossip_core(data: bytes) -> None:
    """A message, or an entry that a member signed with any body, to a whole core: judged, listed, stored."""
    try:
        messages = [decode_message(data)]
    except WireError:
        signed = PEER.sign(ENTRY + data) + data
        messages = [m.Eager(b"", ((0, signed),)), m.Entries(True, (signed,))] if len(signed) < 1300 else []
    core = Gossip(ME, rng=random.Random(1), metrics=Metrics(), now=0.0, wall=WALL)
    core.on_link(PEER.id, True, 0.0)
    core.on_message(PEER.id, m.Neighbour(True, b""), 0.0)
    for message in messages:
        core.on_message(PEER.id, message, 0.0)
    core.tick(1.0, WALL + 1.0)
    core.take_effects()


def succession(data: bytes) -> None:
    """A succession as it is, and signed by the old key, alone and behind a grant."""
    for encoded in (data, PEER.sign(SUCCESSION + data) + data):
        refused(GrantError, open_succession, encoded)
        for subject in (PEER, NEW):
            refused(
                GrantError,
                lambda it, key=subject: verify_chain([GRANT.encoded, it], key.id, ME.id, WALL),  # type: ignore[misc]
                encoded,
            )
        try:
            open_succession(encoded)
        except GrantError:
            continue
        is_signed_by_both(encoded)


def wake(data: bytes) -> None:
    """A URL that a record names, and what the host behind it answers."""
    try:
        url = parse_wake_url(data.decode("latin-1"))
        assert url.path.startswith("/")
        assert set(url.host) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")
    except ValueError:
        pass
    found = record_in(data)
    assert found is None or len(found) <= 1000


# ---- programs of this host


def socks5(data: bytes) -> None:
    """A client's bytes mean the same at once and one by one."""
    whole, parts = Handshake(), Handshake()
    whole.receive(data)
    for byte in data:
        if not parts.is_over:
            parts.receive(bytes([byte]))
    assert (whole.request, whole.error, whole.output) == (parts.request, parts.error, parts.output)
    if whole.request is not None:
        host(whole.request.host.encode())


def socks_udp(data: bytes) -> None:
    found = unwrap(data)
    assert found is None or found[0] + found[3] == data


def proxy_http(data: bytes) -> None:
    """A request that a proxy takes is written again for one host, and h11 reads it as one request."""
    client = HttpClient()
    client.receive(data[: MAX_PROXY_HEAD + 4])
    if client.request is None or client.target is None:
        return
    assert 0 < client.target.port < 65_536
    assert client.target.host
    if client.target.path:
        try:
            out = h11.Connection(h11.CLIENT).send(request_for(client.request, client.target))
        except h11.LocalProtocolError:
            return
        server = h11.Connection(h11.SERVER)
        server.receive_data(out or b"")
        again = server.next_event()
        assert isinstance(again, h11.Request)
        assert dict(again.headers)[b"host"] == client.target.authority.encode()


def host(data: bytes) -> None:
    """A host of the mesh, or none: a refusal in words."""
    try:
        found = destination(data.decode("utf-8", "replace"), 80, OVERLAY)
    except (InvalidId, MeshError):
        return
    assert found.services


def dns(data: bytes) -> None:
    """Every answer is shorter than 512 bytes, is one, and has the question's id."""
    found = read_query(data)
    answers = [found] if isinstance(found, bytes) else []
    if isinstance(found, Query):
        answers = [answer_with(found, ADDRESS), answer_with(found, None), answer_without(found, NotFound("no"))]
    for answer in answers:
        assert len(answer) <= 512
        assert answer[:2] == data[:2]
        assert answer[2] & 0x80


def control_request(data: bytes) -> None:
    refused(MeshError, parse_request, data)


class _Sink:
    """The stream that frames go to."""

    def __init__(self) -> None:
        self.data, self.ended = b"", False

    def write(self, data: memoryview, fin: bool = False) -> None:
        assert not self.ended
        self.data += data

    def stop_reading(self) -> None:
        assert self.ended

    def on_change(self) -> None:
        assert self.ended


class ControlFrames:
    """Frames of a stream over the control socket, from an attached program: they end in order, or as cut off."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def __call__(self, data: bytes) -> None:
        self._loop.run_until_complete(self._take(data))

    async def _take(self, data: bytes) -> None:
        sink = _Sink()
        ends: list[Exception | None] = []

        def on_end(error: Exception | None) -> None:
            sink.ended = True
            ends.append(error)

        up = FromClient(cast("socket.socket", None), cast("Stream", sink), on_end)
        up.go_on = lambda: None  # type: ignore[method-assign]
        cut = len(data) // 2
        for part in (*filter(None, (data[:cut], data[cut:])), b""):
            if not up.is_over:
                up.take(part)
        assert len(sink.data) <= len(data)
        assert up.is_over
        assert all(error is None for error in ends[:-1])


def proxy_protocol(data: bytes) -> None:
    """What a caller chooses of itself stays inside its fields: the header is read back as it was meant."""
    name, _, roles = data.decode("utf-8", "replace").partition(" ")
    out = proxy_header(ADDRESS, ADDRESS, "a" * 52, name[:63], tuple(roles.split()))
    assert out.startswith(SIGNATURE)
    body = out[16:]
    assert int.from_bytes(out[14:16], "big") == len(body)
    at, found = 36, {}
    while at < len(body):
        size = int.from_bytes(body[at + 1 : at + 3], "big")
        found[body[at]] = body[at + 3 : at + 3 + size]
        at += 3 + size
    assert at == len(body)
    assert found[0xE0] == b"a" * 52


HEAD = b"GET /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nmeshnode_id: me\r\nConnection: x, upgrade\r\n\r\n"
QUERY = bytes.fromhex("123401000001000000000001") + b"\3web\6laptop\4mesh\0\0\x1c\0\1\0\0\x29\4\xd0\0\0\0\0\0\0"
LINK = sign_succession(PEER, NEW, time=MS, ends=MS + 10**6)
MEMBER = sign_entry(
    PEER, kind=Kind.MEMBER, name="", seq=MS, issued_ms=MS, ttl=3600, value=Member(False, b"").encoded()
).encoded
known_requests()
WAYS_IN = {
    "http_head": Target(
        http_head, (HEAD, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nX_Forwarded-For: 1\r\n\r\n")
    ),
    "datagrams": Target(
        datagrams, (b"\6" + encode_datagram(64, b"data") + b"\5" + encode_datagram(4, b"more") + b"\1\4",)
    ),
    "gossip_core": Target(
        gossip_core,
        (encode_message(m.Eager(b"", ((0, MEMBER),))), encode_message(m.SyncRequest((1, 2))), MEMBER[64:]),
        share=30,
    ),
    "succession": Target(succession, (LINK, LINK[64:])),
    "wake": Target(wake, (b"https://example.com:443/wake?x=1", b'{"record": "AAAA"}')),
    "socks5": Target(socks5, (b"\5\1\0\5\1\0\3\x0fweb.laptop.mesh\0\x50rest", b"\5\1\0\5\3\0\1\x7f\0\0\1\0\x50")),
    "socks_udp": Target(socks_udp, (b"\0\0\0\3\x0fweb.laptop.mesh\0\x35data", b"\0\0\0\1\x7f\0\0\1\0\x35data")),
    "proxy_http": Target(
        proxy_http,
        (
            b"GET http://web.laptop.mesh/a HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n",
            b"CONNECT web.laptop.mesh:80 HTTP/1.1\r\nHost: b\r\n\r\n",
        ),
    ),
    "host": Target(host, (b"web.laptop.mesh", f"{PEER.id}.mesh".encode(), str(PEER.id.overlay).encode())),
    "dns": Target(dns, (QUERY, QUERY[:12] + b"\4mesh\0\0\1\0\1")),
    "control_request": Target(
        control_request,
        (
            b'{"method": "identify", "arguments": {"peer": "laptop"}}\n',
            b'{"method": "status", "arguments": {}}',
        ),
    ),
    "control_frames": Target(ControlFrames(), (frame(b"data") + END, frame(b"more") + WHOLE)),
    "proxy_protocol": Target(proxy_protocol, (b"laptop dev web",)),
}
