"""Exchange with one router for one mapping in PCP or NAT-PMP: the request, its repetitions, the matching answer.

A talk is reused for every renewal of its mapping. It says nothing of when to ask: that is the lease's business.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable

from meshnode.base.address import Addr
from meshnode.base.limits import PORTMAP_FIRST_TRY_S, PORTMAP_MAX_LIFETIME_S, PORTMAP_REFUSED_S, PORTMAP_TRIES
from meshnode.nat.portmap import natpmp, pcp, ssdp
from meshnode.nat.portmap.vocabulary import Effect, Granted, Outcome, Protocol, Refused, Route, Send, Silent

Message = pcp.MapReply | pcp.Announcement | pcp.Unversed | natpmp.AddressReply | natpmp.MapReply | ssdp.SearchReply
Out = Callable[[Effect], None]


class Talk(ABC):
    """One conversation with a router about the UDP port ``internal``."""

    protocol: Protocol

    def __init__(self, route: Route, internal: Addr, out: Out) -> None:
        self.route = route
        self.internal = internal
        self.deadline: float | None = None
        self._out = out

    @abstractmethod
    def ask(self, lifetime: int, held: Addr | None, now: float) -> None:
        """Ask for the outside address and port ``held`` (None: any) for ``lifetime`` seconds; with 0 give it back.

        Sets ``deadline``, when ``tick`` is due; what was asked before is forgotten.
        """

    @abstractmethod
    def takes(self, message: Message) -> bool:
        """Return True when ``message``, which is known to come from the router, answers what is asked now."""

    @abstractmethod
    def on_message(self, message: Message, now: float) -> Outcome | None:
        """Take an answer that ``takes`` was true for."""

    @abstractmethod
    def tick(self, now: float) -> Outcome | None:
        """Ask again or give up: the deadline has come."""

    def on_http(self, number: int, status: int | None, body: bytes, now: float) -> Outcome | None:
        """Take the end of the fetch ``number``; ``status`` is None when nothing came back.

        Only UPnP fetches anything: other protocols ignore it.
        """
        return None

    def stop(self) -> None:
        """Forget what was asked."""
        self.deadline = None


class DatagramTalk(Talk):
    """A talk in single datagrams to the router's port 5351, repeated after 0.25, 0.5 and 1 s (RFC 6886 section 3.1).

    RFC 6887 begins with 3 s, since its server may be far away; here it is on the link, and other protocols wait.
    """

    def __init__(self, route: Route, internal: Addr, out: Out) -> None:
        super().__init__(route, internal, out)
        self._to = Addr(route.router, pcp.PORT)
        self._request = b""
        self._tries = 0

    def _send(self, request: bytes, now: float) -> None:
        self._request, self._tries = request, 0
        self._repeat(now)

    def _repeat(self, now: float) -> None:
        self._out(Send(self.route.internal, self._to, self._request))
        self.deadline = now + PORTMAP_FIRST_TRY_S * 2**self._tries
        self._tries += 1

    def tick(self, now: float) -> Outcome | None:
        """Repeat the request, or give up."""
        if self._tries < PORTMAP_TRIES:
            self._repeat(now)
            return None
        self.stop()
        return Silent()


class PcpTalk(DatagramTalk):
    """PCP's MAP (RFC 6887 section 11).

    The nonce proves whose a mapping is. It is made of the node's secret, so that after a crash the mapping that
    is still there is held again: with another nonce the router would refuse us until it expires.
    """

    protocol = Protocol.PCP

    def __init__(self, route: Route, internal: Addr, out: Out, secret: bytes) -> None:
        super().__init__(route, internal, out)
        about = f"{route.router} {internal}".encode()
        self._nonce = hashlib.blake2b(about, digest_size=pcp.NONCE_LENGTH, key=secret, person=b"pcp nonce").digest()

    def ask(self, lifetime: int, held: Addr | None, now: float) -> None:
        """Send a MAP request; the suggestion is what we hold, else our own port number."""
        suggested = held
        if held is None and lifetime:
            suggested = Addr("::" if self.route.is_ipv6 else "0.0.0.0", self.internal.port)
        self._send(pcp.map_request(self._nonce, self.internal, suggested, lifetime), now)

    def takes(self, message: Message) -> bool:
        """Return True for a MAP response with this nonce, protocol and port (section 11.4), and for "no PCP"."""
        if self.deadline is None:
            return False
        if isinstance(message, pcp.MapReply):
            ours = (self._nonce, pcp.UDP, self.internal.port)
            return (message.nonce, message.protocol, message.internal_port) == ours
        if isinstance(message, natpmp.AddressReply | natpmp.MapReply):
            return message.result == pcp.UNSUPPORTED_VERSION  # a NAT-PMP router's answer to PCP (appendix A)
        return isinstance(message, pcp.Unversed)

    def on_message(self, message: Message, now: float) -> Outcome | None:
        """Return what the answer means; the asking is over.

        The lifetime is cut to ``PORTMAP_MAX_LIFETIME_S``, a refusal's to ``PORTMAP_REFUSED_S``. "No such version" is
        ``Silent``: the next protocol's turn.
        """
        self.stop()
        if not isinstance(message, pcp.MapReply):
            return Silent()
        lifetime = min(message.lifetime, PORTMAP_MAX_LIFETIME_S)
        if message.result != pcp.SUCCESS:
            return Refused(pcp.result_name(message.result), min(message.lifetime, PORTMAP_REFUSED_S))
        return Granted(message.external, lifetime)


class NatPmpTalk(DatagramTalk):
    """NAT-PMP: first the outside address, then the port; one request at a time (RFC 6886 section 3.1)."""

    protocol = Protocol.NAT_PMP

    def __init__(self, route: Route, internal: Addr, out: Out) -> None:
        super().__init__(route, internal, out)
        self._asked: tuple[int, int] | None = None  # lifetime and port, wanted after the address
        self._host: str | None = None

    def ask(self, lifetime: int, held: Addr | None, now: float) -> None:
        """Ask for the outside address, or give the mapping back."""
        self._host = None
        if lifetime:
            self._asked = (lifetime, held.port if held is not None else self.internal.port)
            self._send(natpmp.address_request(), now)
        else:
            self._asked = (0, 0)
            self._host = "0.0.0.0"
            self._send(natpmp.map_request(self.internal.port, 0, 0), now)

    def takes(self, message: Message) -> bool:
        """Return True for the answer to the present step; NAT-PMP has no nonce, only the port."""
        if self.deadline is None:
            return False
        if self._host is None:
            return isinstance(message, natpmp.AddressReply)
        if not isinstance(message, natpmp.MapReply):
            return False
        return message.internal_port == self.internal.port or (message.result != 0 and message.internal_port == 0)

    def on_message(self, message: Message, now: float) -> Outcome | None:
        """Go on to the mapping, or end."""
        self.stop()
        assert isinstance(message, natpmp.AddressReply | natpmp.MapReply)
        if message.result == pcp.UNSUPPORTED_VERSION:
            return Silent()
        if message.result != natpmp.SUCCESS:
            return Refused(natpmp.result_name(message.result))
        assert self._asked is not None
        lifetime, port = self._asked
        if isinstance(message, natpmp.AddressReply):
            self._host = message.host
            self._send(natpmp.map_request(self.internal.port, port, lifetime), now)
            return None
        assert self._host is not None
        return Granted(Addr(self._host, message.external_port), min(message.lifetime, PORTMAP_MAX_LIFETIME_S))
