"""The bytes of PCP, NAT-PMP, SSDP and SOAP, laid out by hand after the figures of their specifications."""

from __future__ import annotations

import http.client
import io

import pytest

from meshnode.base.address import Addr
from meshnode.nat.portmap import http as mesh_http
from meshnode.nat.portmap import natpmp, pcp, soap, ssdp, xml
from meshnode.nat.portmap.ssdp import Url

NONCE = bytes(range(12))
ROUTER = "192.168.1.1"
BASE = Url(Addr(ROUTER, 5000), "/rootDesc.xml")

# RFC 6887 figure 2 (request header) and figure 9 (MAP request)
PCP_REQUEST = bytes.fromhex(
    "02 01 0000 00001c20"  # version 2, MAP, 7,200 s
    "00000000000000000000ffff c0a80117"  # ::ffff:192.168.1.23
    "000102030405060708090a0b 11 000000"  # nonce, UDP
    "1092 1092 00000000000000000000ffff 00000000"  # 4242, suggested 4242 at 0.0.0.0
)
# figure 3 (response header) and figure 10 (MAP response)
PCP_REPLY = bytes.fromhex(
    "02 81 00 00 00000e10 00003039 000000000000000000000000"  # SUCCESS, 3,600 s, epoch 12,345
    "000102030405060708090a0b 11 000000"
    "1092 a000 00000000000000000000ffff cb007105"  # 40960 at 203.0.113.5
)
PCP_ANNOUNCE = bytes.fromhex("02 80 00 00 00000000 00000007 000000000000000000000000")
# RFC 6886 sections 3.2 and 3.3
NATPMP_ADDRESS = bytes.fromhex("00 80 0000 00003039 cb007105")
NATPMP_MAP_REQUEST = bytes.fromhex("00 01 0000 1092 1092 00001c20")
NATPMP_MAP_REPLY = bytes.fromhex("00 81 0000 00003039 1092 a000 00000e10")


def test_a_pcp_map_request_is_laid_out_as_the_rfc_draws_it() -> None:
    request = pcp.map_request(NONCE, Addr("192.168.1.23", 4242), Addr("0.0.0.0", 4242), 7_200)
    assert request == PCP_REQUEST
    assert len(request) == 60


def test_a_pcp_request_for_an_ipv6_address_carries_it_whole() -> None:
    request = pcp.map_request(NONCE, Addr("2001:db8::17", 4242), None, 0)
    assert request[8:24] == bytes.fromhex("20010db8000000000000000000000017")
    assert request[44:] == bytes(16), "any address: all zeros in IPv6"
    assert request[4:8] == bytes(4), "a deletion"


def test_pcp_replies_are_read() -> None:
    expected = pcp.MapReply(0, 3_600, 12_345, NONCE, 17, 4242, Addr("203.0.113.5", 40_960))
    assert pcp.parse(PCP_REPLY) == expected
    assert pcp.parse(PCP_REPLY + bytes.fromhex("02000004 00000000")) == expected, "options behind it"
    assert pcp.parse(PCP_ANNOUNCE) == pcp.Announcement(0, 7)
    assert pcp.result_name(2) == "NOT_AUTHORIZED"
    assert pcp.result_name(200) == "result 200"


def test_a_router_of_another_version_is_told_from_a_mute_one() -> None:
    assert pcp.parse(bytes.fromhex("01 81 00 01 00000000 00000000 000000000000000000000000")) == pcp.Unversed(1)
    assert pcp.parse(bytes.fromhex("02 81 00 01 00000000 00000000 000000000000000000000000")) == pcp.Unversed(2)
    natpmp_says = natpmp.parse(bytes.fromhex("00 81 0001 00003039"))
    assert natpmp_says.result == pcp.UNSUPPORTED_VERSION


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02",
        PCP_REQUEST,  # a request is no response
        PCP_REPLY[:59],
        PCP_REPLY[:24],  # a MAP response without MAP
        PCP_REPLY + b"\x00",  # not in fours
        PCP_REPLY + bytes(1_100),
        b"\x03" + PCP_REPLY[1:],  # another version that does not say so
        b"\x02\x82" + PCP_REPLY[2:],  # PEER
    ],
)
def test_what_is_no_pcp_response_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        pcp.parse(data)


def test_natpmp_is_laid_out_as_the_rfc_draws_it() -> None:
    assert natpmp.address_request() == b"\x00\x00"
    assert natpmp.map_request(4242, 4242, 7_200) == NATPMP_MAP_REQUEST
    assert natpmp.parse(NATPMP_ADDRESS) == natpmp.AddressReply(0, 12_345, "203.0.113.5")
    assert natpmp.parse(NATPMP_MAP_REPLY) == natpmp.MapReply(0, 12_345, 4242, 40_960, 3_600)
    refused = natpmp.parse(bytes.fromhex("00 81 0002 00003039 1092 0000 00000000"))
    assert natpmp.result_name(refused.result) == "NOT_AUTHORIZED"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x80",
        NATPMP_MAP_REQUEST,
        NATPMP_ADDRESS[:11],
        NATPMP_ADDRESS + b"\x00",
        NATPMP_MAP_REPLY[:15],
        b"\x01" + NATPMP_ADDRESS[1:],
        b"\x00\x82" + NATPMP_MAP_REPLY[2:],  # TCP
    ],
)
def test_what_is_no_natpmp_response_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        natpmp.parse(data)


