"""Other uplinks of this host: a peer that is silent is also probed from this host's other addresses.

The kernel chooses from which address, and by which uplink, a datagram of the node's own socket leaves. When the router
of that uplink dies without a word, it keeps to it. Where the host routes by source (``ip rule from ADDRESS``), what
leaves from another uplink's address goes by that one: so a socket is bound there, and the ways by it are candidates as
all others, of which the path core takes one that answers (RFC 8445 section 5.1.1.1 gathers host candidates so).
"""

from __future__ import annotations

from meshnode.base.address import Addr
from meshnode.base.limits import MAX_UPLINK_TARGETS, MAX_UPLINKS
from meshnode.base.metrics import describe
from meshnode.base.path import ViaSocket
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointKind, EndpointRecord
from meshnode.nat.local_networks import is_loopback, on_networks
from meshnode.stack.component import Component
from meshnode.stack.context import Context
from meshnode.stack.session import Session

AFTER_S = 0.3  # of silence: another address of the peer, or a relay, has answered by then

TRIED = describe("uplinks_tried", "silent peers that were probed from another address of this host")


class Uplinks(Component):
    """A socket at each of this host's other addresses, opened when a peer first falls silent for ``AFTER_S``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._timer = context.timers.timer(self._tick)
        self._silent: dict[NodeId, float] = {}  # when to try; of peers with a session
        self._sides: dict[str, int] = {}

    def on_silence(self, peer: NodeId, silent: bool, now: float) -> None:
        """Try the other uplinks soon, unless the peer answers before."""
        if not silent:
            self._silent.pop(peer, None)
        elif self._hosts():
            self._silent[peer] = now + AFTER_S
        self._arm()

    def on_session_gone(self, session: Session, now: float) -> None:
        """Forget the peer."""
        self._silent.pop(session.peer, None)

    def on_own_record(self, record: EndpointRecord, now: float) -> None:
        """Close the sockets at addresses that this host has no longer."""
        for host in [host for host in self._sides if host not in _own_hosts(record)]:
            side = self._sides.pop(host)
            self._context.link.close_side(side)
            for session in self._context.peers.sessions.values():
                for path in session.paths.book.paths():
                    if isinstance(path, ViaSocket) and path.socket == side:
                        session.paths.book.drop(path)

    def _arm(self) -> None:
        self._timer.set(min(self._silent.values(), default=None))

    def _tick(self, now: float) -> None:
        for peer in [peer for peer, at in self._silent.items() if at <= now]:
            del self._silent[peer]
            session = self._context.peers.sessions.get(peer)
            if session is not None:
                self._try(session, now)
        self._arm()

    def _hosts(self) -> list[str]:
        """Return this host's addresses but for the first of each family, which is its way out, and that one's network.

        A record names the best of each network first.
        """
        record = self._context.record
        hosts = _own_hosts(record) if record is not None else []
        networks = self._context.peers.here.networks
        found = []
        for is_ipv6 in (False, True):
            first, *others = [host for host in hosts if (":" in host) is is_ipv6] or [""]
            near = [(host, prefix) for host, prefix in networks if host == first]
            found += [host for host in others if not on_networks(Addr(host, 1), near)]
        return found[:MAX_UPLINKS]

    def _try(self, session: Session, now: float) -> None:
        networks = self._context.peers.here.networks
        known = [path for path in session.paths.book.paths() if isinstance(path, Addr)]
        targets = [addr for addr in known if not on_networks(addr, networks)][:MAX_UPLINK_TARGETS]
        for host in self._hosts() if targets else ():
            side = self._sides.get(host)
            if side is None:
                opened = self._context.link.open_sides(1, host)
                if not opened:
                    continue
                side = self._sides[host] = opened[0]
            paths = [ViaSocket(addr, side) for addr in targets if (":" in addr.host) is (":" in host)]
            session.paths.add_candidates([(path, "uplink") for path in paths], now)
        self._context.metrics.count(TRIED)
        self._context.probes.settle(session, now)


def _own_hosts(record: EndpointRecord) -> list[str]:
    hosts = [endpoint.addr.host for endpoint in record.endpoints if endpoint.kind is EndpointKind.HOST]
    return [host for host in hosts if not is_loopback(Addr(host, 1)) and not host.startswith("fe80:")]
