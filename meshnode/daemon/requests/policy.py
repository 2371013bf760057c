"""Requests about policies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from meshnode.daemon.request import Json, Request, request

if TYPE_CHECKING:
    from meshnode.daemon.context import Daemon


@request("policy_explain")
class PolicyExplain(Request):
    """Whether one node may do something at another one, as the running node decides it."""

    caller: str
    target: str
    what: str
    act: str = "service"

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield the decision.

        A node that is only described (``role:R``) need not exist. Raises as ``identify``.
        """
        from meshnode.sdk.node import runtime_of
        from meshnode.trust.policy import Act

        caller, target = [await daemon.described(text) for text in (self.caller, self.target)]
        yield runtime_of(daemon.node).guard.explain(caller, target, self.what, Act(self.act)).to_json()


@request("policy_reload")
class PolicyReload(Request):
    """Read the policy of this home again."""

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield what is in force now.

        Raises ConfigError: the file is wrong, and the rules of before stay.
        """
        from meshnode.sdk.node import runtime_of

        runtime = runtime_of(daemon.node)
        runtime.policy.load()
        await runtime.audit.settled()
        yield _in_force(daemon)


@request("policy_apply")
class PolicyApply(Request):
    """Put a policy that the mesh's authority has signed in force, here and by gossip at every node."""

    path: str

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield what is in force now.

        Raises ConfigError: it is forged, wrong or not newer; OSError.
        """
        from pathlib import Path

        from meshnode.runtime.policy_file import SIGNED_NAME, read_signed
        from meshnode.sdk.node import runtime_of

        runtime = runtime_of(daemon.node)
        held = runtime.stack.context.policies.adopt(read_signed(Path(self.path)))
        runtime.driver.on_dirty()
        await runtime.state.write(SIGNED_NAME, held.encoded)
        await runtime.audit.settled()
        yield _in_force(daemon)


@request("policy_show")
class PolicyShow(Request):
    """The policies that are in force."""

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield one object."""
        yield _in_force(daemon)


@request("audit_settle")
class AuditSettle(Request):
    """Write what the audit log has noted."""

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield one object once it is on the disk.

        Raises OSError.
        """
        from meshnode.sdk.node import runtime_of

        await runtime_of(daemon.node).audit.settled()
        yield {"settled": True}


def _in_force(daemon: Daemon) -> Json:
    from meshnode.sdk.node import runtime_of

    guard = runtime_of(daemon.node).guard
    found: Json = {}
    for name, policy in (("mesh", guard.mesh), ("local", guard.local)):
        found[name] = policy.to_json() if policy is not None else None
    return found