# ---- SSDP


def answer(location: str, target: str = ssdp.TARGETS[1]) -> bytes:
    return f"HTTP/1.1 200 OK\r\nSt: {target}\r\nLOCATION:  {location}\r\nEXT:\r\n\r\n".encode("latin-1")


def test_a_search_names_its_group_and_its_target() -> None:
    text = ssdp.search(ssdp.TARGETS[0]).decode()
    assert text.startswith("M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n")
    assert "ST: urn:schemas-upnp-org:device:InternetGatewayDevice:2\r\n" in text
    assert text.endswith("\r\n\r\n")


def test_an_answer_to_a_search_is_read_whatever_the_case_of_its_headers() -> None:
    assert ssdp.parse(answer(str(BASE))) == ssdp.SearchReply(ssdp.TARGETS[1], str(BASE))


@pytest.mark.parametrize(
    "data", [b"H", b"HTTP/1.1 404 No\r\n\r\n", b"HTTP/1.1 200 OK\r\nST: x\r\n\r\n", answer("x" * 4_000)]
)
def test_what_is_no_answer_to_a_search_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        ssdp.parse(data)


def test_places_on_the_router_are_found_absolute_and_relative() -> None:
    assert ssdp.on_router("http://192.168.1.1:5000/rootDesc.xml", ROUTER) == BASE
    assert ssdp.on_router("http://192.168.1.1", ROUTER) == Url(Addr(ROUTER, 80), "/")
    assert ssdp.on_router("/ctl?a=1", ROUTER, BASE) == Url(Addr(ROUTER, 5000), "/ctl?a=1")
    assert ssdp.on_router("ctl", ROUTER, BASE) == Url(Addr(ROUTER, 5000), "/ctl")


@pytest.mark.parametrize(
    "text",
    [
        "http://192.168.1.2:5000/",  # another host
        "http://10.0.0.1/",
        "http://127.0.0.1:5000/",
        "http://router.lan/",  # a name could be any host
        "http://192.168.1.1@10.0.0.1/",
        "http://user@192.168.1.1/",
        "http://192.168.1.1.evil.example/",
        "http://3232235777/",  # the same number, but not as an address is written
        "https://192.168.1.1/",
        "ftp://192.168.1.1/",
        "file:///etc/passwd",
        "//10.0.0.1/x",
        "http://192.168.1.1:0/",
        "http://192.168.1.1:99999/",
        "http://192.168.1.1:x/",
        "http://[192.168.1.1/",
        "http://192.168.1.1/a b",
        "http://192.168.1.1/ü",
        'http://192.168.1.1/"',
        "http://192.168.1.1/" + "a" * 600,
    ],
)
def test_places_elsewhere_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        ssdp.on_router(text, ROUTER)
    with pytest.raises(ValueError):
        ssdp.on_router(text, ROUTER, BASE)


def test_a_path_cannot_smuggle_a_header_into_the_request() -> None:
    for evil in ("/a\r\nX: y", "/a\nX: y", "/a\tb", "/%0d%0a"):
        try:
            url = ssdp.on_router(evil, ROUTER, BASE)
        except ValueError:
            continue
        assert soap.get(url).count(b"\r\n") == 4
        assert b" HTTP/1.1\r\nHost: 192.168.1.1:5000\r\n" in soap.get(url)


# ---- XML and SOAP

