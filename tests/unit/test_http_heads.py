"""Heads of HTTP requests: what parsers could read differently is refused, and no caller says itself which it is."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest

from meshnode.errors import ConfigError
from meshnode.services.ends import End, parse_target
from meshnode.services.http.heads import (
    MAX_HEAD,
    MAX_HEADERS,
    Caller,
    RequestRefused,
    check_head,
    for_caller,
    for_target,
    head_end,
    wants_websocket,
)
from meshnode.services.proxy_protocol import FOR_CHECKS, proxy_header
from meshnode.services.setting import Setting

CALLER = Caller("abc", "fd00::1", "laptop", ("dev", "web"))
KNOWN = [
    (b"Meshnode-Id", b"abc"),
    (b"X-Forwarded-For", b"fd00::1"),
    (b"Meshnode-Name", b"laptop"),
    (b"Meshnode-Roles", b"dev,web"),
]


def head(*lines: str, first: str = "GET / HTTP/1.1", host: str = "Host: a") -> bytes:
    return "\r\n".join([first, *([host] if host else []), *lines, "", ""]).encode("latin-1")


@pytest.mark.parametrize(
    "good",
    [
        head(),
        head("Content-Length: 0"),
        head("Transfer-Encoding: CHUNKED"),
        head("X:", "Y: \t a b\t ", "Expect: 100-Continue", "Z: \xff"),
        head(first="OPTIONS * HTTP/1.1"),
        head(first="PROPFIND /a?b#c HTTP/1.0", host=""),
    ],
)
def test_ordinary_requests_pass(good: bytes) -> None:
    assert head_end(good) == len(good)
    check_head(good)


REFUSED = {
    "Content-Length and Transfer-Encoding": (400, head("Content-Length: 5", "Transfer-Encoding: chunked")),
    "two lengths": (400, head("Content-Length: 5", "Content-Length: 6")),
    "two equal lengths": (400, head("Content-Length: 5", "content-length: 5")),
    "lengths in one": (400, head("Content-Length: 5, 5")),
    "a signed length": (400, head("Content-Length: +5")),
    "a length in hex": (400, head("Content-Length: 0x5")),
    "an empty length": (400, head("Content-Length:")),
    "an endless length": (400, head("Content-Length: " + "9" * 19)),
    "two codings": (400, head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked")),
    "another coding": (400, head("Transfer-Encoding: gzip, chunked")),
    "identity": (400, head("Transfer-Encoding: identity")),
    "a coding with a tab": (400, head("Transfer-Encoding: \x0bchunked")),
    "a coding of old": (400, head("Transfer-Encoding: chunked", first="POST / HTTP/1.0")),
    "a folded line": (400, head("X: a", " b")),
    "a folded line with a tab": (400, head("X: a", "\tb")),
    "a space before the colon": (400, head("Content-Length : 5")),
    "no colon": (400, head("X")),
    "no name": (400, head(": x")),
    "a bare CR": (400, head("X: a\rContent-Length: 5")),
    "a zero": (400, head("X: a\0b")),
    "a name with a space": (400, head("X Y: a")),
    "two spaces": (400, head(first="GET  / HTTP/1.1")),
    "a tab": (400, head(first="GET\t/ HTTP/1.1")),
    "a request of 0.9": (400, head(first="GET /")),
    "HTTP/2": (505, head(first="PRI * HTTP/2.0")),
    "another URL": (400, head(first="GET http://b/ HTTP/1.1")),
    "a tunnel": (400, head(first="CONNECT a:80 HTTP/1.1")),
    "a star": (400, head(first="GET * HTTP/1.1")),
    "an empty line first": (400, b"\r\n" + head()),
    "two hosts": (400, head("Host: b")),
    "no host": (400, head(host="")),
    "an expectation": (417, head("Expect: 200-ok")),
    "many headers": (431, head(*("X: a" for _ in range(MAX_HEADERS)))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_be_read_in_two_ways_is_refused(case: str) -> None:
    status, text = REFUSED[case]
    with pytest.raises(RequestRefused) as caught:
        check_head(text)
    assert caught.value.status == status


@pytest.mark.parametrize("text", [b"GET / HTTP/1.1\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nX: a\n\n", b"G\n"])
def test_a_line_that_ends_without_cr_is_refused_as_soon_as_it_comes(text: bytes) -> None:
    with pytest.raises(RequestRefused) as caught:
        head_end(text)
    assert caught.value.status == 400


def test_a_head_that_never_ends_is_refused() -> None:
    assert head_end(b"GET / HTTP/1.1\r\nX: " + b"a" * 1000) == 0
    with pytest.raises(RequestRefused) as caught:
        head_end(b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD)
    assert caught.value.status == 431
    assert head_end(head() + b"body\n" * MAX_HEAD) == len(head()), "a body is no head"


@pytest.mark.parametrize(
    "name",
    [
        "Meshnode-Id",
        "MESHNODE-ID",
        "meshnode_id",
        "Meshnode.Roles",
        "meshnode-Name",
        "Meshnode-Anything",
        "X-Forwarded-For",
        "x_forwarded_for",
        "X-Forwarded-Host",
        "Forwarded",
        "X-Real-IP",
        "Remote_User",
        "Content_Length",
        "Transfer_Encoding",
        "Keep-Alive",
        "Proxy-Authorization",
        "TE",
        "Upgrade",
    ],
)
def test_a_caller_cannot_say_itself_where_it_comes_from(name: str) -> None:
    headers = [(b"Host", b"a"), (name.encode(), b"forged"), (b"X-Mine", b"kept"), (b"Mine_Too", b"kept")]
    assert for_target(headers, CALLER, b"") == [(b"Host", b"a"), (b"X-Mine", b"kept"), (b"Mine_Too", b"kept"), *KNOWN]


def test_connection_takes_away_what_it_names_and_never_what_this_node_says() -> None:
    headers = [(b"host", b"a"), (b"Connection", b"close, X-Hop, Meshnode-Id, Content-Length"), (b"x-hop", b"1")]
    found = for_target([*headers, (b"Content-Length", b"3")], CALLER, b"")
    assert found == [(b"host", b"a"), (b"Content-Length", b"3"), *KNOWN]


def test_a_request_without_a_host_gets_the_services() -> None:
    assert for_target([], Caller("abc", "fd00::1", "", ()), b"web") == [(b"Host", b"web"), *KNOWN[:2]]


def test_only_a_websocket_may_change_the_protocol() -> None:
    asked = [(b"Host", b"a"), (b"Connection", b"keep-alive, Upgrade"), (b"Upgrade", b"WebSocket")]
    assert wants_websocket(asked)
    changed = [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    assert for_target(asked, CALLER, b"") == [(b"Host", b"a"), *changed, *KNOWN]
    for other in (b"h2c", b"websocket, h2c", b"TLS/1.0"):
        h2c = [
            (b"Host", b"a"),
            (b"Connection", b"Upgrade, HTTP2-Settings"),
            (b"Upgrade", other),
            (b"HTTP2-Settings", b"x"),
        ]
        assert for_target(h2c, CALLER, b"") == [(b"Host", b"a"), *KNOWN]
    assert not wants_websocket([(b"Upgrade", b"websocket")])


def test_a_response_loses_what_is_of_one_hop() -> None:
    headers = [
        (b"Connection", b"close, X"),
        (b"X", b"1"),
        (b"Keep-Alive", b"5"),
        (b"Content-Length", b"3"),
        (b"ETag", b"e"),
    ]
    assert for_caller(headers) == [(b"Content-Length", b"3"), (b"ETag", b"e")]


def test_the_proxy_protocol_says_which_node_calls() -> None:
    caller, own = IPv6Address("fd00::1"), IPv6Address("fd00::2")
    assert proxy_header(caller, own, "id", "", ("a", "b")) == (
        b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00\x2f"
        + caller.packed
        + own.packed
        + b"\0\0\0\0"
        + b"\xe0\0\x02id"
        + b"\xe2\0\x03a,b"
    )
    assert FOR_CHECKS == b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"
    long = proxy_header(caller, own, "id", "n", ("r" * 1025,))
    assert long == proxy_header(caller, own, "id", "n", ())


def test_http_targets_are_of_one_kind() -> None:
    assert parse_target("http://h:80/") == End("h", 80, http=True)
    assert parse_target("http+unix:/run/x") == End(path="/run/x", http=True)
    assert Setting("a", ("http://h:80", "http+unix:/x")).checked().targets == ("http://h:80", "http+unix:/x")
    with pytest.raises(ConfigError, match="others are not"):
        Setting("a", ("http://h:80", "h:81")).checked()
    for text in ("http://h", "http://h:80/path", "https://h:443"):
        with pytest.raises(ConfigError):
            parse_target(text)
