"""A mapping client in virtual time, opposite routers written here with no code of the client's."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from meshnode.base.address import Addr
from meshnode.base.metrics import Metrics
from meshnode.nat.portmap.client import PortMapper
from meshnode.nat.portmap.vocabulary import Changed, Fetch, Mapping, Route, Send

ROUTER, OWN, PORT = "192.168.1.1", "192.168.1.23", 4242
OUTSIDE = "203.0.113.5"
ROUTE = Route(ROUTER, OWN)
ROUTE6 = Route("fe80::1%eth0", "2001:db8::17")
DELAY = 0.002


class Router:
    """Answers as told; what is None it does not speak. ``boot`` is when its clock began."""

    def __init__(self, *, pcp: bool = False, nat_pmp: bool = False, upnp: int = 0) -> None:
        self.pcp, self.nat_pmp, self.upnp = pcp, nat_pmp, upnp
        self.boot = -1_000.0
        self.lifetime = 7_200
        self.result = 0
        self.outside = OUTSIDE
        self.ports: dict[int, tuple[str, int]] = {}  # outside port to inside address
        self.taken: set[int] = set()
        self.permanent_only = False
        self.same_port_only = False
        self.no_any_port = False
        self.nonces: dict[tuple[str, int], bytes] = {}  # with a strict router: whose mappings are whose
        self.strict = False

    def epoch(self, now: float) -> int:
        return int(now - self.boot)

    def restart(self, now: float) -> None:
        self.boot = now
        self.ports.clear()

    def _grant(self, host: str, port: int, suggested: int, lifetime: int) -> int:
        for outside, inside in list(self.ports.items()):
            if inside == (host, port):
                del self.ports[outside]
        if not lifetime:
            return 0
        outside = suggested or port
        while outside in self.taken:
            outside += 1
        self.ports[outside] = (host, port)
        return outside

    def datagram(self, data: bytes, host: str, now: float) -> bytes | None:
        if data[0] == 2:
            return self._pcp(data, host, now) if self.pcp else self._unversed(now)
        return self._nat_pmp(data, host, now) if self.nat_pmp else None

    def _unversed(self, now: float) -> bytes | None:
        return struct.pack("!BBHI", 0, 0x81, 1, self.epoch(now)) if self.nat_pmp else None

    def _pcp(self, data: bytes, host: str, now: float) -> bytes:
        (wanted,) = struct.unpack_from("!I", data, 4)
        port, suggested = struct.unpack_from("!HH", data, 40)
        lifetime = min(wanted, self.lifetime)
        result = self.result
        if self.strict and self.nonces.setdefault((host, port), data[24:36]) != data[24:36]:
            result = 2  # RFC 6887 section 11.3: NOT_AUTHORIZED
        outside = 0 if result else self._grant(host, port, suggested, wanted)
        ipv6 = bytes(10) + b"\xff\xff" + bytes(map(int, self.outside.split("."))) if ":" not in host else data[8:24]
        head = struct.pack("!BBBBII12x", 2, 0x81, 0, result, 1_800 if result else lifetime, self.epoch(now))
        return head + data[24:42] + struct.pack("!H", outside) + ipv6

    def _nat_pmp(self, data: bytes, host: str, now: float) -> bytes:
        if data[1] == 0:
            address = bytes(map(int, self.outside.split(".")))
            return struct.pack("!BBHI", 0, 0x80, self.result, self.epoch(now)) + address
        port, suggested, wanted = struct.unpack_from("!HHI", data, 4)
        outside = self._grant(host, port, suggested, wanted)
        return struct.pack("!BBHIHHI", 0, 0x81, self.result, self.epoch(now), port, outside, min(wanted, self.lifetime))

    # ---- UPnP

    def search(self, data: bytes) -> bytes | None:
        target = re.search(rb"ST: (\S+:(\d))\r\n", data)
        assert target is not None
        if int(target[2]) > self.upnp:
            return None
        return b"HTTP/1.1 200 OK\r\nST: " + target[1] + f"\r\nLOCATION: http://{ROUTER}:5000/d.xml\r\n\r\n".encode()

    def http(self, request: bytes, now: float) -> tuple[int, bytes]:
        if request.startswith(b"GET /d.xml"):
            kind = f"urn:schemas-upnp-org:service:WANIPConnection:{self.upnp}"
            inside = f"<serviceType>{kind}</serviceType><controlURL>/c</controlURL>"
            return 200, f"<root><device><service>{inside}</service></device></root>".encode()
        action = re.search(rb'SOAPAction: "[^"#]*#(\w+)"', request)
        assert action is not None
        values = dict(re.findall(rb"<(New\w+)>([^<]*)</", request))
        if action[1] == b"GetExternalIPAddress":
            return 200, f"<a><NewExternalIPAddress>{self.outside}</NewExternalIPAddress></a>".encode()
        outside = int(values[b"NewExternalPort"])
        if action[1] == b"DeletePortMapping":
            return (200, b"<a/>") if self.ports.pop(outside, None) else self._fault(714)
        host, port = values[b"NewInternalClient"].decode(), int(values[b"NewInternalPort"])
        if self.permanent_only and values[b"NewLeaseDuration"] != b"0":
            return self._fault(725)
        if self.same_port_only and outside != port:
            return self._fault(724)
        if action[1] == b"AddAnyPortMapping":
            if self.no_any_port:
                return self._fault(401)
            outside = self._grant(host, port, outside, 1)
            return 200, f"<a><NewReservedPort>{outside}</NewReservedPort></a>".encode()
        if outside in self.taken:
            return self._fault(718)
        self.ports[outside] = (host, port)
        return 200, b"<a/>"

    def _fault(self, code: int) -> tuple[int, bytes]:
        return 500, f"<a><errorCode>{code}</errorCode></a>".encode()


class Bench:
    """The client and a router; ``advance`` lets time pass, event by event."""

    def __init__(self, router: Router | None = None, *, upnp: bool = True, secret: bytes = bytes(32)) -> None:
        self.router = router or Router()
        self.now = 100.0
        self.metrics = Metrics()
        self.mapper = PortMapper(secret, self._entropy, self.metrics, upnp=upnp)
        self.sent: list[tuple[float, Addr, bytes]] = []
        self.fetched: list[tuple[float, Addr, bytes]] = []
        self.changes = 0
        self.reachable = True
        self._drawn = 0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def _entropy(self, size: int) -> bytes:
        self._drawn += 1
        return bytes((self._drawn * 37 + i * 11) & 255 for i in range(size))

    @property
    def dropped(self) -> dict[str, int]:
        wanted = ("stranger", "malformed", "unmatched", "bad_grant", "bad_location", "router_restarted")
        return {n[8:]: c for n, c in self.metrics.counters.items() if n[8:] in wanted}

    @property
    def mapping(self) -> Mapping | None:
        return next(iter(self.mapper.mappings()), None)

    def routes(self, *routes: Route, port: int = PORT) -> None:
        self.mapper.set_routes(routes, port, self.now)
        self._carry_out()

    def receive(self, data: bytes, source: Addr, internal: str = OWN) -> None:
        self.mapper.datagram(data, source, internal, self.now)
        self._carry_out()

    def announce(self, data: bytes, source: Addr) -> None:
        self.mapper.announcement(data, source, self.now)
        self._carry_out()

    def withdraw(self) -> None:
        self.mapper.withdraw(self.now)
        self._carry_out()

    def _carry_out(self) -> None:
        for effect in self.mapper.take_effects():
            if isinstance(effect, Send):
                self.sent.append((self.now, effect.to, effect.data))
                self._to_router(effect)
            elif isinstance(effect, Fetch):
                self.fetched.append((self.now, effect.to, effect.request))
                self._fetch(effect)
            else:
                assert isinstance(effect, Changed)
                self.changes += 1

    def _to_router(self, effect: Send) -> None:
        if not self.reachable:
            return
        multicast = effect.to == Addr("239.255.255.250", 1900)
        if multicast:
            answer, source = self.router.search(effect.data), Addr(ROUTER, 1900)
        else:
            answer, source = self.router.datagram(effect.data, effect.internal, self.now), effect.to
        if answer is not None:
            data = answer
            self._due.append((self.now + DELAY, lambda: self.receive(data, source, effect.internal)))

    def _fetch(self, effect: Fetch) -> None:
        status, body = self.router.http(effect.request, self.now) if self.reachable else (None, b"")

        def answer() -> None:
            self.mapper.on_http(effect.number, status, body, self.now)
            self._carry_out()

        self._due.append((self.now + (DELAY if self.reachable else 4.0), answer))

    def advance(self, seconds: float) -> None:
        """Let time pass; holds the law that after ``tick`` nothing is due."""
        end = self.now + seconds
        while True:
            at = self.mapper.next_deadline()
            times = [due for due, _ in self._due] + ([at] if at is not None else [])
            first = min(times, default=end + 1)
            if first > end:
                break
            self.now = max(self.now, first)
            ready = [action for due, action in self._due if due <= self.now]
            self._due = [(due, action) for due, action in self._due if due > self.now]
            for action in ready:
                action()
            self.mapper.tick(self.now)
            at = self.mapper.next_deadline()
            assert at is None or at > self.now
            self._carry_out()
        self.now = end