DESCRIPTION = """<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major></specVersion>%s
<device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType>
<deviceList><device><deviceList><device><serviceList>
<service><serviceType>urn:schemas-upnp-org:service:WANPPPConnection:1</serviceType><controlURL>/ppp</controlURL></service>
<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><controlURL>/ip</controlURL></service>
<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:2</serviceType>
<controlURL>http://10.9.9.9/steal</controlURL></service>
<service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType><controlURL>/l3</controlURL></service>
</serviceList></device></deviceList></device></deviceList></device></root>"""
BOMB = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;&lol;&lol;">]>
<root>&lol2;</root>"""
EXTERNAL = '<?xml version="1.0"?><!DOCTYPE x SYSTEM "http://10.9.9.9/x.dtd"><root/>'


def test_a_description_gives_the_wan_connections_on_the_router_itself() -> None:
    found = soap.services((DESCRIPTION % "").encode(), BASE)
    assert [(service.type.rpartition("service:")[2], str(service.control)) for service in found] == [
        ("WANIPConnection:1", "http://192.168.1.1:5000/ip"),
        ("WANPPPConnection:1", "http://192.168.1.1:5000/ppp"),
    ]
    base = DESCRIPTION % "<URLBase>http://192.168.1.1:81/</URLBase>"
    assert soap.services(base.encode(), BASE)[0].control.addr.port == 81
    with pytest.raises(ValueError):
        soap.services((DESCRIPTION % "<URLBase>http://10.9.9.9/</URLBase>").encode(), BASE)


@pytest.mark.parametrize(
    "document",
    [
        BOMB.encode(),
        BOMB.replace("?>", ' encoding="utf-16"?>', 1).encode("utf-16"),
        EXTERNAL.encode(),
        b"<!DOCTYPE x><x/>",
        b"",
        b"\xff\xfe",
        b"<a>",
        b"<a></b>",
        b"<a/><b/>",
        b'<?xml version="1.0" encoding="nonsense"?><a/>',
        b"<a>" * 60 + b"</a>" * 60,
        b"<a>" + b" " * 70_000 + b"</a>",
        b"<a>&undefined;</a>",
        b"no XML",
    ],
)
def test_dangerous_or_broken_xml_is_refused(document: bytes) -> None:
    with pytest.raises(ValueError):
        xml.parse(document)


def test_actions_are_posted_with_their_arguments_in_the_order_of_the_standard() -> None:
    service = soap.Service(soap.WAN_SERVICES[1], Url(Addr(ROUTER, 5000), "/ip"))
    head, _, body = soap.add_mapping(service, 4242, "192.168.1.23", 4243, 1_200, any_port=False).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /ip HTTP/1.1"
    assert f"Content-Length: {len(body)}" in lines
    assert 'SOAPAction: "urn:schemas-upnp-org:service:WANIPConnection:1#AddPortMapping"' in lines
    names = [element.name for element in xml.parse(body).walk() if element.name.startswith("New")]
    assert names == [
        "NewRemoteHost",
        "NewExternalPort",
        "NewProtocol",
        "NewInternalPort",
        "NewInternalClient",
        "NewEnabled",
        "NewPortMappingDescription",
        "NewLeaseDuration",
    ]
    assert (xml.parse(body).find("NewInternalClient"), xml.parse(body).find("NewExternalPort")) == (
        "192.168.1.23",
        "4242",
    )


FAULT = b"""<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault>
<faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>
<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>718</errorCode></UPnPError></detail></s:Fault></s:Body>
</s:Envelope>"""


def test_answers_and_faults_are_read() -> None:
    result = b'<u:R xmlns:u="y"><NewReservedPort>77</NewReservedPort></u:R>'
    good = b'<e:Envelope xmlns:e="x"><e:Body>' + result + b"</e:Body></e:Envelope>"
    assert soap.parse(200, good).values["NewReservedPort"] == "77"
    assert soap.parse(500, FAULT).error == soap.CONFLICT
    with pytest.raises(ValueError):
        soap.parse(500, good)
    assert soap.parse(500, FAULT.replace(b"718", b"0")).error != 0, "an error of 0 is still an error"


# ---- HTTP

BROKEN = [
    b"",
    b"junk",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 abc\r\n\r\n",
    b"HTTP/2 200\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<a/>",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n<a/>",
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 3\r\n\r\n<a/>",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n<a/>",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n<a/>\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n<a/>xx0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-4\r\n<a/>\r\n0\r\n\r\n",
]
WHOLE = [
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\n<a/>",
    b"HTTP/1.1 500 Internal Server Error\r\nCONTENT-LENGTH:  4 \r\nServer: x:y\r\n\r\n<a/> and more",
    b"HTTP/1.1 200\r\nTransfer-Encoding: Chunked\r\n\r\n2;a=b\r\n<a\r\n02\r\n/>\r\n0\r\nTrailer: x\r\n\r\n",
]


class Received:
    """Bytes that the standard library reads a response from."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.raw)


@pytest.mark.parametrize("raw", WHOLE)
def test_a_response_is_read_as_the_standard_library_reads_it(raw: bytes) -> None:
    other = http.client.HTTPResponse(Received(raw))  # type: ignore[arg-type]
    other.begin()
    assert mesh_http.parse(raw) == (other.status, other.read())


@pytest.mark.parametrize("raw", BROKEN)
def test_a_broken_response_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):
        mesh_http.parse(raw)


def test_a_response_that_says_its_length_is_whole_when_it_is_there() -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<a/>"
    assert [mesh_http.whole(raw[:n]) for n in (0, 20, len(raw) - 4, len(raw))] == [None, None, len(raw), len(raw)]
    assert mesh_http.whole(WHOLE[1]) is None
    assert mesh_http.whole(WHOLE[3]) is None
