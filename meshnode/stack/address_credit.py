"""Credit of hosts that have not answered: what may go to an address before something went round trip there. Sans-IO.

Every datagram that leaves a node passes here (``sender.py``), whatever its protocol. An address that answered what was
sent to it (a probe, a DHT request, a handshake) is proven, and has no limit. Every other is a host's that may never
have asked for anything, for a source can be spoofed and a record can lie. It gets what authentic bytes "from" it have
earned: three for each byte of a connection (RFC 9000 section 8.1), one for each other byte. What this node begins of
its own accord (a dial, a probe of an address that a record names) has a small allowance beside that.

Credit is a host's, not a port's: a spoofer has 65,535 ports, and the whole /64 of an IPv6 address. What goes by TCP is
``tunnel_dials``' business.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from meshnode.base.address import Addr
from meshnode.base.fair_table import FairTable, host_of, source_shares
from meshnode.base.limits import (
    CREDIT_LIFE_S,
    HOST_ALLOWANCE,
    HOST_ALLOWANCE_PER_S,
    MAX_CREDIT_HOSTS,
    MAX_HOST_ALLOWANCES,
    MAX_PROVEN_ADDRESSES,
)
from meshnode.base.path import Path, ViaTunnel, udp_address
from meshnode.base.token_bucket import TokenBucket
from meshnode.stack.tunnel_dials import TunnelDials

OF_CONNECTION = 3  # RFC 9000 section 8.1: bytes that may go back for each byte that came
OF_STRANGER = 1


class Cause(Enum):
    """Reason for a datagram, which decides what an address that is not proven pays with.

    ``ANSWER``: something came from there, and only what that earned counts. ``PROBE``: a record or another node names
    the address; half of the host's allowance may be spent. ``DIAL``: this node dials; all of it may. ``SEARCH``: a
    port search that both ends agreed on, paid by ``grant``.
    """

    ANSWER = "answer"
    PROBE = "probe"
    DIAL = "dial"
    SEARCH = "search"


class _Host:
    """Bytes that one host may be sent: earned, granted for a port search, and the allowance."""

    __slots__ = ("_earned_at", "allowance", "earned", "granted")

    def __init__(self, now: float) -> None:
        self.earned = 0
        self._earned_at = now
        self.granted = 0
        self.allowance = TokenBucket(HOST_ALLOWANCE_PER_S, HOST_ALLOWANCE, now)

    def settle(self) -> None:
        """Add the allowance of one more node that is there."""
        if self.allowance.burst < MAX_HOST_ALLOWANCES * HOST_ALLOWANCE:
            self.allowance.burst += HOST_ALLOWANCE
            self.allowance.rate += HOST_ALLOWANCE_PER_S
        self.allowance.give(HOST_ALLOWANCE)

    def earn(self, size: int, now: float) -> None:
        """Add bytes that something which came now has earned; what is left of earlier ones lapses."""
        self._lapse(now)
        self.earned += size
        self._earned_at = now

    def _lapse(self, now: float) -> None:
        if now - self._earned_at > CREDIT_LIFE_S:
            self.earned = 0

    def pay(self, size: int, cause: Cause, now: float) -> bool:
        """Pay for a datagram, first with what was earned; False, paying nothing, when it is too much."""
        if cause is Cause.SEARCH:
            if size > self.granted:
                return False
            self.granted -= size
            return True
        self._lapse(now)
        missing = max(0, size - self.earned)
        if missing:
            kept = 0.0 if cause is Cause.DIAL else self.allowance.burst / 2
            if cause is Cause.ANSWER or self.allowance.wait(missing + kept, now) > 0:
                return False
            self.allowance.take(missing, now)
        self.earned -= size - missing
        return True


class AddressCredit:
    """The proven addresses of a node, and the credit of all other hosts. ``now`` is monotonic seconds."""

    def __init__(self) -> None:
        self.proven: dict[Path, None] = {}  # only UDP addresses: what leads elsewhere is asked about, and has no limit
        self.tunnels = TunnelDials()
        self._proven: FairTable[Path] = FairTable(MAX_PROVEN_ADDRESSES)
        self._hosts: dict[bytes, _Host] = {}
        self._known: FairTable[bytes] = FairTable(MAX_CREDIT_HOSTS)

    def answered(self, path: Path, now: float) -> None:
        """Take note that what was sent by ``path`` was answered: its address is proven.

        A relay proves nothing, for its answer came by another host; a tunnel may be dialled again. Each address that
        answers brings its host one more allowance: many nodes of a mesh may share a host, or the outside of a NAT.
        """
        addr = udp_address(path)
        if addr is None:
            if isinstance(path, ViaTunnel) and path.peer:
                self.tunnels.answered(path)
            return
        if addr in self.proven:
            self._proven.touch(addr)
            return
        self.proven[addr] = None
        gone = self._proven.add(addr, *source_shares(addr.host))
        if gone is not None:
            del self.proven[gone]
        self._host(addr, now).settle()

    def earn(self, path: Path, size: int, factor: int, now: float) -> None:
        """Take note of an authentic datagram of ``size`` bytes from an address that is not proven."""
        addr = udp_address(path)
        if addr is not None and addr not in self.proven:
            self._host(addr, now).earn(factor * size, now)

    def grant(self, addr: Addr, size: int, now: float) -> None:
        """Allow ``size`` bytes of a port search at the host of ``addr``, in place of what is left of the last one."""
        self._host(addr, now).granted = size

    def charge(self, path: Path, sizes: Iterable[int], cause: Cause, now: float) -> int:
        """Pay for datagrams that go by ``path``.

        Return how many of them, from the first on, may go.
        """
        sizes = list(sizes)
        addr = udp_address(path)
        if addr is None or addr in self.proven:
            return len(sizes)
        host = self._host(addr, now)
        for count, size in enumerate(sizes):
            if not host.pay(size, cause, now):
                return count
        return len(sizes)

    def _host(self, addr: Addr, now: float) -> _Host:
        key = host_of(addr.host)
        host = self._hosts.get(key)
        if host is None:
            host = self._hosts[key] = _Host(now)
            gone = self._known.add(key, *source_shares(addr.host))
            if gone is not None:
                del self._hosts[gone]
        return host
