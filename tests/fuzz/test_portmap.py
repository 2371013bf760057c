"""Whatever a router, or a host that pretends to be it, sends to the mapping client: no exception, a bounded effort."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.base.address import Addr
from meshnode.nat.portmap import http as mesh_http
from meshnode.nat.portmap import natpmp, pcp, soap, ssdp, xml
from tests.fuzz.test_parsers import mutated
from tests.unit.portmap_bench import OWN, ROUTE, ROUTE6, ROUTER, Bench, Router
from tests.unit.test_portmap_codecs import WHOLE

fuzz = settings(max_examples=300, derandomize=True)
PCP = bytes.fromhex(
    "02810000 00000e10 00003039 000000000000000000000000 000102030405060708090a0b 11000000"
    "1092a000 00000000000000000000ffffcb007105"
)
SSDP = (
    b"HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n"
    b"LOCATION: http://192.168.1.1:5000/d.xml\r\n\r\n"
)
VALID = (
    PCP,
    PCP[:24],
    struct.pack("!BBHI4s", 0, 0x80, 0, 5, b"\xcb\x00\x71\x05"),
    struct.pack("!BBHIHHI", 0, 0x81, 0, 5, 4242, 4242, 7_200),
    SSDP,
)
DOCUMENTS = (
    b'<?xml version="1.0"?><root><URLBase>http://192.168.1.1/</URLBase><service><serviceType>'
    b"urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><controlURL>/c</controlURL></service></root>",
    b"<a><NewExternalIPAddress>203.0.113.5</NewExternalIPAddress><errorCode>718</errorCode></a>",
)
BASE = ssdp.Url(Addr(ROUTER, 5000), "/d.xml")


@fuzz
@given(st.one_of(st.binary(max_size=80), mutated(*VALID)))
def test_codecs_raise_nothing_but_value_error(data: bytes) -> None:
    for parse in (pcp.parse, natpmp.parse, ssdp.parse):
        try:
            parse(data)
        except ValueError:
            pass


@fuzz
@given(st.one_of(st.binary(max_size=200), mutated(*DOCUMENTS)))
def test_documents_raise_nothing_but_value_error(data: bytes) -> None:
    for read in (xml.parse, lambda body: soap.parse(500, body), lambda body: soap.services(body, BASE)):
        try:
            read(data)
        except ValueError:
            pass


@fuzz
@given(st.one_of(st.binary(max_size=200), mutated(*WHOLE)))
def test_http_raises_nothing_but_value_error(raw: bytes) -> None:
    mesh_http.whole(raw)
    try:
        _, body = mesh_http.parse(raw)
    except ValueError:
        return
    assert len(body) <= len(raw)


@fuzz
@given(st.text(max_size=60))
def test_urls_raise_nothing_but_value_error_and_stay_on_the_router(text: str) -> None:
    for candidate in (text, f"http://{text}", f"http://{ROUTER}{text}", f"//{text}"):
        try:
            url = ssdp.on_router(candidate, ROUTER, BASE)
        except ValueError:
            continue
        assert url.addr.host == ROUTER
        assert soap.get(url).count(b"\r\n") == 4


class Fuzzed(Router):
    """A router whose every answer is damaged by the next change in a list."""

    def __init__(self, kind: str, changes: list[tuple[int, int]]) -> None:
        super().__init__(pcp=kind == "pcp", nat_pmp=kind == "nat-pmp", upnp=2 if kind == "upnp" else 0)
        self.changes = changes

    def damage(self, data: bytes | None) -> bytes | None:
        if data is None or not self.changes:
            return data
        at, value = self.changes.pop()
        return data[: at % (len(data) + 1)] + bytes([value]) + data[at % (len(data) + 1) + 1 :]

    def datagram(self, data: bytes, host: str, now: float) -> bytes | None:
        return self.damage(super().datagram(data, host, now))

    def search(self, data: bytes) -> bytes | None:
        return self.damage(super().search(data))

    def http(self, request: bytes, now: float) -> tuple[int, bytes]:
        status, body = super().http(request, now)
        return status, self.damage(body) or b""


@settings(max_examples=150, derandomize=True)
@given(
    st.sampled_from(["pcp", "nat-pmp", "upnp"]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=12),
    st.lists(st.one_of(st.binary(max_size=70), mutated(*VALID)), max_size=12),
)
def test_a_damaged_conversation_neither_raises_nor_floods(
    kind: str, changes: list[tuple[int, int]], junk: list[bytes]
) -> None:
    bench = Bench(Fuzzed(kind, changes))
    bench.routes(ROUTE, ROUTE6)
    for data in junk:
        bench.receive(data, Addr(ROUTER, 5351))
        bench.receive(data, Addr(ROUTER, 1900))
        bench.announce(data, Addr(ROUTER, 5351))
        bench.advance(0.7)
    bench.advance(100)
    assert len(bench.sent) + len(bench.fetched) < 120
    assert {to.host for _, to, _ in bench.sent} <= {ROUTER, ROUTE6.router, "239.255.255.250"}
    assert {to.host for _, to, _ in bench.fetched} <= {ROUTER}
    for mapping in bench.mapper.mappings():
        assert mapping.internal.host in (OWN, ROUTE6.internal)
    bench.withdraw()
    bench.advance(10)
    assert bench.mapper.is_idle
