"""Requests about statements that spread: revocations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from meshnode.daemon.request import Json, Request, request

if TYPE_CHECKING:
    from meshnode.daemon.context import Daemon


@request("statement_apply")
class StatementApply(Request):
    """Take a signed statement, in hexadecimal, and spread it."""

    statement: str

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield what it says, once it is on the disk, and which keys a revoked one has replaced.

        Raises ConfigError: it is none of this mesh, or there is no place for it; OSError.
        """
        from meshnode.errors import ConfigError
        from meshnode.identity.node_id import NodeId
        from meshnode.runtime.revocation_store import FILE_NAME, packed
        from meshnode.sdk.node import runtime_of
        from meshnode.trust.revocation import RevocationError, open_revocation

        runtime = runtime_of(daemon.node)
        context = runtime.stack.context
        authority = context.settings.authority
        if authority is None:
            raise ConfigError("this node is in no mesh with an authority", hint="`meshnode mesh create` makes one")
        try:
            encoded = bytes.fromhex(self.statement)
            context.revoking.take(encoded)
            said = open_revocation(encoded, authority, context.clock.wall())
        except RevocationError as error:
            hint = "get it again; only this mesh's authority, or one of its members, can make it"
            raise ConfigError(f"this is no statement of this mesh: it is {error.reason.value}", hint=hint) from error
        except ValueError as error:
            raise ConfigError("the statement is no hexadecimal text") from error
        held = context.revoking.held or ()
        if not any((each.issuer, each.target) == (said.issuer, said.target) for each in held):
            hint = "the authority's statements have places of their own: revoke it where the mesh was made"
            raise ConfigError("this node has no place for the statement, or it is over: nothing is revoked", hint=hint)
        formers = context.successors.formers(NodeId(said.target)) if said.is_key else []
        runtime.driver.on_dirty()
        await runtime.state.write(FILE_NAME, packed(context.revoking))
        await runtime.audit.settled()
        everywhere, left = said.issuer == authority or said.of_itself, [k for k in formers if not context.is_barred(k)]
        yield {**said.to_json(), "everywhere": everywhere, "formers": [str(key) for key in left]}


@request("revocations")
class RevocationList(Request):
    """What is revoked."""

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield one object each."""
        from meshnode.sdk.node import runtime_of

        for each in runtime_of(daemon.node).stack.context.revoking.held or ():
            yield each.to_json()


@request("keep_grants", endless=True)
class KeepGrants(Request):
    """Leave the file of the grants alone while this is asked: a new key is put behind them."""

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield one object; what is renewed is saved again when the client goes away and has put no new key there.

        Raises ConfigError: this node's key or grants are revoked.
        """
        import asyncio

        from meshnode.errors import ConfigError
        from meshnode.sdk.node import runtime_of
        from meshnode.trust.operator import has_successor

        runtime = runtime_of(daemon.node)
        context = runtime.stack.context
        if context.revoking.own_revoked():
            raise ConfigError("this node's key is revoked: it has no successor", hint="join again, with a new ticket")
        standings, shown = context.standings, context.grants
        save, standings.on_own = standings.on_own, lambda chain: None
        try:
            await runtime.state.idle()
            yield {"kept": True}
            await asyncio.Event().wait()
        finally:
            if not has_successor(runtime.state.home, daemon.node.id):
                standings.on_own = save
                if context.grants != shown:
                    save(context.grants)
