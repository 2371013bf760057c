"""HTTP of the proxy: which requests it takes, what it sends on, and what it answers."""

from __future__ import annotations

import h11
import pytest

from meshnode.base.limits import MAX_PROXY_HEAD
from meshnode.errors import PolicyDenied
from meshnode.services.proxy.destination import NotInMesh
from meshnode.services.proxy.http import HttpClient, Target, request_for, response_for


def asked(head: str, body: bytes = b"") -> HttpClient:
    client = HttpClient()
    client.receive(head.replace("\n", "\r\n").encode("latin-1") + body)
    return client


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("CONNECT web.laptop.mesh:443", Target("web.laptop.mesh", 443)),
        ("CONNECT [fd00::1]:443", Target("fd00::1", 443)),
        ("GET http://web.laptop.mesh", Target("web.laptop.mesh", 80, "/")),
        ("GET http://web.laptop.mesh/a/b?c=d:e", Target("web.laptop.mesh", 80, "/a/b?c=d:e")),
        ("GET http://web.laptop.mesh?c", Target("web.laptop.mesh", 80, "/?c")),
        ("GET HTTP://web.laptop.mesh:8080/", Target("web.laptop.mesh", 8080, "/")),
        ("GET http://[fd00::1]/", Target("fd00::1", 80, "/")),
        ("OPTIONS http://web.laptop.mesh", Target("web.laptop.mesh", 80, "*")),
    ],
)
def test_a_request_for_a_proxy_says_where_it_leads(line: str, target: Target) -> None:
    client = asked(f"{line} HTTP/1.1\nHost: other.example\n\n")
    assert client.error is None
    assert client.target == target


@pytest.mark.parametrize(
    "line",
    [
        "GET /",  # what a web page sends whose name was rebound to this host
        "POST /transmission/rpc",
        "OPTIONS *",
        "GET https://web.laptop.mesh/",
        "GET ftp://web.laptop.mesh/",
        "GET web.laptop.mesh:80",
        "GET http://user:password@web.laptop.mesh/",
        "GET http://web.laptop.mesh:0/",
        "GET http://web.laptop.mesh:65536/",
        "GET http://web.laptop.mesh:8x/",
        "GET http://web.laptop.mesh:/",
        "GET http:///path",
        "GET http://web.laptop.mesh/#there",
        "GET http://[fd00::1/",
        "GET http://fd00::1/",
        "GET http://evil.example\\.laptop.mesh/",
        "GET http://web%2elaptop.mesh/",
        "CONNECT web.laptop.mesh",
        "CONNECT web.laptop.mesh:443/",
        "CONNECT http://web.laptop.mesh:443",
        "CONNECT :443",
    ],
)
def test_any_other_request_is_400_and_no_tunnel(line: str) -> None:
    client = asked(f"{line} HTTP/1.1\nHost: web.laptop.mesh\n\n")
    assert client.target is None
    assert client.error is not None
    response = client.refused(client.error)
    assert response.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nConnection: close\r\n" in response
    assert b"no web server" in response


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: 3\nTransfer-Encoding: chunked",
        "Content-Length: 3\nContent-Length: 4",
        "Content-Length: -1",
        "Transfer-Encoding: gzip",
        "Host: b.mesh",  # a second one
        "X: a\rY: b",
        "X: a\0b",
        "X : a",
        "X",
    ],
)
def test_headers_that_two_programs_could_read_differently_are_refused(headers: str) -> None:
    client = asked(f"POST http://web.laptop.mesh/ HTTP/1.1\nHost: a.mesh\n{headers}\n\n")
    assert client.request is None
    assert client.error is not None
    assert 400 <= client.error.status < 600
    assert client.refused(client.error).startswith(b"HTTP/1.1 %d " % client.error.status)


@pytest.mark.parametrize("header", ["Content-Length: 3", "Transfer-Encoding: chunked"])
def test_connect_has_no_body(header: str) -> None:
    assert asked(f"CONNECT web.laptop.mesh:1 HTTP/1.1\nHost: a\n{header}\n\n").error is not None


