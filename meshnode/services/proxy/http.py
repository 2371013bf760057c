"""HTTP/1.1 as a proxy speaks it (RFC 9110, 9112), without I/O: CONNECT, and requests in absolute form; h11 parses.

Nothing else is answered: a request in origin form comes from a program that takes this for a web server, as a page does
whose name was rebound to this host. One request a connection. A request that is sent on is written again from what was
parsed, so that both ends see the same headers and the same body: no bytes of a client go through as they are.
"""

from __future__ import annotations

import h11

from meshnode.base.limits import MAX_PROXY_HEAD
from meshnode.base.value import frozen
from meshnode.errors import MeshError
from meshnode.services.proxy.answers import answer_to

Headers = list[tuple[bytes, bytes]]

HTTP = b"http://"
NAME = b"meshnode"  # in Via and Proxy-Status
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
    )
)  # and what Connection names (RFC 9110, section 7.6.1); Transfer-Encoding is h11's
FRAMING = frozenset((b"content-length", b"transfer-encoding", b"host"))  # Connection cannot take these out


class BadRequest(MeshError):
    """A request that no proxy answers otherwise than by 400."""

    code = "bad_request"

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message, hint="this is the proxy of a mesh node, and no web server")
        self.status = status


@frozen
class Target:
    """Where a request leads: a host, a port, and the target in origin form; "" for a tunnel."""

    host: str
    port: int
    path: str = ""

    @property
    def authority(self) -> str:
        """The value of ``Host``: without the port where that is HTTP's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 80 else f"{host}:{self.port}"


class HttpClient:
    """A client's connection.

    Attributes:
        parser: h11's side of it, for the body and for the response.
        request: The request, once its head is complete and is one for a proxy; with it ``target``.
        error: Why there will be none.
    """

    __slots__ = ("error", "parser", "request", "target")

    def __init__(self) -> None:
        self.parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_PROXY_HEAD)
        self.request: h11.Request | None = None
        self.target: Target | None = None
        self.error: BadRequest | None = None

    @property
    def is_over(self) -> bool:
        """True once there is a request, or will be none."""
        return self.request is not None or self.error is not None

    @property
    def is_read(self) -> bool:
        """True once the whole of the request, its body too, was read."""
        return self.parser.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)

    def receive(self, data: bytes) -> None:
        """Take what the client has sent. At most ``MAX_PROXY_HEAD`` bytes and ``data`` are held."""
        try:
            self.parser.receive_data(data)
            event = self.parser.next_event()
            if isinstance(event, h11.Request):
                self.target = target_of(event)
                self.request = event
        except h11.RemoteProtocolError as error:
            self.error = BadRequest(f"no HTTP request: {error}", status=error.error_status_hint)
        except BadRequest as error:
            self.error = error

    def tunnelled(self) -> tuple[bytes, bytes]:
        """Return the answer to CONNECT, and what the client has sent behind it."""
        self.parser.next_event()  # the end of a request without a body
        sent = self.parser.send(h11.Response(status_code=200, headers=[], reason=b"Connection established"))
        return sent or b"", self.parser.trailing_data[0]

    def refused(self, error: MeshError) -> bytes:
        """Return the response that says why a request leads nowhere; b"" when a response has begun."""
        if self.parser.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return b""
        answer = answer_to(error)
        status = error.status if isinstance(error, BadRequest) else answer.status
        word = "http_request_error" if isinstance(error, BadRequest) else answer.proxy_status
        text = f"{error.message}\n" + (f"hint: {error.hint}\n" if error.hint else "")
        body = text.encode()
        headers = [
            (b"Content-Type", b"text/plain; charset=utf-8"),
            (b"Content-Length", b"%d" % len(body)),
            (b"X-Content-Type-Options", b"nosniff"),
            (b"Cache-Control", b"no-store"),
            (b"Proxy-Status", f'{NAME.decode()}; error={word}; details="{error.code}"'.encode()),
            (b"Connection", b"close"),
        ]
        sent = self.parser.send(h11.Response(status_code=status, headers=headers)) or b""
        if self.request is not None and self.request.method == b"HEAD":
            return sent
        return sent + (self.parser.send(h11.Data(data=body)) or b"")


def target_of(request: h11.Request) -> Target:
    """Return where a request leads.

    Raises BadRequest: it is none for a proxy, or its parts contradict each other.
    """
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and b"content-length" in names:
        raise BadRequest("a request has both a Transfer-Encoding and a Content-Length")
    text = request.target.decode()
    if request.method == b"CONNECT":
        if b"transfer-encoding" in names or b"content-length" in names:
            raise BadRequest("CONNECT has no body")
        return Target(*_authority(text, None))
    if not text.lower().startswith(HTTP.decode()):
        what = "https:// goes through CONNECT" if text.lower().startswith("https://") else "it needs CONNECT or http://"
        raise BadRequest(f"a request for {text:.60} is none for a proxy: {what}")
    rest = text[len(HTTP) :]
    end = min(f"{rest}/".index("/"), f"{rest}?".index("?"))
    path = rest[end:]
    if "#" in rest:
        raise BadRequest("a request's target has no fragment")
    host, port = _authority(rest[:end], 80)
    if not path and request.method == b"OPTIONS":
        return Target(host, port, "*")
    return Target(host, port, path if path.startswith("/") else f"/{path}")


def _authority(text: str, default: int | None) -> tuple[str, int]:
    """Return the host and the port of ``HOST[:PORT]``, an IPv6 address in brackets. Raises BadRequest."""
    host, colon, port = text.rpartition(":")
    if not colon or (text.startswith("[") and text.endswith("]")):
        host, port = text, str(default or "")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    is_sound = bare and ("[" not in bare and "]" not in bare) and (bare is not host or ":" not in bare)
    if not is_sound or set(bare) & set("@/?#\\%") or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BadRequest(f"{text:.60} is not HOST:PORT")
    return bare, int(port)


def request_for(request: h11.Request, target: Target) -> h11.Request:
    """Return a request as it is sent on: in origin form, with the host of its target, for this connection alone."""
    headers: Headers = [(b"Host", target.authority.encode())]
    headers += [(name, value) for name, value in _end_to_end(request.headers.raw_items()) if name.lower() != b"host"]
    version = request.http_version
    headers += [(b"Via", version + b" " + NAME), (b"Connection", b"close")]
    return h11.Request(method=request.method, target=target.path, headers=headers)


def response_for(response: h11.Response | h11.InformationalResponse) -> h11.Response | h11.InformationalResponse:
    """Return the response that is sent back."""
    headers = _end_to_end(response.headers.raw_items())
    if isinstance(response, h11.InformationalResponse):
        return h11.InformationalResponse(status_code=response.status_code, headers=headers, reason=response.reason)
    headers.append((b"Connection", b"close"))
    return h11.Response(status_code=response.status_code, headers=headers, reason=response.reason)


def _end_to_end(raw: Headers) -> Headers:
    """Return the headers that are meant for the other end, spelt as they came."""
    names = {name.lower() for name, _ in raw}
    hop = set(HOP_BY_HOP)
    for name, value in raw:
        if name.lower() == b"connection":
            hop |= {word.strip().lower() for word in value.split(b",")} - FRAMING
    if b"transfer-encoding" in names:
        hop.add(b"content-length")  # which counts for nothing then (RFC 9112, section 6.3)
    return [(name, value) for name, value in raw if name.lower() not in hop]
