"""All mappings of a node: one lease for each default route and local port, and the protocols each may use.

Nothing here does I/O. The host feeds datagrams, announcements and HTTP answers, calls ``tick`` when
``next_deadline`` has come, and carries out ``take_effects``. Hostile input is counted and dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from meshnode.base.address import Addr
from meshnode.base.clock import Entropy
from meshnode.base.limits import MAX_PORTMAP_LEAVING, MAX_PORTMAP_ROUTES, PORTMAP_ANNOUNCE_SPREAD_S
from meshnode.base.metrics import Metrics
from meshnode.nat.portmap import natpmp, pcp, ssdp
from meshnode.nat.portmap.epochs import Epochs
from meshnode.nat.portmap.lease import Lease, State
from meshnode.nat.portmap.talk import Message, NatPmpTalk, PcpTalk, Talk
from meshnode.nat.portmap.vocabulary import MALFORMED, ROUTER_RESTARTED, STRANGER, UNMATCHED, Effect, Mapping, Route


class PortMapper:
    """The mapping client. ``upnp`` False leaves UPnP out, and with it all multicast.

    ``secret`` (up to 64 bytes, the same in every run of a node) makes the nonces of PCP.
    """

    def __init__(self, secret: bytes, entropy: Entropy, metrics: Metrics, *, upnp: bool = True) -> None:
        self._secret = secret
        self._entropy = entropy
        self._metrics = metrics
        self._upnp = upnp
        self._leases: dict[tuple[Route, int], Lease] = {}
        self._leaving: list[Lease] = []
        self._epochs = Epochs()
        self._effects: list[Effect] = []

    # ---- what the host tells

    def set_routes(self, routes: Iterable[Route], port: int, now: float) -> None:
        """Set the default routes and the UDP port: map what is new, recheck what stays, give back what is gone.

        At most ``MAX_PORTMAP_ROUTES`` are used. A mapping on a route that is gone is abandoned, since its router cannot
        be told: it expires there.
        """
        wanted = [(route, port) for route in routes][:MAX_PORTMAP_ROUTES]
        self._end_others(wanted, now)
        for key in wanted:
            if key in self._leases:
                self._leases[key].recheck(now)
            else:
                lease = self._leases[key] = self._make(*key)
                lease.start(now)

    def _end_others(self, wanted: list[tuple[Route, int]], now: float) -> None:
        kept = {route for route, _ in wanted}
        for key in [key for key in self._leases if key not in wanted]:
            lease = self._leases.pop(key)
            if lease.route in kept:  # only the port changed: the router can still be told
                self._leave(lease, now)
            else:  # no way to that router is left; its mapping will run out
                lease.abandon()
        self._leaving = [lease for lease in self._leaving if lease.route in kept]
        self._epochs.forget({route.router for route in kept})

    def withdraw(self, now: float) -> None:
        """Give everything back; it is done when ``is_idle``."""
        for lease in self._leases.values():
            self._leave(lease, now)
        self._leases.clear()

    def datagram(self, data: bytes, source: Addr, internal: str, now: float) -> None:
        """Take a datagram that arrived at the socket of this host's address ``internal``.

        One that is not from that route's router, is malformed, or answers nothing that was asked is counted and
        dropped.
        """
        leases = [lease for lease in self._all() if lease.route == Route(source.host, internal)]
        if not leases:
            self._metrics.count(STRANGER)
            return
        message = self._parse(data, source)
        if message is None:
            return
        for lease in leases:
            if lease.takes(message):
                self._clock(message, source.host, now, lease, 0.0)
                lease.on_message(message, now)
                break
        else:
            self._metrics.count(UNMATCHED)
        self._sweep()

    def announcement(self, data: bytes, source: Addr, now: float) -> None:
        """Take what arrived at port 5350: the router tells all hosts of the link that it restarted.

        That is RFC 6887 section 14.1.1 (ANNOUNCE) or RFC 6886 section 3.2.1 (its outside address).
        """
        leases = [lease for lease in self._all() if lease.route.router == source.host]
        if not leases:
            self._metrics.count(STRANGER)
            return
        message = self._parse(data, source)
        if message is None:
            return
        if not isinstance(message, pcp.Announcement | natpmp.AddressReply) or message.result:
            self._metrics.count(UNMATCHED)
            return
        spread = int.from_bytes(self._entropy(2), "big") / 65_536 * PORTMAP_ANNOUNCE_SPREAD_S
        first = not self._epochs.knows(source.host)
        self._clock(message, source.host, now, None, spread)
        for lease in leases:
            if first or _has_moved(lease.mapping, message):  # a router that we took for a mute one
                lease.lost(now, spread)

    def on_http(self, number: int, status: int | None, body: bytes, now: float) -> None:
        """Take the end of a fetch; ``status`` is None when nothing came back."""
        for lease in self._all():
            lease.on_http(number, status, body, now)
        self._sweep()

    def tick(self, now: float) -> None:
        """Let everything that is due happen."""
        for lease in self._all():
            lease.tick(now)
        self._sweep()

    # ---- what the host may ask

    def next_deadline(self) -> float | None:
        """Return when ``tick`` has something to do (monotonic seconds); None for never."""
        times = [lease.next_deadline() for lease in self._all()]
        return min((at for at in times if at is not None), default=None)

    def take_effects(self) -> list[Effect]:
        """Return what is to be done, in order, and forget it."""
        effects, self._effects = self._effects, []
        return effects

    def mappings(self) -> list[Mapping]:
        """Return the mappings that are held."""
        return [lease.mapping for lease in self._leases.values() if lease.mapping is not None]

    @property
    def is_idle(self) -> bool:
        """True when nothing is being given back."""
        return not self._leaving

    def to_json(self, now: float) -> list[dict[str, object]]:
        """Return every route's state for people and scripts: what was asked, and why it gave nothing.

        Keys: ``router``, ``internal``, ``state`` (a value of ``State``), and for each protocol that failed its name
        with the reason.
        """
        return [
            {"router": lease.route.router, "internal": str(lease.internal), "state": lease.state.value, **lease.said}
            for lease in self._leases.values()
        ]

    # ---- inside

    def _all(self) -> list[Lease]:
        return [*self._leases.values(), *self._leaving]

    def _make(self, route: Route, port: int) -> Lease:
        internal, out, count = Addr(route.internal, port), self._effects_append, self._metrics.count
        talks: list[Callable[[], Talk]] = [lambda: PcpTalk(route, internal, out, self._secret)]
        if not route.is_ipv6:
            talks.append(lambda: NatPmpTalk(route, internal, out))
            if self._upnp:
                talks.append(lambda: self._upnp_talk(route, internal))
        return Lease(route, internal, talks, out, self._entropy, count)

    def _upnp_talk(self, route: Route, internal: Addr) -> Talk:
        from meshnode.nat.portmap.igd import UpnpTalk

        return UpnpTalk(route, internal, self._effects_append, self._entropy, self._metrics.count)

    def _effects_append(self, effect: Effect) -> None:
        self._effects.append(effect)

    def _leave(self, lease: Lease, now: float) -> None:
        lease.withdraw(now)
        if lease.state is State.LEAVING and len(self._leaving) < MAX_PORTMAP_LEAVING:
            self._leaving.append(lease)

    def _sweep(self) -> None:
        self._leaving = [lease for lease in self._leaving if lease.state is not State.GONE]

    def _parse(self, data: bytes, source: Addr) -> Message | None:
        try:
            if data[:1] == b"H":
                return ssdp.parse(data)
            if source.port != pcp.PORT:
                self._metrics.count(STRANGER)
                return None
            return natpmp.parse(data) if data[:1] == bytes([natpmp.VERSION]) else pcp.parse(data)
        except ValueError:
            self._metrics.count(MALFORMED)
            return None

    def _clock(self, message: Message, router: str, now: float, answered: Lease | None, delay: float) -> None:
        """Take the router's clock from an answer: when it restarted, all other mappings are requested again.

        Also what hangs on another address: that is mostly the same box, and not every router says so for IPv6 too.
        """
        if isinstance(message, pcp.Unversed | ssdp.SearchReply):
            return
        nat_pmp = isinstance(message, natpmp.AddressReply | natpmp.MapReply)
        if self._epochs.restarted(router, message.epoch, now, nat_pmp=nat_pmp):
            self._metrics.count(ROUTER_RESTARTED)
            for lease in self._leases.values():
                if lease is not answered:
                    lease.lost(now, delay)


def _has_moved(held: Mapping | None, message: pcp.Announcement | natpmp.AddressReply) -> bool:
    """Return True when the router announces another outside address than that of the mapping."""
    return isinstance(message, natpmp.AddressReply) and held is not None and held.external.host != message.host