def test_a_head_that_does_not_end_is_refused_at_its_bound() -> None:
    client = asked("GET http://web.laptop.mesh/ HTTP/1.1\n")
    line = b"X: " + b"a" * 1_000 + b"\r\n"
    sent = 0
    while not client.is_over:
        client.receive(line)
        sent += len(line)
        assert sent < MAX_PROXY_HEAD + 2 * len(line)
    assert client.error is not None
    assert client.error.status == 431


def test_nothing_is_asked_until_the_head_is_whole() -> None:
    client = HttpClient()
    for byte in b"CONNECT a.mesh:1 HTTP/1.1\r\nHost: a.mesh:1\r\n\r":
        client.receive(bytes([byte]))
        assert not client.is_over
    client.receive(b"\nrest")
    assert client.target == Target("a.mesh", 1)
    assert client.tunnelled() == (b"HTTP/1.1 200 Connection established\r\n\r\n", b"rest")


def sent_on(headers: str, line: str = "GET http://web.laptop.mesh/x HTTP/1.1") -> dict[bytes, bytes]:
    client = asked(f"{line}\nHost: evil.example\n{headers}\n\n")
    assert client.request is not None
    assert client.target is not None
    found = request_for(client.request, client.target)
    assert found.target == b"/x"
    raw = found.headers.raw_items()
    assert len({name.lower() for name, _ in raw}) == len(raw)
    return dict(raw)


def test_a_request_is_sent_on_in_origin_form_with_the_host_of_its_target() -> None:
    found = sent_on("User-Agent: test\nX-Kept: 1")
    assert found == {
        b"Host": b"web.laptop.mesh",
        b"User-Agent": b"test",
        b"X-Kept": b"1",
        b"Via": b"1.1 meshnode",
        b"Connection": b"close",
    }
    assert sent_on("", "GET http://a.mesh:8080/x HTTP/1.1")[b"Host"] == b"a.mesh:8080"


def test_headers_for_the_proxy_alone_are_not_sent_on() -> None:
    hop = "Proxy-Authorization: Basic c2VjcmV0\nKeep-Alive: 1\nTE: trailers\nUpgrade: h2c\nX-Hop: 1\nX-Kept: 1"
    found = sent_on(f"Connection: x-hop, Upgrade\n{hop}")
    assert {name.lower() for name in found} == {b"host", b"x-kept", b"via", b"connection"}


def test_connection_cannot_take_the_framing_out() -> None:
    found = sent_on("Connection: content-length, host\nContent-Length: 3")
    assert found[b"Content-Length"] == b"3"
    assert found[b"Host"] == b"web.laptop.mesh"


def test_obsolete_folding_is_joined_before_it_is_sent_on() -> None:
    assert sent_on("X-Kept: a\n b")[b"X-Kept"] == b"a b"


def test_a_response_has_one_framing_and_no_headers_of_the_hop() -> None:
    response = h11.Response(
        status_code=200,
        headers=[("Transfer-Encoding", "chunked"), ("Content-Length", "3"), ("Keep-Alive", "9"), ("Set-Cookie", "a")],
    )
    found = dict(response_for(response).headers.raw_items())
    assert found == {b"Transfer-Encoding": b"chunked", b"Set-Cookie": b"a", b"Connection": b"close"}


def test_a_refusal_says_why_in_the_status_a_header_and_the_text() -> None:
    client = asked("CONNECT 127.0.0.1:22 HTTP/1.1\nHost: a\n\n")
    text = client.refused(NotInMesh("127.0.0.1 is no host of the mesh", hint="write so"))
    head, _, body = text.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 ")
    assert b'Proxy-Status: meshnode; error=http_request_denied; details="not_in_mesh"' in head
    assert body == b"127.0.0.1 is no host of the mesh\nhint: write so\n"
    assert asked("CONNECT a.mesh:1 HTTP/1.1\nHost: a\n\n").refused(PolicyDenied("no")).startswith(b"HTTP/1.1 403 ")


def test_a_refusal_of_head_has_no_body() -> None:
    client = asked("HEAD http://a.mesh/ HTTP/1.1\nHost: a\n\n")
    assert client.refused(PolicyDenied("no")).endswith(b"\r\n\r\n")
