"""Search for the router's UPnP description: SSDP's request and its answer (UPnP Device Architecture 1.1, section 1.3).

Only the router itself is believed, and only about itself: the LOCATION must be plain HTTP on the very address that
was asked, or the first to answer could have this node post to any host and port.
"""

from __future__ import annotations

import string
from urllib.parse import SplitResult, urljoin, urlsplit

from meshnode.base.address import Addr, canonical_host
from meshnode.base.limits import MAX_SSDP, MAX_URL
from meshnode.base.value import value

GROUP = Addr("239.255.255.250", 1900)
WAIT_S = 1  # MX: devices spread their answers over so many seconds
TARGETS = tuple(f"urn:schemas-upnp-org:device:InternetGatewayDevice:{version}" for version in (2, 1))
_PATH = frozenset(string.ascii_letters + string.digits + "-._~!$&'()*+,;=:@%/?")


@value
class Url:
    """A place on the router: its TCP address and the path with the query."""

    addr: Addr
    path: str

    def __str__(self) -> str:
        return f"http://{self.addr}{self.path}"


@value
class SearchReply:
    """Answer of a device: its description is at ``location``, which is not yet to be believed."""

    target: str
    location: str


def search(target: str) -> bytes:
    """Return an M-SEARCH for the device type ``target``.

    Devices spread their answers over one second (MX), which is UPnP's shortest.
    """
    lines = [
        "M-SEARCH * HTTP/1.1",
        f"HOST: {GROUP}",
        'MAN: "ssdp:discover"',
        f"MX: {WAIT_S}",
        f"ST: {target}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def parse(data: bytes) -> SearchReply:
    """Parse an answer to M-SEARCH.

    Raises ValueError when it has more than ``MAX_SSDP`` bytes, is no 200, or lacks ST or LOCATION. Header names are not
    case-sensitive; of repeated ones the last counts.
    """
    if len(data) > MAX_SSDP:
        raise ValueError("too long")
    status, *lines = data.decode("latin-1").split("\r\n")
    if not status.startswith("HTTP/1.1 200"):
        raise ValueError("no answer")
    headers = {name.strip().lower(): value.strip() for name, colon, value in (line.partition(":") for line in lines)}
    try:
        return SearchReply(headers["st"], headers["location"])
    except KeyError as error:
        raise ValueError(f"no {error.args[0]}") from error


def on_router(text: str, router: str, base: Url | None = None) -> Url:
    """Return ``text``, relative to ``base`` if it must be, as a place on ``router``; raises ValueError for any other.

    What goes into a request line is checked letter by letter: a path cannot smuggle in a header.
    """
    parts = _plain_http(text, base)
    if canonical_host(parts.hostname or "") != router:
        raise ValueError("not on the router")
    port = parts.port if parts.port is not None else 80
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not 0 < port < 65536 or not path.startswith("/") or not _PATH.issuperset(path):
        raise ValueError("no port or path that we would use")
    return Url(Addr(router, port), path)


def _plain_http(text: str, base: Url | None) -> SplitResult:
    if len(text) > MAX_URL or not text.isascii():
        raise ValueError("no URL that we would use")
    parts = urlsplit(urljoin(str(base), text) if base is not None else text)
    if parts.scheme != "http" or parts.username is not None or parts.hostname is None:
        raise ValueError("not plain HTTP")
    return parts
