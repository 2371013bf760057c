"""Instances that rival for a use of a service: when one falls silent another is proven, and its streams are ended.

A silence alone ends nothing, for the node may be moving. It is another instance's answer that makes the end of a stream
worth more than its going on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from meshnode.base.bounded import BoundedDict
from meshnode.base.log_lines import rated_logger
from meshnode.base.metrics import describe
from meshnode.errors import ConnectionLost, MeshError
from meshnode.identity.node_id import NodeId
from meshnode.quic.stream import Stream
from meshnode.runtime.runtime import Runtime

if TYPE_CHECKING:
    from meshnode.directory.announcement import Instance
    from meshnode.stack.directory_link import DirectoryLink

log = rated_logger("meshnode.calls")

Trust = frozenset[NodeId] | None  # the nodes that may serve; None: every member
Use = tuple[str, Trust]  # a service, and the nodes that may serve it

CUT_S = 0.12  # a silence is noticed after 80 ms and 1.25 round trips; so much later its streams are given up
CUT_RTTS = 1.5
AGAIN_S, MAX_AGAIN_S = 0.05, 1.0  # between looks whether another instance answers by now
MAX_PROVEN = 1_024  # instances; a proof counts for a second or two, so what is forgotten is of no use any more
PROOF_S = 1.0  # an instance that answered within this time is alive

FAILOVERS = describe("service_failovers", "streams ended because their instance fell silent and another one answered")


class Rivals:
    """The streams of one node by instance and use, and the proofs that other instances live."""

    def __init__(self, runtime: Runtime, registry: DirectoryLink) -> None:
        self._runtime = runtime
        self._log = runtime.journal.rate.of_node(log)
        self._registry = registry
        self._loop = asyncio.get_running_loop()
        self._streams: dict[NodeId, dict[Stream, Use]] = {}
        self._proven: BoundedDict[NodeId, float] = BoundedDict(MAX_PROVEN)
        self._warming: dict[NodeId, None] = {}

    def note(self, peer: NodeId, use: Use, stream: Stream) -> None:
        """Take a stream that was opened for a use: it ends when its instance falls silent and another one answers."""
        streams = self._streams.setdefault(peer, {})
        for old in [s for s in streams if s.over]:
            del streams[old]
        streams[stream] = use

    def on_answer(self, peer: NodeId) -> None:
        """Note that an instance has just answered."""
        self._proven.put(peer, self._loop.time())

    def on_silent(self, peer: NodeId) -> None:
        """Handle a silence: something expected of ``peer`` does not come.

        Prove other instances, then decide.
        """
        uses = self._uses_of(peer)
        if not uses:
            return
        rtt = self._registry.rtt(peer) or 0.0
        began = self._loop.time()
        for use in uses:
            self._warm(use, peer)
        self._loop.call_later(CUT_S + CUT_RTTS * min(rtt, 0.5), self._decide, peer, began, AGAIN_S)

    def on_gone(self, peer: NodeId) -> None:
        """The mesh believes that ``peer`` is gone, or its service was withdrawn as failed."""
        for use in self._uses_of(peer):
            self._warm(use, peer)
        self._decide(peer, self._loop.time() - PROOF_S, AGAIN_S)

    def _chosen(self, use: Use) -> list[Instance]:
        return self._registry.choose(use[0], self._loop.time(), only=use[1])

    def _uses_of(self, peer: NodeId) -> list[Use]:
        streams = self._streams.get(peer)
        if streams is None:
            return []
        for old in [s for s in streams if s.over]:
            del streams[old]
        if not streams:
            del self._streams[peer]
        return list(dict.fromkeys(streams.values()))

    def _decide(self, peer: NodeId, began: float, again: float) -> None:
        """End the streams to a silent peer for whose service another instance answers; else look again later."""
        uses = self._uses_of(peer)
        if not uses or self._runtime.is_closed or not self._registry.directory.experience.is_silent(peer):
            return
        waiting = False
        for use in uses:
            rivals = [i.node for i in self._chosen(use) if i.node != peer]
            if any(self._proven.get(rival, 0.0) >= began for rival in rivals):
                self._cut(peer, use)
            elif rivals or self._seeks(use, peer):
                waiting = True
                self._warm(use, peer)
        if waiting:
            self._loop.call_later(again, self._decide, peer, began, min(MAX_AGAIN_S, again * 1.5))

    def _seeks(self, use: Use, peer: NodeId) -> bool:
        """Look for another instance, of which gossip may not have told; return whether that is under way."""
        name, trust = use
        if trust is not None and trust <= {peer}:
            return False
        return self._registry.seek_service(name, self._loop.time())

    def _cut(self, peer: NodeId, use: Use) -> None:
        self._registry.directory.experience.on_failed(peer, self._loop.time())
        for stream, opened in list(self._streams.get(peer, {}).items()):
            if opened == use:
                self._runtime.metrics.count(FAILOVERS)
                del self._streams[peer][stream]
                stream.error = ConnectionLost(
                    f"{use[0]} at {peer.short} fell silent, and another instance answers", hint="open it again"
                )
                stream.reset()

    def _warm(self, use: Use, silent: NodeId) -> None:
        """Have a connection to the next instance before it is needed, and proof that it lives."""
        for instance in self._chosen(use)[:3]:
            rival = instance.node
            if rival == silent or instance.state not in ("up", "suspect") or rival in self._warming:
                continue
            self._warming[rival] = None
            self._runtime.tasks.spawn(self._prove(rival))
            return

    async def _prove(self, rival: NodeId) -> None:
        try:
            outcome = await self._runtime.ping(rival, PROOF_S)
            if outcome.rtt is not None:
                self.on_answer(rival)
        except MeshError as error:
            self._log.debug("another instance, %s, does not answer either: %s", rival.short, error)
        finally:
            self._warming.pop(rival, None)
