"""This node's own record: which addresses it has and is seen as, signed and published whenever that changes."""

from __future__ import annotations

from dataclasses import replace

from meshnode.base.address import Addr
from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_OWN_SEQS, SEEN_BURST, SEEN_PER_S
from meshnode.base.path import Path
from meshnode.base.token_bucket import TokenBucket
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint, EndpointKind, EndpointRecord, sign_record
from meshnode.nat.local_networks import LocalNetworks, is_loopback, on_networks
from meshnode.nat.own_addresses import named
from meshnode.stack.component import Component, tell
from meshnode.stack.context import SYMMETRIC, Context
from meshnode.stack.key_twins import capability_of
from meshnode.stack.session import Session

RENEW_DELAY_S = 0.05


class OwnRecord(Component):
    """Own addresses, what others see of them, and the record that says so."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._peers = context.peers
        self._endpoints: tuple[Endpoint, ...] = ()
        self._timer = context.timers.timer(self._renew)
        self._signed: BoundedDict[int, None] = BoundedDict(MAX_OWN_SEQS)
        self._first_seq = 0
        self._seen = TokenBucket(SEEN_PER_S, SEEN_BURST, context.clock.monotonic())

    def set_addresses(
        self, endpoints: tuple[Endpoint, ...], networks: tuple[tuple[str, int], ...], now: float, *, moved: bool
    ) -> None:
        """Take these as the local endpoints.

        When ``moved``, probe every live peer first, then tell them.
        """
        context = self._context
        own = frozenset(endpoint.addr for endpoint in endpoints)
        self._settle_here(networks, own)
        if moved:
            self._seen.give(SEEN_BURST)
            on_error = context.timers.on_error
            for session in list(self._peers.sessions.values()):
                tell((self._tell_of_move,), on_error, session, now)
            # what was in flight goes again before a signature, and a file that is synced
            tell((context.links.flush,), on_error, now)
        changed = self._take_endpoints(endpoints)
        if changed:
            self._timer.set(now)  # should it fail now, it is tried again
            self._sign(now)
        if moved:
            context.records.moving(now)
        if changed:
            self._publish(now)
        if moved:
            context.records.moved(now)
            context.relays.moved(now)
            if context.gossip is not None:
                context.gossip.moved()
        context.nat.filters.moved(own, networks, now, moved=moved)

    def _tell_of_move(self, session: Session, now: float) -> None:
        session.paths.local_change(now)
        self._context.probes.drain(session, now)

    def _take_endpoints(self, endpoints: tuple[Endpoint, ...]) -> bool:
        changed = bool(endpoints) and endpoints != self._endpoints
        self._endpoints = endpoints
        # a mapping is the NAT's doing: it does not change how others see this node
        hosts = frozenset(endpoint.addr for endpoint in endpoints if endpoint.kind is EndpointKind.HOST)
        self._context.nat.mappings.moved(hosts)
        return changed

    def changed(self, now: float) -> None:
        """Renew the record after ``RENEW_DELAY_S``, together with what else changes until then.

        Not later than a renewal that is due earlier.
        """
        self._timer.set(min(self._timer.when, now + RENEW_DELAY_S))
        self._context.events.on_dirty()

    def seen_as(self, peer: NodeId, source: Path, seen: Addr, now: float) -> None:
        """Note that a member at ``source`` saw this node as ``seen``.

        Only seeds and connected peers count, which this node chose; not those on its own networks, nor over detours.
        """
        chosen = peer in self._context.records.hints or self._peers.connection(peer) is not None
        if not chosen or not isinstance(source, Addr):
            return
        if on_networks(source, self._peers.here.networks):
            return
        if self._context.nat.observed(peer, source, seen, now) and self._is_other(now):
            wait = 0.0 if self._seen.take(1, now) else self._seen.wait(1, now)  # what one peer says may be a lie
            self.changed(now + wait)

    def _is_other(self, now: float) -> bool:
        """Return whether the record would say something else than the one that is published."""
        record = self._context.record
        return record is None or (record.endpoints, record.capabilities) != self._said(now)

    def _said(self, now: float) -> tuple[tuple[Endpoint, ...], tuple[str, ...]]:
        """Return what the record says of where this node is and what it can do."""
        context, mappings = self._context, self._context.nat.mappings
        behaviour = (SYMMETRIC,) if mappings.symmetric(now) else ()
        capabilities = (*context.settings.capabilities, *behaviour, capability_of(context.boot))
        return named(self._endpoints, mappings.reflexive(now)), capabilities

    def on_clock_set(self, now: float) -> None:
        """Sign the record again: it is dated by a clock that was wrong."""
        if self._endpoints:
            self._timer.set(now)

    def on_heard(self, record: EndpointRecord, now: float) -> None:
        """Take a record of this node's id from others: one that it did not sign is of another host with its key.

        Those of an earlier process have lower numbers.
        """
        if self._first_seq and record.seq > self._first_seq and record.seq not in self._signed:
            self._context.note_twin(record.id, now)
            self._context.fencing.heard(record, now)

    def hear_loopback(self) -> None:
        """Take peers' loopback addresses for real: a member of the mesh is on this host."""
        if not self._peers.here.loopback:
            self._peers.set_here(replace(self._peers.here, loopback=True))

    def _settle_here(self, networks: tuple[tuple[str, int], ...], own: frozenset[Addr]) -> None:
        hints = self._context.records.hints.values()
        hinted = any(isinstance(path, Addr) and is_loopback(path) for paths in hints for path in paths)
        near = self._peers.here.loopback or hinted or any(is_loopback(addr) for addr in own)
        self._peers.set_here(LocalNetworks(networks, own, near))

    def _renew(self, now: float) -> None:
        """Replace a record that grows old, or is no longer true."""
        if self._endpoints:
            self._sign(now)
            self._publish(now)

    def _sign(self, now: float) -> None:
        context = self._context
        settings = context.settings
        endpoints, capabilities = self._said(now)
        record = context.record = sign_record(
            context.identity,
            seq=context.next_seq(),
            issued_ms=int(context.clock.wall() * 1000),
            ttl=settings.record_ttl,
            endpoints=endpoints,
            relays=context.relays.homes,
            capabilities=capabilities,
        )
        self._first_seq = self._first_seq or record.seq
        self._signed.put(record.seq, None)
        self._settle_here(self._peers.here.networks, frozenset(e.addr for e in self._endpoints + record.endpoints))
        self._timer.set(now + settings.record_ttl * context.rng.uniform(0.3, 0.5))

    def _publish(self, now: float) -> None:
        record = self._context.record
        if record is not None:
            failed: list[Exception] = []
            tell(self._context.hooks.own_record, failed.append, record, now)
            if failed:
                raise failed[0]  # what has told of new addresses tells of them again
