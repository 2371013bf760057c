"""Requests about the node's proxies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from meshnode.daemon.request import Json, Request, request

if TYPE_CHECKING:
    from meshnode.daemon.context import Daemon


@request("proxy")
class StartProxy(Request):
    """Listen for programs that speak SOCKS5 or HTTP to a proxy."""

    listen: str
    public: bool = False
    dns: str | None = None

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield where it listens, and answers DNS.

        Raises AddressInUse, ConfigError.
        """
        yield await daemon.proxies.start(self.listen, self.public, self.dns)


@request("unproxy")
class StopProxy(Request):
    """Stop a proxy."""

    listen: str

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield where it listened.

        Raises NotFound.
        """
        yield await daemon.proxies.stop(self.listen)


@request("proxies")
class Proxies(Request):
    """The proxies of this node."""

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield one object a proxy."""
        for proxy in daemon.proxies.describe():
            yield proxy
