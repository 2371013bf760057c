"""Keeps web pages from services that they reach by an address: the Host of a plain HTTP request has to be of the mesh.

A page of another host, whose name its DNS server has rebound to a node's overlay address, sends that name in ``Host``.
Clients that name the node instead of an address need no guard, and TLS has its own: no certificate is for both names.
"""

from __future__ import annotations

import re

from meshnode.base.limits import MAX_PROXY_HEAD
from meshnode.services.proxy.destination import address_of, is_mesh_host

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,40}"
REQUEST = re.compile(TOKEN + rb" [\x21-\x7e]+ HTTP/1\.[01]\r?\n")
BEGINNING = re.compile(rb"(" + TOKEN + rb"( [\x21-\x7e]*( [HTP/1.0]{0,8}\r?)?)?)?")  # of a request's line
HOST = re.compile(rb"^host[ \t]*:[ \t]*([^\r\n]*?)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
END = re.compile(rb"\r?\n\r?\n")


class HostGuard:
    """Lets a client's bytes pass, but for a request for another host; the head of an HTTP request passes in one piece.

    Attributes:
        is_decided: Whether all that comes may pass.
    """

    def __init__(self) -> None:
        self.is_decided = False
        self._head = b""

    def feed(self, data: bytes) -> bytes:
        """Take what the client has sent, empty at its end, and return what may pass now.

        Raises ConnectionResetError where the bytes are for another host.
        """
        if self.is_decided:
            return data
        self._head += data
        allowed = judge(self._head)
        if allowed is False:
            raise ConnectionResetError("a request for a host that is not of the mesh")
        if allowed is None and data:
            return b""
        self.is_decided = True
        head, self._head = self._head, b""
        return head


def judge(head: bytes) -> bool | None:
    """Return whether what a client has sent first may pass; None while that is open.

    Anything but an HTTP/1 request may. A head longer than ``MAX_PROXY_HEAD`` may not.
    """
    if not REQUEST.match(head) and not BEGINNING.fullmatch(head):
        return True
    end = END.search(head)
    if end is None:
        return None if len(head) <= MAX_PROXY_HEAD else False
    return all(_is_own(host.decode("latin-1")) for host in HOST.findall(head[: end.start()]))


def _is_own(host: str) -> bool:
    """Return whether the value of Host is of the mesh: a name of it, or an address, which no page can rebind."""
    name = re.sub(r":\d*$", "", host)
    return is_mesh_host(name) or address_of(name.strip("[]")) is not None
