"""The events of a node that its audit log has (``trust/audit.py``): admissions, refusals, cuts, opens, policies."""

from __future__ import annotations

from meshnode.errors import MeshError
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection
from meshnode.quic.stream import Stream
from meshnode.runtime.audit_files import AuditFiles
from meshnode.trust.audit import Kind, session_of
from meshnode.trust.decision import Decision
from meshnode.trust.guard import Guard
from meshnode.trust.policy import Act, Policy
from meshnode.trust.revocation import Revocation

MAX_TEXT = 200  # characters of a reason


class Audit:
    """Notes events. ``files`` is None where the log is off; each event then costs a comparison."""

    def __init__(self, files: AuditFiles | None, guard: Guard) -> None:
        self.files = files
        self._guard = guard
        self._policies: dict[str, Policy | None] = {"mesh": None, "local": None}
        if files is not None:
            files.note(Kind.STARTED)
            guard.on_change.append(self._on_change)
            self._on_change()

    def on_connection(self, connection: Connection, up: bool) -> None:
        """Note a connection that both ends have admitted, or its end."""
        if self.files is None:
            return
        why = None if up or connection.error is None else str(connection.error)[:MAX_TEXT]
        side = "dialler" if connection.dialler else "listener"
        kind = Kind.ADMITTED if up else Kind.ENDED
        self.files.note(kind, connection.peer, session=_session(connection), side=side, why=why)

    def on_refused(self, peer: NodeId, act: Act, what: str, decision: Decision) -> None:
        """Note what a peer was refused."""
        self._decided(Kind.REFUSED, peer, act, what, decision)

    def on_cut(self, peer: NodeId, act: Act, what: str, decision: Decision) -> None:
        """Note what was ended because it is allowed no longer."""
        self._decided(Kind.CUT, peer, act, what, decision)

    def _decided(self, kind: Kind, peer: NodeId, act: Act, what: str, decision: Decision) -> None:
        if self.files is not None:
            name, why = what[:MAX_TEXT] or None, decision.why[:MAX_TEXT]
            self.files.note(kind, peer, act=act.value, service=name, rule=decision.rule, grant=decision.grant, why=why)

    def on_served(self, link: Connection, stream: Stream) -> None:
        """Note a service of this node that a peer opens."""
        if self.files is None:
            return
        decision = self._guard.ask(Act.SERVICE, link.peer, stream.service)
        self._stream(Kind.OPENED, link, stream, side="acceptor", rule=decision.rule, grant=decision.grant)

    def on_used(self, link: Connection, stream: Stream, error: MeshError | None) -> None:
        """Note a service of a peer that this node has opened, or why it could not."""
        if self.files is not None:
            kind = Kind.OPENED if error is None else Kind.FAILED
            self._stream(kind, link, stream, side="opener", why=None if error is None else str(error)[:MAX_TEXT])

    def _stream(self, kind: Kind, link: Connection, stream: Stream, **fields: object) -> None:
        assert self.files is not None
        service = stream.service[:MAX_TEXT]
        self.files.note(kind, link.peer, session=_session(link), stream=stream.id, service=service, **fields)

    def on_revoked(self, revocation: Revocation) -> None:
        """Note a revocation that this node has taken."""
        if self.files is not None:
            node = NodeId(revocation.target) if revocation.is_key else None
            grant = None if revocation.is_key else revocation.target_text
            why, issuer = revocation.reason[:MAX_TEXT] or None, revocation.issuer
            by = issuer if revocation.chain else None  # the authority; a member may name any target, at its own rate
            self.files.note_by(by, Kind.REVOKED, node, grant=grant, issuer=str(issuer), why=why)

    def _on_change(self) -> None:
        assert self.files is not None
        for name, policy in (("mesh", self._guard.mesh), ("local", self._guard.local)):
            if policy is not self._policies[name]:
                self._policies[name] = policy
                said = policy.to_json() if policy is not None else {}
                shown = {key: said.get(key) for key in ("version", "mode", "rules")}
                self.files.note(Kind.POLICY, None, policy=name, **shown)

    async def settled(self) -> None:
        """Return when all that was noted is on the disk; at once where the log is off.

        Raises OSError.
        """
        if self.files is not None:
            await self.files.settled()

    def degraded(self) -> list[str]:
        """Return why the log is not written, in words; empty while it is."""
        return self.files.degraded() if self.files is not None else []

    def close(self) -> None:
        """Note the end of the node, write what waits, and seal it."""
        files, self.files = self.files, None
        if files is not None:
            files.note(Kind.STOPPED)
            files.finish()


def _session(link: Connection) -> str:
    ends = (link.own, link.peer) if link.dialler else (link.peer, link.own)
    return session_of(*ends, link.engine.odcid)
