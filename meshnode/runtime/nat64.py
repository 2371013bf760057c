"""IPv4 hosts from a network that has IPv6 alone and translates (NAT64, RFC 6146), under a prefix that DNS tells.

So a seed that is configured by its IPv4 address is reached, and a peer whose record names no other one. Hosts that
translate by themselves (464XLAT, RFC 6877) have a way out by IPv4, and need none of this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count

from meshnode.nat.own_addresses import WayOut
from meshnode.nat.translation import Translation, prefix_in
from meshnode.runtime.host_names import look_up

KNOWN_NAME = "ipv4only.arpa"  # RFC 7050 section 2.2: it has two IPv4 addresses, and IPv6 ones where DNS makes them
RETRY_S = (1.0, 5.0, 30.0, 120.0)  # while the name server does not answer; the last repeats, as behind a captive portal


class Nat64:
    """Looks for a translator when the ways out change; ``tell`` is given what was found, None where there is none."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tell: Callable[[Translation | None], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._place: object = None
        self._task: asyncio.Task[None] | None = None

    def look(self, ways_out: tuple[WayOut, ...], networks: tuple[tuple[str, int], ...]) -> None:
        """Ask DNS where all ways out are IPv6, unless nothing has changed."""
        if self._place == (ways_out, networks):
            return
        self._place = ways_out, networks
        self.stop()
        if ways_out and all(":" in way.source for way in ways_out):
            self._task = self._loop.create_task(self._find(networks))
        else:
            self._tell(None)

    async def _find(self, networks: tuple[tuple[str, int], ...]) -> None:
        for tried in count():
            try:
                prefix = prefix_in(await look_up(KNOWN_NAME))
            except OSError:
                last = len(RETRY_S) - 1
                if tried >= last:
                    self._tell(None)
                await asyncio.sleep(RETRY_S[min(tried, last)])
            else:
                self._tell(Translation(prefix, networks) if prefix is not None else None)
                return

    def stop(self) -> None:
        """End a search."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
