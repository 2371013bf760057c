"""Real nodes of a mesh with an authority: what they keep of grants survives kill -9, and both ends tell roles."""

from __future__ import annotations

import json
import os
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

import meshnode
from meshnode.daemon.context import Daemon
from meshnode.daemon.requests.mesh import TakeRotation
from meshnode.daemon.requests.trust import KeepGrants, StatementApply
from meshnode.identity.keyfile import load
from meshnode.identity.keys import Identity
from meshnode.sdk.node import runtime_of
from meshnode.services.proxy.book import ProxyBook
from meshnode.services.registry import ServiceBook
from meshnode.trust.authority import Issuer
from meshnode.trust.grant import LAST_MS, Delegation
from meshnode.trust.home_mesh import load_chain, load_mesh, load_rotation, save_chain
from meshnode.trust.operator import create_mesh, invite, join, own_grant, rotate_mesh
from meshnode.trust.revocation import Revocation, sign_revocation
from meshnode.trust.rotation import sign_rotation
from meshnode.trust.succession import open_succession, sign_succession
from tests.live.test_directory import until


def _config(home: Path, *, seed: meshnode.Node | None = None) -> meshnode.Config:
    seeds = (f"{seed.id}@{seed.record.endpoints[0]}",) if seed is not None else ()
    flags = {"listen": "127.0.0.1:0", "mdns": False, "port_mapping": False, "seeds": seeds or None}
    return meshnode.Config.load(home, flags, env={})


def _member(operator: Path, authority: Identity, home: Path, role: str, uses: int = 1) -> None:
    mesh = load_mesh(operator)
    assert mesh is not None
    node = Identity.generate()
    home.mkdir(mode=0o700)
    from meshnode.identity.keyfile import save

    save(home / "key", node)
    said = {"services": None, "seeds": (), "ticket_s": 60.0, "lifetime_s": 3600.0, "uses": uses}
    ticket = invite(mesh, Issuer(authority), roles=(role,), wall=time.time(), entropy=os.urandom, **said)  # type: ignore[arg-type]
    join(home, ticket, node, time.time(), os.urandom)


@pytest.fixture
def operator(tmp_path: Path) -> tuple[Path, Identity]:
    from meshnode.identity.keyfile import load_or_create
    from meshnode.trust.home_mesh import load_authority

    home = tmp_path / "a"
    home.mkdir(mode=0o700)
    create_mesh(home, "field", load_or_create(home / "key"), None, time.time(), os.urandom)
    authority = load_authority(home, None)
    assert authority is not None
    return home, authority


async def test_a_grant_that_is_damaged_stops_no_start_and_is_told(
    operator: tuple[Path, Identity], caplog: pytest.LogCaptureFixture
) -> None:
    home, _ = operator
    grant, *others = load_chain(home)
    save_chain(home, (grant[:-1] + bytes([grant[-1] ^ 1]), *others, bytes(40)))
    async with meshnode.Node(_config(home)) as node:
        assert node.roles == frozenset()
    assert "this node has no grant that holds" in caplog.text


@pytest.mark.parametrize("lost", ["revocations", "policy.signed", None])
async def test_a_home_that_has_lost_what_was_revoked_lets_streams_wait_as_one_that_was_away(
    operator: tuple[Path, Identity], lost: str | None
) -> None:
    home, _ = operator
    if lost is not None:
        (home / lost).write_bytes(b"junk")
    async with meshnode.Node(_config(home)) as node:
        assert node.status()["revocations"] == {"known": 0, "waits": lost is not None}
        told = [text for text in node.status()["degraded"] if "was damaged" in text]
        assert [text.split()[0] for text in told] == ([lost] if lost else [])
    async with meshnode.Node(_config(home)) as node:
        assert not node.status()["revocations"]["waits"], "what was of no use is set aside"


@pytest.mark.parametrize("ran", [-86_400, 86_400])
async def test_a_new_grant_in_a_home_that_did_not_run_for_long_or_whose_clock_was_set_back_makes_it_no_newcomer(
    operator: tuple[Path, Identity], ran: int
) -> None:
    home, _ = operator
    (home / "seq").write_text(str(round((time.time() + ran) * 1000)))
    async with meshnode.Node(_config(home)) as node:
        assert node.status()["revocations"]["waits"]


async def test_renewed_grants_are_saved_again_after_a_new_key_that_came_to_nothing(
    operator: tuple[Path, Identity],
) -> None:
    home, authority = operator
    async with meshnode.Node(_config(home)) as node:
        daemon = Daemon(node, ServiceBook(node), ProxyBook(node))
        standings = runtime_of(node).stack.context.standings
        for number, is_replaced in enumerate((False, True), 1):
            asked = KeepGrants().answer(daemon)
            assert await anext(asked) == {"kept": True}
            chain = own_grant(authority, node.id, time.time() + number, os.urandom)
            if is_replaced:
                link = sign_succession(load(home / "key"), Identity.generate(), time=0, ends=LAST_MS)
                save_chain(home, (*load_chain(home), link))
            standings.set_own(chain)
            await asked.aclose()  # type: ignore[attr-defined]
            if not is_replaced:
                await until(lambda chain=chain: load_chain(home) == chain)
    assert load_chain(home)[-1] == link, "a new key is put behind those of before"


