"""Requests of programs that run for a while: what they ask for ends when they do, and is not kept over a restart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from meshnode.daemon.request import Json, Request, request

if TYPE_CHECKING:
    from meshnode.daemon.context import Daemon


@request("proxy_while", endless=True)
class ProxyWhile(Request):
    """A proxy on a port of loopback, a free one for 0, as long as this is asked."""

    port: int = 0

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield where it listens.

        Raises ConfigError, AddressInUse.
        """
        import asyncio

        async with daemon.proxies.lent(self.port) as listen:
            yield {"listen": listen}
            await asyncio.Event().wait()


@request("expose_while", endless=True)
class ExposeWhile(Request):
    """Serve a target under a name, as long as this is asked."""

    name: str
    target: str
    allow: tuple[str, ...] = ()

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield the name and the target.

        Raises ConfigError, also for a name that is served already; InvalidId, NotFound, NameChanged, NameDisputed.
        """
        import asyncio

        from meshnode.services.expose import Expose
        from meshnode.services.setting import Setting

        setting = Setting(self.name, (self.target,), await daemon.allowed(self.allow))
        expose = Expose(daemon.node, setting.checked())
        daemon.book.passing[self.name] = expose
        try:
            yield {"name": self.name, "target": expose.target}
            await asyncio.Event().wait()
        finally:
            del daemon.book.passing[self.name]
            await expose.end(0)
