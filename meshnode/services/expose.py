"""Local programs as services of this node: each stream of a caller is a connection to a target that works."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from meshnode.base.log_lines import Logger, rated_logger
from meshnode.errors import FlowClosed, MeshError
from meshnode.identity.node_id import NodeId
from meshnode.runtime.descriptors import EXHAUSTED
from meshnode.runtime.status import name_of
from meshnode.sdk.datagrams import Datagrams
from meshnode.sdk.node import Node, runtime_of
from meshnode.sdk.service import LIMIT, Service
from meshnode.sdk.streams import MeshReader, MeshWriter
from meshnode.services.ends import End, parse_target
from meshnode.services.health import HTTP, NO_VERDICT, accepts, check_of, in_words, listens, reach
from meshnode.services.http.heads import Caller
from meshnode.services.local import connection
from meshnode.services.pool import Member, Pool
from meshnode.services.proxy_protocol import FOR_CHECKS, proxy_header
from meshnode.services.setting import Setting
from meshnode.services.splice import Before, Mesh, splice
from meshnode.services.udp import Passage, carry, connected
from meshnode.services.usage import Toll, Tolls, parse_rates

log = rated_logger("meshnode.services")

CONNECT_TIMEOUT_S = 10.0
NEXT_S = 1.0  # until the next target is tried, where there is one
RECOVER_S = 2.0  # between looks whether a target that only callers judge is well again


def _log_of(node: Node) -> Logger:
    """Return the log of a node: its lines have the node's rate."""
    return runtime_of(node).journal.rate.of_node(log)