async def test_a_change_of_the_secret_that_was_taken_is_on_the_disk(operator: tuple[Path, Identity]) -> None:
    home, authority = operator
    mesh = load_mesh(home)
    assert mesh is not None
    rotation = rotate_mesh(home, mesh, authority, delay_s=9.0, overlap_s=9.0, wall=time.time(), entropy=os.urandom)
    async with meshnode.Node(_config(home)) as node:
        daemon = Daemon(node, ServiceBook(node), ProxyBook(node))
        asked = TakeRotation(b64encode(rotation.encoded).decode()).answer(daemon)
        assert await anext(asked) == {"taken": True}
        assert load_rotation(home, authority.id) == rotation


@pytest.mark.parametrize("is_foreign", [False, True])
async def test_a_next_secret_that_is_damaged_is_told_until_the_home_has_another(
    operator: tuple[Path, Identity], tmp_path: Path, is_foreign: bool, caplog: pytest.LogCaptureFixture
) -> None:
    home, authority = operator
    mesh = load_mesh(home)
    assert mesh is not None
    said = {"delay_s": 600.0, "overlap_s": 600.0, "wall": time.time(), "entropy": os.urandom}
    rotation = rotate_mesh(home, mesh, authority, **said)  # type: ignore[arg-type]
    damaged = (
        sign_rotation(Identity.generate(), serial=1, key=bytes(32), begins=0, ends=0).encoded if is_foreign else b"-"
    )
    (home / "mesh.rotation").write_bytes(damaged)
    for _ in range(2):  # it is set aside at the first start, and the secret is as lost at the second one
        async with meshnode.Node(_config(home)) as node:
            assert runtime_of(node).stack.context.mesh_keys.held is None
            assert any("join again with a new ticket" in text for text in node.status()["degraded"])
    assert "mesh.rotation is damaged" in caplog.text
    assert (home / "mesh.rotation.damaged").read_bytes() == damaged
    async with meshnode.Node(_config(home)) as node:
        assert runtime_of(node).stack.context.mesh_keys.adopt(rotation.encoded, 0.0)
        assert node.status()["degraded"] == []
    async with meshnode.Node(_config(home)) as node:
        assert node.status()["degraded"] == []


async def test_grants_that_a_person_has_put_into_the_home_stay_though_those_of_before_are_renewed(
    operator: tuple[Path, Identity],
) -> None:
    home, authority = operator
    async with meshnode.Node(_config(home)) as node:
        runtime = runtime_of(node)
        now = round(time.time() * 1000)
        said = {"roles": ["web"], "not_before": now, "expires": now + 1_000_000, "entropy": os.urandom}
        put = Issuer(authority).issue(node.id, **said)  # type: ignore[arg-type]
        save_chain(home, put)
        runtime.stack.context.standings.set_own(own_grant(authority, node.id, time.time() + 1, os.urandom))
        await runtime.state.idle()
        assert load_chain(home) == put
    assert load_chain(home) == put
    async with meshnode.Node(_config(home)) as node:
        chain = own_grant(authority, node.id, time.time() + 2, os.urandom)
        runtime_of(node).stack.context.standings.set_own(chain)
        await until(lambda: load_chain(home) == chain)
        (home / "grant").unlink()
        chain = own_grant(authority, node.id, time.time() + 3, os.urandom)
        runtime_of(node).stack.context.standings.set_own(chain)
        await until(lambda: load_chain(home) == chain)


async def test_a_statement_that_is_taken_says_where_it_counts_and_one_without_a_place_is_an_error(
    operator: tuple[Path, Identity],
) -> None:
    home, authority = operator
    old, now = Identity.generate(), round(time.time() * 1000)
    async with meshnode.Node(_config(home)) as node:
        daemon, own, shown = Daemon(node, ServiceBook(node), ProxyBook(node)), load(home / "key"), load_chain(home)

        async def apply(made: Revocation) -> Any:
            return await anext(StatementApply(made.encoded.hex()).answer(daemon))

        gone = Identity.generate()
        link = open_succession(sign_succession(old, gone, time=now, ends=now))
        runtime_of(node).stack.context.successors.note(link, ("", ""))
        said = await apply(sign_revocation(authority, bytes(gone.id), time=now))
        assert (said["everywhere"], said["formers"]) == (True, [str(old.id)])
        said = await apply(sign_revocation(authority, bytes(old.id), time=now))
        assert (said["everywhere"], said["formers"]) == (True, [])
        said = await apply(sign_revocation(own, bytes(8), time=now, chain=shown))
        assert (said["everywhere"], said["formers"]) == (False, [])
        with pytest.raises(meshnode.MeshError, match="no place"):
            await apply(sign_revocation(own, bytes([1]) * 8, time=now, ends=0, chain=shown))
        assert (await apply(sign_revocation(own, bytes(own.id), time=now, chain=shown)))["everywhere"]


