"""Detection of router restarts, which lose all mappings, from the clock in every answer (RFC 6887 section 8.5)."""

from __future__ import annotations

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import PORTMAP_ROUTERS

SLACK_S = 2


class Epochs:
    """The last clock reading of each router, with this node's monotonic time then (seconds)."""

    def __init__(self) -> None:
        self._seen: BoundedDict[str, tuple[int, float]] = BoundedDict(PORTMAP_ROUTERS)

    def knows(self, router: str) -> bool:
        """Return True when a reading is remembered."""
        return router in self._seen

    def restarted(self, router: str, epoch: int, now: float, *, nat_pmp: bool) -> bool:
        """Remember a clock reading; return True when the router has restarted since the last one.

        Args:
            router: Its address.
            epoch: Its seconds since it last lost its mappings, as the answer says.
            now: Monotonic seconds.
            nat_pmp: Whether it came by NAT-PMP, whose tolerance is wider (RFC 6886 section 3.6: 7/8 and 2 s) than that
                of PCP (RFC 6887 section 8.5: 1/16 and 2 s, and no step back by more than 1 s).

        Returns:
            False also for the first reading of a router.
        """
        last = self._seen.get(router)
        self._seen.put(router, (epoch, now))
        if last is None:
            return False
        server, client = epoch - last[0], now - last[1]
        if nat_pmp:
            return server < client * 7 / 8 - SLACK_S
        if server < -1:
            return True
        return client + SLACK_S < server - server / 16 or server + SLACK_S < client - client / 16

    def forget(self, routers: set[str]) -> None:
        """Forget the readings of all other routers."""
        for router in [router for router in self._seen if router not in routers]:
            del self._seen[router]