class Expose:
    """A service whose streams go to its targets."""

    def __init__(self, node: Node, setting: Setting, earlier: Expose | None = None) -> None:
        """Serve it; connections of an ``earlier`` one of this name are its own from now on.

        Raises ConfigError, InvalidId.
        """
        self.setting = setting
        self.name, self.allow = setting.name, setting.allow
        self._users: dict[asyncio.Task[None], None] = {} if earlier is None else earlier._users
        self._node = node
        self._log = _log_of(node)
        ends = [parse_target(text) for text in setting.targets]
        rng = runtime_of(node).stack.context.rng
        self.pool = Pool(ends, rng, strict=setting.health.startswith(HTTP))
        runtime = runtime_of(node)
        self.tolls = Tolls(parse_rates(setting.rate), runtime.metrics, runtime.clock.monotonic)
        self._service = self._serve()
        for member in self.pool.members:
            if check_of(setting.health, member.end) is not None:
                runtime_of(node).tasks.spawn(self._watch(member))

    def _serve(self) -> Service:
        setting, limit = self.setting, LIMIT if self.setting.limit is None else self.setting.limit
        told: dict[str, Any] = {"announce": setting.announce, "meta": setting.meta, "limit": limit}
        if self.pool.members[0].end.udp:
            return self._node.serve_datagrams(setting.name, self._handle_flow, allow=setting.allow, **told)
        return self._node.serve(setting.name, self._handle, allow=setting.allow, accept=False, **told)

    @property
    def target(self) -> str:
        """The targets, as they are shown."""
        return ", ".join(self.setting.targets)

    @property
    def error(self) -> str:
        """Why no target works; "" while any does."""
        return self.pool.error

    async def _handle(self, reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        """Accept once a target has: a caller by name is then sent on to another instance when none does."""
        toll = self.tolls.of(peer)
        if not self._is_http and not toll.begin():
            return
        found = await self._connect_any()
        if found is None:
            return
        writer.accept()
        task = asyncio.current_task()
        assert task is not None
        self._users[task] = None
        try:
            if self._is_http:
                await self._serve_http(found, (reader, writer), peer, toll)
            else:
                member, sock = found
                with self.pool.use(member):
                    await splice(sock, (reader, writer), toll, Before(self._header(peer)))
        finally:
            del self._users[task]

    @property
    def _is_http(self) -> bool:
        return self.pool.members[0].end.http

    async def _handle_flow(self, flow: Datagrams, peer: NodeId) -> None:
        """Carry a caller's datagrams to a target, the answers back, until nothing passes."""
        toll, order = self.tolls.of(peer), self.pool.order()
        if not order or not toll.begin():
            return
        task = asyncio.current_task()
        assert task is not None
        self._users[task] = None
        try:
            with self.pool.use(order[0]):
                sock = await connected(order[0].end)
                await carry(sock, Passage(flow, toll, self._warn), toll.drop)
        except FlowClosed:
            pass
        except OSError as error:
            if isinstance(error, MeshError):
                raise
            self._on_failed(order[0], error)
        finally:
            del self._users[task]

    def _warn(self, size: int, most: int) -> None:
        self._log.warning("service %s: a datagram of %d bytes is dropped; at most %d fit", self.name, size, most)

    async def _serve_http(self, found: tuple[Member, socket.socket], mesh: Mesh, peer: NodeId, toll: Toll) -> None:
        from meshnode.services.http.relay import Requests, Upstream

        async def upstream(found: tuple[Member, socket.socket]) -> Upstream:
            local = await connection(found[1])
            local[1].write(self._header(peer))
            return Upstream(local, self.pool.begin(found[0]))

        async def dial() -> Upstream | None:
            again = await self._connect_any()
            return await upstream(again) if again is not None else None

        await Requests(mesh, self._caller(peer), self.name, dial, toll).serve(await upstream(found))

    def _header(self, peer: NodeId) -> bytes:
        """Return what a target is sent of its caller before anything else."""
        if not self.setting.proxy_protocol:
            return b""
        caller, own = self._caller(peer), self._node.id
        return proxy_header(peer.overlay, own.overlay, caller.id, caller.name, caller.roles)

    def _caller(self, peer: NodeId) -> Caller:
        """Return what a target is told of a caller, as this node knows it now."""
        runtime = runtime_of(self._node)
        roles = tuple(sorted(runtime.roles_of(peer)))
        return Caller(str(peer), str(peer.overlay), name_of(runtime, peer), roles)

    async def _connect_any(self) -> tuple[Member, socket.socket] | None:
        """Connect to the first target that accepts; None when none does."""
        order = self.pool.order()
        for member in order:
            try:
                sock = await self._connect(member.end, CONNECT_TIMEOUT_S if member is order[-1] else NEXT_S)
            except OSError as error:  # TimeoutError is one
                self._on_failed(member, error)
                continue
            self._tell(self.pool.on_connected(member))
            return member, sock
        return None

    async def _connect(self, end: End, within: float) -> socket.socket:
        async with asyncio.timeout(within):
            return await reach(end)

    async def probe(self) -> str:
        """Connect to all targets, and return why that cannot be done now; "" when it can be with any."""
        checks = (listens if member.end.udp else accepts for member in self.pool.members)
        found = await asyncio.gather(*(c(m.end) for c, m in zip(checks, self.pool.members, strict=True)))
        return "" if "" in found else found[0]

    def _on_failed(self, member: Member, error: OSError) -> None:
        """Take note that a target did not answer; where this node had no descriptor left that is not its fault."""
        if error.errno in EXHAUSTED:
            self._log.warning("service %s: a caller is refused: no descriptor is left", self.name)
            return
        why = in_words(error)
        self._log.warning("service %s: %s does not answer: %s", self.name, member.end.target, why)
        changed = self.pool.on_failed(member, why)
        self._tell(changed)
        if changed and check_of(self.setting.health, member.end) is None:
            runtime_of(self._node).tasks.spawn(self._recover(member))

    def _tell(self, changed: bool) -> None:
        """Tell the mesh when the service works no longer, or again."""
        if changed and self._service.healthy != self.pool.healthy:
            self._service.update(healthy=self.pool.healthy)

    async def _watch(self, member: Member) -> None:
        """Check a target while it is exposed."""
        first = FOR_CHECKS if self.setting.proxy_protocol else b""
        check = check_of(self.setting.health, member.end, first)
        assert check is not None
        while self._service.is_served:
            before, why = member.error, await check(member.end)
            if why != NO_VERDICT and self.pool.on_check(member, why):
                self._tell(True)
                words = f"fails: {why}" if why else f"is well again (it failed: {before})"
                self._log.warning("service %s: %s %s", self.name, member.end.target, words)
            await asyncio.sleep(self.pool.pause(member))

    async def _recover(self, member: Member) -> None:
        """Look from time to time whether a target that callers found failing accepts again."""
        while member.error and self._service.is_served:
            await asyncio.sleep(RECOVER_S)
            if member.end.udp or not await accepts(member.end):
                self._tell(self.pool.on_connected(member))

    def withdraw(self) -> None:
        """Tell the mesh that the service is gone, and go on serving it."""
        self._service.withdraw()

    def close(self) -> None:
        """Withdraw the service; its connections go on."""
        self._service.close()

    async def end(self, drain: float) -> int:
        """Withdraw the service, and reset the connections that have not ended within ``drain`` seconds.

        Returns how many were reset.
        """
        self.close()
        if self._users and drain > 0:
            await asyncio.wait(list(self._users), timeout=drain)
        left = list(self._users)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        return len(left)