async def test_both_ends_tell_the_roles_of_the_other_and_a_service_for_a_role_is_reached_by_it_alone(
    operator: tuple[Path, Identity], tmp_path: Path
) -> None:
    home, authority = operator
    for name, role in (("b", "web"), ("c", "guest")):
        _member(home, authority, tmp_path / name, role)

    async def hello(reader: meshnode.MeshReader, writer: meshnode.MeshWriter, peer: meshnode.NodeId) -> None:
        writer.write(b"hello")

    async with (
        meshnode.Node(_config(home)) as a,
        meshnode.Node(_config(tmp_path / "b", seed=a)) as b,
        meshnode.Node(_config(tmp_path / "c", seed=a)) as c,
    ):
        a.serve("web", hello, allow=["role:web"])
        assert (a.roles, b.roles, c.roles) == ({"admin"}, {"web"}, {"guest"})
        connection = await b.connect(a.id)
        assert connection.peer_roles == {"admin"}
        assert (await a.connect(b.id)).peer_roles == {"web"}
        reader, _ = await b.open(a.id, "web")
        assert await reader.read(5) == b"hello"
        with pytest.raises(meshnode.PolicyDenied):
            await c.open(a.id, "web")
        assert a.status()["trust"]["roles"] == ["admin"]


async def test_uses_of_an_invitation_and_renewed_grants_are_in_the_home_at_once(
    operator: tuple[Path, Identity], tmp_path: Path
) -> None:
    home, authority = operator
    _member(home, authority, tmp_path / "b", "web")
    invited = load_chain(tmp_path / "b")
    mesh = load_mesh(home)
    assert mesh is not None
    async with meshnode.Node(_config(home)) as a, meshnode.Node(_config(tmp_path / "b", seed=a)) as b:
        await b.connect(a.id)
        kept = runtime_of(a).stack.context.standings.redemptions.saved()
        assert [use["keys"] for use in kept.values()] == [[str(b.id)]]  # type: ignore[index]
        may = Delegation(("web",), None, 1, 2**52)
        now = round(time.time() * 1000)
        longer = Issuer(authority).issue(
            b.id, roles=["web"], not_before=now, expires=now + 9_000_000, delegation=may, entropy=os.urandom
        )
        runtime_of(b).stack.context.standings.set_own(longer)
    assert json.loads((home / "invitations.json").read_text()) == kept
    assert load_chain(tmp_path / "b") == longer != invited
    save_chain(tmp_path / "b", invited)
    async with meshnode.Node(_config(home)) as a:
        assert runtime_of(a).stack.context.standings.redemptions.saved() == kept


async def test_a_damaged_count_is_set_aside_and_the_node_starts(operator: tuple[Path, Identity]) -> None:
    home, _ = operator
    for damaged in (b"junk", b"[]", b'{"x": {"ends": "no", "keys": 1}}', b'{"x": 1}'):
        (home / "invitations.json").write_bytes(damaged)
        async with meshnode.Node(_config(home)) as node:
            assert node.roles == {"admin"}
            assert any("invitations.json was damaged" in text for text in node.status()["degraded"])
        assert (home / "invitations.json.damaged").read_bytes() == damaged


async def test_the_next_secret_of_the_mesh_is_taken_while_nodes_run_and_after_a_restart(
    operator: tuple[Path, Identity], tmp_path: Path
) -> None:
    home, authority = operator
    _member(home, authority, tmp_path / "b", "web")
    mesh = load_mesh(home)
    assert mesh is not None
    said = {"delay_s": 0.5, "overlap_s": 0.5, "entropy": os.urandom}
    async with meshnode.Node(_config(home)) as a, meshnode.Node(_config(tmp_path / "b", seed=a)) as b:
        connection = await b.connect(a.id)
        rotation = rotate_mesh(home, mesh, authority, wall=time.time(), **said)  # type: ignore[arg-type]
        assert runtime_of(a).stack.context.mesh_keys.adopt(rotation.encoded, runtime_of(a).clock.monotonic())
        runtime_of(a).driver.on_dirty()
        keys = [runtime_of(node).sealer for node in (a, b)]
        await until(lambda: {key.mesh.bytes for key in keys} == {rotation.key} and rotation.is_over(time.time()), 30.0)
        assert connection.is_open
        assert (await b.ping(a.id)).rtt is not None
    for each in (home, tmp_path / "b"):
        assert (each / "mesh.rotation").stat().st_mode & 0o077 == 0
    async with meshnode.Node(_config(home)) as a, meshnode.Node(_config(tmp_path / "b", seed=a)) as b:
        assert runtime_of(b).sealer.mesh.bytes == rotation.key
        assert (await b.ping(a.id)).rtt is not None
        _member(home, authority, tmp_path / "late", "web")  # with a ticket of the secret from before
        async with meshnode.Node(_config(tmp_path / "late", seed=a)) as late:
            with pytest.raises((meshnode.NoPathError, meshnode.NotFound, meshnode.HandshakeTimeout)):
                await late.connect(a.id)
