"""Heads of requests: only those that every parser reads alike pass, and what they say of the caller is replaced.

A request that two parsers divide differently carries a second one past the first of them (request smuggling: RFC 9112
section 11.2). So what the RFC lets a recipient repair, or leaves to it, is refused here: line ends without CR, folded
lines, space before a colon, Content-Length twice or beside Transfer-Encoding, any coding but chunked. Sans I/O.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from meshnode.base.value import value

MAX_HEAD = 16_384  # bytes of a request's head
MAX_HEADERS = 100
TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
HEADER = re.compile(rb"(" + TOKEN + rb"):[ \t]*([\x20-\x7e\x80-\xff\t]*?)[ \t]*")
LENGTH = re.compile(rb"[0-9]{1,18}")

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer upgrade".split()
)  # RFC 9110 section 7.6.1
KEPT = frozenset(b"host content-length transfer-encoding expect".split())  # also where Connection names them
FORGED = re.compile(rb"meshnode-.*|x-forwarded-.*|forwarded|x-real-ip|x-client-ip|true-client-ip|remote-.*", re.DOTALL)
FRAMING = frozenset(b"content-length transfer-encoding host connection".split())
NO_LETTER = re.compile(rb"[^a-z0-9]")
ID, NAME, ROLES, ADDRESS = b"Meshnode-Id", b"Meshnode-Name", b"Meshnode-Roles", b"X-Forwarded-For"

Headers = Sequence[tuple[bytes, bytes]]


class RequestRefused(Exception):
    """A request that is not passed on; ``status`` is what its sender is told."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@value
class Caller:
    """The node that calls, as its target is told: ``name`` is "" for a node without one."""

    id: str
    address: str
    name: str
    roles: tuple[str, ...]

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that say so."""
        found = [(ID, self.id.encode()), (ADDRESS, self.address.encode())]
        if self.name:
            found.append((NAME, self.name.encode()))
        if self.roles:
            found.append((ROLES, ",".join(self.roles).encode()))
        return found


def head_end(buffer: bytes) -> int:
    """Return where the head at the beginning of a buffer ends; 0 while that is not there yet.

    Raises RequestRefused for one that is too long, or has a line that ends without CR.
    """
    end = buffer.find(b"\r\n\r\n") + 4
    head = buffer[:end] if end > 3 else buffer
    if len(head) > MAX_HEAD:
        raise RequestRefused(431, "its head is too long")
    if head.count(b"\n") != head.count(b"\r\n"):
        raise RequestRefused(400, "a line ends without CR")
    return end if end > 3 else 0


def check_head(head: bytes) -> None:
    """Raise RequestRefused for a head, its end included, that parsers may read differently."""
    first, *lines = head[:-4].split(b"\r\n")
    found = REQUEST_LINE.fullmatch(first)
    if found is None:
        raise RequestRefused(400, "its first line is no request of HTTP/1.1")
    method, target, *version = found.groups()
    if version[0] != b"1":
        raise RequestRefused(505, "it is not of HTTP/1")
    if not (target.startswith(b"/") or (method, target) == (b"OPTIONS", b"*")) or method == b"CONNECT":
        raise RequestRefused(400, "its target is not a path")
    if len(lines) > MAX_HEADERS:
        raise RequestRefused(431, "it has too many headers")
    _check_framing([_header(line) for line in lines], is_old=version[1] == b"0")


def _header(line: bytes) -> tuple[bytes, bytes]:
    found = HEADER.fullmatch(line)
    if found is None:
        raise RequestRefused(400, "a line is no header")
    return found[1].lower(), found[2]


def _check_framing(headers: Headers, *, is_old: bool) -> None:
    lengths, codings, hosts = (
        [v for n, v in headers if n == name] for name in (b"content-length", b"transfer-encoding", b"host")
    )
    if len(lengths) + len(codings) > 1:
        raise RequestRefused(400, "it says more than once where its body ends")
    if lengths and LENGTH.fullmatch(lengths[0]) is None:
        raise RequestRefused(400, "its length is no number")
    if codings and (codings[0].lower() != b"chunked" or is_old):
        raise RequestRefused(400, "its transfer coding is not chunked")
    if len(hosts) > 1 or (not hosts and not is_old):
        raise RequestRefused(400, "it has not exactly one host")
    for name, text in headers:
        if name == b"expect" and text.lower() != b"100-continue":
            raise RequestRefused(417, "what it expects is not known")


def tokens(headers: Headers, name: bytes) -> list[bytes]:
    """Return the tokens of all headers of a name, in lower case."""
    texts = (part.strip().lower() for n, v in headers if n.lower() == name for part in v.split(b","))
    return [text for text in texts if text]


def wants_websocket(headers: Headers) -> bool:
    """Return whether a request asks for a WebSocket: the one protocol that a connection may change to.

    Another one could carry requests that nothing checks, HTTP/2 for one.
    """
    return tokens(headers, b"upgrade") == [b"websocket"] and b"upgrade" in tokens(headers, b"connection")


def for_target(headers: Headers, caller: Caller, host: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers of a request as its target gets them.

    What says where a request comes from, and what is of one hop alone, is left out in any spelling that a server may
    take for it (CGI and WSGI have ``_`` for ``-``); what is known of the caller takes its place.
    """
    named = {*tokens(headers, b"connection")} - KEPT
    kept = [(n, v) for n, v in headers if n.lower() not in HOP_BY_HOP and n.lower() not in named and not _is_forged(n)]
    if not any(n.lower() == b"host" for n, _ in kept):
        kept.insert(0, (b"Host", host))
    if wants_websocket(headers):
        kept += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    return kept + caller.headers()


def _is_forged(name: bytes) -> bool:
    plain = NO_LETTER.sub(b"-", name.lower())
    return FORGED.fullmatch(plain) is not None or (plain in FRAMING and plain != name.lower())


def for_caller(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers of a response as the caller gets them: what is of one hop alone is left out."""
    named = {*tokens(headers, b"connection")} - KEPT
    return [(n, v) for n, v in headers if n.lower() not in HOP_BY_HOP and n.lower() not in named]
