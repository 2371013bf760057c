"""The proxies of one node, kept in ``proxies.json`` so that they survive a restart."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from meshnode.errors import AddressInUse, ConfigError, NotFound
from meshnode.identity.node_id import quoted
from meshnode.runtime.state_files import read_state
from meshnode.sdk.node import Node, runtime_of
from meshnode.services.ends import parse_listen
from meshnode.services.forward import LISTEN_RETRY_S, NAMES_S, attempt
from meshnode.services.proxy.overlay import OverlayNames

if TYPE_CHECKING:
    from meshnode.services.proxy.listener import Proxy  # 1 MB with h11, for what few nodes have

PROXIES_FILE = "proxies.json"
MAX_PROXIES = 16  # of one node: each has a listener, and no more than one is of use
NOT_YET = "the node is starting"
Json = dict[str, Any]


class ProxyBook:
    """All proxies of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._state = runtime_of(node).state
        self._overlay = OverlayNames(secrets.token_bytes(32))
        self._waiting: asyncio.Task[None] | None = None
        self.proxies: dict[str, Proxy] = {}

    async def restore(self) -> None:
        """Start again what ``proxies.json`` lists; raises nothing.

        An address that cannot be had now is tried again, and so is a name that is not found within ``NAMES_S``.
        """
        saved = read_state(self._state.home / PROXIES_FILE, _parse)
        for listen, is_public, dns in saved or ():  # all at once: what is saved from now on has them
            self.proxies[listen] = self._make(listen, is_public, dns)
            self.proxies[listen].error = NOT_YET
        with suppress(TimeoutError):
            async with asyncio.timeout(NAMES_S):
                await self._start_those_that_wait()
        self._waiting = asyncio.create_task(self._listen_later())

    async def _listen_later(self) -> None:
        while any(proxy.error for proxy in self.proxies.values()):
            await asyncio.sleep(LISTEN_RETRY_S)
            await self._start_those_that_wait()

    async def _start_those_that_wait(self) -> None:
        waiting = [(listen, proxy) for listen, proxy in self.proxies.items() if proxy.error]
        await asyncio.gather(*(self._try_to_start(listen, proxy) for listen, proxy in waiting))

    async def _try_to_start(self, listen: str, proxy: Proxy) -> None:
        known = proxy.error if proxy.error != NOT_YET else ""
        proxy.error = await attempt(proxy.start, f"proxy {listen}", known)
        if self.proxies.get(listen) is not proxy:  # it was stopped while a name was looked up
            await proxy.close()

    async def _save(self) -> None:
        data = [{"listen": p.listen, "public": p.is_public, "dns": p.dns} for p in self.proxies.values()]
        await self._state.write(PROXIES_FILE, json.dumps(data, indent=1).encode())

    def _make(self, listen: str, is_public: bool, dns: str | None) -> Proxy:
        from meshnode.services.proxy.listener import Proxy

        return Proxy(self._node, self._overlay, listen, is_public, dns)

    async def start(self, listen: str, is_public: bool = False, dns: str | None = None) -> Json:
        """Start a proxy; the same one twice is one.

        Args:
            listen: ``PORT`` or ``HOST:PORT``; port 0 takes a free one.
            is_public: Listen where other hosts reach it.
            dns: Where to answer DNS as well, on loopback.

        Returns:
            Where it listens, and answers DNS, as plain JSON.

        Raises:
            ConfigError: The address is none, or not on loopback, or there are ``MAX_PROXIES``.
            AddressInUse: It is taken, or not of this host.
            OSError: It could not be saved; then it does not run.
        """
        if dns is not None:
            dns = str(replace(parse_listen(dns), udp=False))
        proxy = self._make(listen, is_public, dns)
        where = proxy.place
        held = self.proxies.get(where)
        if held is not None and (held.is_public, held.dns) == (is_public, dns) and not held.error:
            return {"listen": where, "dns": dns}
        if len(self.proxies) >= MAX_PROXIES:
            raise ConfigError(f"this node has {MAX_PROXIES} proxies", hint="`meshnode unproxy` stops one")
        try:
            await proxy.start()
        except AddressInUse:
            port = where.rpartition(":")[2]
            rival = next(
                (p.listen for p in self.proxies.values() if p.listen.endswith(f":{port}") and not p.error), None
            )
            if rival is None:
                raise
            hint = f"meshnode unproxy {rival} ends that one first"
            raise AddressInUse(f"a proxy of this node listens on {rival} already", hint=hint) from None
        self.proxies[proxy.listen] = proxy
        try:
            await self._save()
        except OSError:
            await self.proxies.pop(proxy.listen).close()
            raise
        return {"listen": proxy.listen, "dns": proxy.dns}

    @asynccontextmanager
    async def lent(self, port: int) -> AsyncIterator[str]:
        """Run a proxy on a port of loopback, a free one for 0, that is not kept; yield where it listens.

        Raises AddressInUse.
        """
        proxy = self._make(f"127.0.0.1:{port}", False, None)
        await proxy.start()
        try:
            yield proxy.listen
        finally:
            await proxy.close()

    async def stop(self, listen: str) -> Json:
        """Stop a proxy, named by its address or by its port alone, and reset its clients.

        Returns the address as plain JSON. Raises NotFound.
        """
        found = next((key for key in self.proxies if key == listen or key.endswith(f":{listen}")), None)
        if found is None:
            raise NotFound(f"no proxy listens on {quoted(listen)}", hint="`meshnode proxy` alone lists them")
        await self.proxies.pop(found).close()
        await self._save()
        return {"listen": found}

    def describe(self) -> list[Json]:
        """Return ``listen``, ``public``, ``dns``, ``connections``, ``last_error`` and maybe ``error`` of each proxy.

        ``last_error`` is of the last client, null when that one was connected; ``error`` is there while nothing
        listens, and says why.
        """
        now = asyncio.get_running_loop().time()
        return [_described(proxy, now) for proxy in self.proxies.values()]

    async def close(self) -> None:
        """Stop all; the file stays."""
        if self._waiting is not None:
            self._waiting.cancel()
            with suppress(asyncio.CancelledError):
                await self._waiting
        for proxy in self.proxies.values():
            await proxy.close()


def _described(proxy: Proxy, now: float) -> Json:
    last = None
    if proxy.failed is not None:
        error, at = proxy.failed
        last = {**error.to_json()["error"], "ago_s": round(now - at, 3)}
    found = {
        "listen": proxy.listen,
        "public": proxy.is_public,
        "dns": proxy.dns,
        "connections": proxy.connections,
        "last_error": last,
    }
    return {**found, "error": proxy.error} if proxy.error else found


def _parse(data: bytes) -> list[tuple[str, bool, str | None]]:
    """Return the proxies of a saved file. Raises ValueError, LookupError, TypeError."""
    return [
        (str(item["listen"]), bool(item["public"]), str(item["dns"]) if item.get("dns") else None)
        for item in json.loads(data)[:MAX_PROXIES]
    ]
