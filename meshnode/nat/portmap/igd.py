"""Client of a UPnP Internet gateway for one mapping: search, description, outside address, mapping.

The search is multicast, as routers expect; all that follows is HTTP with the router alone. Only the first
description that the router names is read. A mapping is first asked with a lease, and for ever only where the
router knows nothing else (error 725).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from meshnode.base.address import Addr
from meshnode.base.clock import Entropy
from meshnode.base.limits import UPNP_EXCHANGE_S, UPNP_PORTS, UPNP_SEARCH_S
from meshnode.nat.portmap import soap, ssdp
from meshnode.nat.portmap.soap import Answer, Service
from meshnode.nat.portmap.ssdp import Url
from meshnode.nat.portmap.talk import Message, Out, Talk
from meshnode.nat.portmap.vocabulary import (
    BAD_LOCATION,
    Fetch,
    Granted,
    Outcome,
    Protocol,
    Refused,
    Route,
    Send,
    Silent,
)

Step = Callable[[int | None, bytes, float], Outcome | None]
LOWEST_PORT = 1024  # IGD:2 lets no unauthenticated client have less


class UpnpTalk(Talk):
    """UPnP-IGD, version 1 or 2, IPv4."""

    protocol = Protocol.UPNP

    def __init__(self, route: Route, internal: Addr, out: Out, entropy: Entropy, count: Callable[[str], None]) -> None:
        super().__init__(route, internal, out)
        self._entropy = entropy
        self._count = count
        self._step: Step | None = None  # what the running fetch is for
        self._number = 0
        self._searches = 0
        self._location: Url | None = None
        self._services: list[Service] = []  # candidates; the first is the one in use
        self._host = ""
        self._lease = 0
        self._port = 0
        self._ports_tried = 0
        self._any_port = False

    def ask(self, lifetime: int, held: Addr | None, now: float) -> None:
        """Search for the gateway, or go straight to the service that granted ``held``.

        With ``lifetime`` 0 the mapping is deleted; where there is none, the next ``tick`` ends the talk.
        """
        self._port = held.port if held is not None else self.internal.port
        self._lease = lifetime
        self._ports_tried = 0
        if not lifetime:
            if held is None or not self._services:
                self.deadline = now  # nothing to give back
            else:
                self._post(soap.delete_mapping(self._services[0], held.port), lambda *_: Granted(held, 0), now)
        elif held is not None and self._services:
            self._any_port = False
            self._ask_address(now)
        else:
            self._services = []
            self._searches = 0
            self._search(now)

    def stop(self) -> None:
        """Forget what was asked."""
        super().stop()
        self._step = None

    # ---- finding the gateway

    def _search(self, now: float) -> None:
        self._step = self._location = None
        for target in ssdp.TARGETS:
            self._out(Send(self.route.internal, ssdp.GROUP, ssdp.search(target)))
        self.deadline = now + UPNP_SEARCH_S[self._searches]
        self._searches += 1

    def takes(self, message: Message) -> bool:
        """Return True for an answer to the search while it runs."""
        searching = self.deadline is not None and self._lease > 0 and self._step is None
        return searching and isinstance(message, ssdp.SearchReply) and message.target in ssdp.TARGETS

    def on_message(self, message: Message, now: float) -> Outcome | None:
        """Read the description, if it is on the router."""
        assert isinstance(message, ssdp.SearchReply)
        try:
            self._location = ssdp.on_router(message.location, self.route.router)
        except ValueError:
            self._count(BAD_LOCATION)
            return None
        self._fetch(self._location.addr, soap.get(self._location), self._on_description, now)
        return None

    def tick(self, now: float) -> Outcome | None:
        """Repeat the search, or end with ``Silent``.

        There are two searches, 1.5 and 2.5 s long; an HTTP exchange that overruns its time is not repeated.
        """
        if self._lease and self._step is None and self._searches < len(UPNP_SEARCH_S):
            self._search(now)
            return None
        self.stop()
        return Silent()

    # ---- HTTP

    def _fetch(self, to: Addr, request: bytes, step: Step, now: float) -> None:
        self._number = int.from_bytes(self._entropy(4), "big")
        self._step = step
        self.deadline = now + UPNP_EXCHANGE_S + 1  # the host's own end of it comes first
        self._out(Fetch(self._number, self.route.internal, to, request))

    def _post(self, request: bytes, step: Step, now: float) -> None:
        self._fetch(self._services[0].control.addr, request, step, now)

    def on_http(self, number: int, status: int | None, body: bytes, now: float) -> Outcome | None:
        """Take the next step: the fetch has ended."""
        if self._step is None or number != self._number:
            return None
        step = self._step
        self.stop()
        return step(status, body, now)

    def _answer(self, status: int | None, body: bytes) -> Answer:
        """Return what an action brought; 501 (ActionFailed) when it is no answer at all."""
        try:
            return soap.parse(status, body) if status is not None else Answer({}, 501)
        except ValueError:
            return Answer({}, 501)

    # ---- step by step

    def _on_description(self, status: int | None, body: bytes, now: float) -> Outcome | None:
        assert self._location is not None
        try:
            self._services = soap.services(body, self._location) if status == 200 else []
        except ValueError:
            self._services = []
        if not self._services:
            return Refused("no WAN connection in its description")
        self._any_port = self._services[0].picks_ports
        self._ask_address(now)
        return None

    def _ask_address(self, now: float) -> None:
        self._post(soap.get_external_address(self._services[0]), self._on_address, now)

    def _on_address(self, status: int | None, body: bytes, now: float) -> Outcome | None:
        text = self._answer(status, body).values.get("NewExternalIPAddress", "")
        try:
            host = ipaddress.IPv4Address(text)
        except ValueError:
            host = ipaddress.IPv4Address(0)
        if not host.is_unspecified:
            self._host = str(host)
            self._ask_mapping(now)
            return None
        del self._services[0]  # a connection that is down; a router may list several
        if not self._services:
            return Refused("no outside address")
        self._any_port = self._services[0].picks_ports
        self._ask_address(now)
        return None

    def _ask_mapping(self, now: float) -> None:
        self._ports_tried += 1
        internal = self.internal
        request = soap.add_mapping(
            self._services[0], self._port, internal.host, internal.port, self._lease, any_port=self._any_port
        )
        self._post(request, self._on_mapping, now)

    def _on_mapping(self, status: int | None, body: bytes, now: float) -> Outcome | None:
        answer = self._answer(status, body)
        if not answer.error:
            return self._granted(answer)
        if self._ports_tried >= UPNP_PORTS or not self._change_request(answer.error):
            return Refused(f"error {answer.error}")
        self._ask_mapping(now)
        return None

    def _granted(self, answer: Answer) -> Outcome:
        port = answer.values.get("NewReservedPort", str(self._port)) if self._any_port else str(self._port)
        if not (port.isascii() and port.isdigit() and len(port) < 6):
            return Refused("a port that is none")
        return Granted(Addr(self._host, int(port)), self._lease or float("inf"))

    def _change_request(self, error: int) -> bool:
        """Change what the error objects to, and return True; False when there is nothing left to change."""
        if error == soap.PERMANENT_ONLY and self._lease:
            self._lease = 0
        elif error == soap.SAME_PORT_ONLY and self._port != self.internal.port:
            self._port = self.internal.port
        elif error == soap.CONFLICT:
            self._port = LOWEST_PORT + int.from_bytes(self._entropy(2), "big") % (65_536 - LOWEST_PORT)
        elif self._any_port:
            self._any_port = False  # a router that claims version 2 and does not know its action
        else:
            return False
        return True
