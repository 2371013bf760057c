"""The addresses of this host: what the record says of them, kept true while interfaces and port mappings change."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from meshnode.base.address import Addr, parse_addr
from meshnode.base.clock import Clock
from meshnode.base.metrics import Metrics
from meshnode.base.timers import RETRY_S, OnError
from meshnode.config import Config
from meshnode.identity.record import Endpoint, EndpointKind
from meshnode.nat.own_addresses import HostView, WayOut
from meshnode.runtime.interfaces import InterfaceWatcher

if TYPE_CHECKING:
    from meshnode.runtime.port_mapping import PortMapping

MAPPING_SETTLE_S = 0.05  # a mapping that is lost and one that takes its place make one new record

OnChange = Callable[[tuple[Endpoint, ...], tuple[tuple[str, int], ...], bool], None]


class OwnAddresses:
    """Watches interfaces, asks the router for ports, and tells ``on_change`` the endpoints, networks, and whether
    the node has moved. ``local`` returns the address that the node's socket is bound to."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        config: Config,
        mapping_secret: bytes,
        local: Callable[[], Addr],
        on_change: OnChange,
        metrics: Metrics,
        on_error: OnError,
    ) -> None:
        self._loop = loop
        self._config = config
        self._clock_and_secret = clock, mapping_secret
        self._local = local
        self._on_change = on_change
        self._metrics = metrics
        self._on_error = on_error
        self._watcher = InterfaceWatcher(loop, self._on_interfaces, on_error)
        self._view, _ = self._watcher.look()
        self._told: HostView | None = None  # what ``on_change`` was told of last, without an error
        self._rerouted = False
        self.port_maps: PortMapping | None = None
        self._mapping_handle: asyncio.TimerHandle | None = None
        self._closed = False

    def start(self) -> None:
        """Publish the endpoints that this host has now, and watch for changes.

        ``on_change`` is called before this returns, with ``moved`` False. The router is asked for ports in the next
        turn of the loop.
        """
        self._publish(moved=False)
        self._watcher.start()
        self._loop.call_soon(self._update_port_maps)  # after the start, which it must not delay

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return what the record names of this host, without what others see."""
        return self._endpoints()[0]

    @property
    def ways_out(self) -> tuple[WayOut, ...]:
        """The default routes of this host at the last look."""
        return self._view.ways_out

    def moved(self) -> None:
        """Publish the addresses after a move of the socket.

        ``on_change`` is called with ``moved`` True, and port mappings are asked for at the new addresses.
        """
        if self._closed:
            return
        self._view, _ = self._watcher.look()
        self._moved()

    def _moved(self) -> None:
        self._publish(moved=True)
        self._update_port_maps()

    def mapping_status(self) -> dict[str, Any]:
        """Return the port mappings as plain JSON: ``mappings`` and ``port_mapping``.

        Empty with ``port_mapping`` off, and when the node is bound to loopback.
        """
        return self.port_maps.to_json() if self.port_maps is not None else {}

    def degraded(self) -> list[str]:
        """Return what this host lacks, a sentence each."""
        return self._watcher.degraded()

    def stop(self) -> None:
        """Stop watching and publishing.

        The port mappings stay until ``release_mappings``.
        """
        self._closed = True
        self._watcher.close()
        if self._mapping_handle is not None:
            self._mapping_handle.cancel()

    async def release_mappings(self) -> None:
        """Give the router its ports back; waits at most 0.5 s."""
        if self.port_maps is not None:
            await self.port_maps.close()

    def _publish(self, *, moved: bool) -> None:
        endpoints, networks = self._endpoints()
        self._on_change(endpoints, networks, moved)
        self._told = self._view

    def _endpoints(self) -> tuple[tuple[Endpoint, ...], tuple[tuple[str, int], ...]]:
        bound = self._local()
        found = [Endpoint(parse_addr(text), EndpointKind.MAPPED) for text in self._config.advertise]
        if bound.host in ("::", "0.0.0.0"):
            hosts = self._view.hosts(ipv6=bound.host == "::")
            found += [Endpoint(Addr(host, bound.port)) for host in hosts]
        else:
            found.append(Endpoint(bound))
        mapped = self.port_maps.mappings() if self.port_maps is not None else []
        known = {endpoint.addr for endpoint in found}
        found += [Endpoint(m.external, EndpointKind.MAPPED) for m in mapped if m.external not in known]
        return tuple(found), self._view.networks()

    def _on_interfaces(self) -> None:
        """Tell of a change of interfaces what it changes: a move, other addresses, or nothing."""
        if self._closed:
            return
        self._view, rerouted = self._watcher.look()
        self._rerouted = self._rerouted or rerouted
        view, told = self._view, self._told
        if told is None or self._rerouted or view.place() != told.place():
            self._metrics.count("interface_changes")
            self._moved()
            self._rerouted = False
        elif (view.hosts(ipv6=True), view.networks()) != (told.hosts(ipv6=True), told.networks()):
            self._publish(moved=False)

    def _update_port_maps(self) -> None:
        """Refresh port mappings after an address or port change; skipped when bound to loopback."""
        if self._closed or not self._config.port_mapping:
            return
        if self.port_maps is None:
            if _is_loopback(self._local().host):
                return
            from meshnode.runtime.port_mapping import PortMapping

            self.port_maps = PortMapping(
                self._loop,
                *self._clock_and_secret,
                os.urandom,
                self._on_mappings,
                self._metrics,
                self._on_error,
                upnp=self._config.upnp,
            )
        self.port_maps.update(self._local())

    def _on_mappings(self) -> None:
        if self._mapping_handle is None and not self._closed:
            self._mapping_handle = self._loop.call_later(MAPPING_SETTLE_S, self._publish_mappings)

    def _publish_mappings(self) -> None:
        self._mapping_handle = None
        if self._closed:
            return
        try:
            self._publish(moved=False)
        except Exception as error:
            self._mapping_handle = self._loop.call_later(RETRY_S, self._publish_mappings)
            self._on_error(error)


def _is_loopback(host: str) -> bool:
    return host == "::1" or host.startswith("127.")
