"""Commands that make, join and grant in a private mesh: what they print, write and refuse, without a node."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from meshnode.base.limits import MAX_LINEAGE
from meshnode.cli.commands.trust import show_qr
from meshnode.cli.front import group
from meshnode.config import Config
from meshnode.errors import ConfigError, GrantError, GrantReject, KeyFileError, MeshError
from meshnode.identity.keys import Identity
from meshnode.identity.mesh_file import mesh_key_bytes
from meshnode.identity.node_id import NodeId
from meshnode.identity.price import has_price
from meshnode.trust.authority import Issuer
from meshnode.trust.chain import verify_chain
from meshnode.trust.grant import open_grant
from meshnode.trust.home_mesh import (
    load_authority,
    load_chain,
    load_mesh,
    load_rotation,
    save_chain,
    save_rotation,
)
from meshnode.trust.operator import drop_old_key, own_grant, renew_own, rotate_mesh, secret_of
from meshnode.trust.rotation import Rotation, sign_rotation
from meshnode.trust.succession import is_succession, open_succession
from meshnode.trust.ticket import format_ticket, make_ticket, parse_ticket
from tests.unit.qr import read_qr


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"PATH": "", "HOME": "/nonexistent"})


def run(home: Path, *args: str, stdin: str | None = None, **env: str) -> Any:
    """Run a command with ``--json`` and return its object; raises what it raises."""
    line = ["--home", str(home), *args, "--json"]
    done = CliRunner().invoke(group, line, input=stdin, env=env, standalone_mode=False, catch_exceptions=False)
    return json.loads(done.stdout.splitlines()[0])


def refused(home: Path, *args: str, **more: Any) -> MeshError:
    with pytest.raises(MeshError) as caught:
        run(home, *args, **more)
    return caught.value


@pytest.fixture
def operator(tmp_path: Path) -> Path:
    run(tmp_path / "a", "mesh", "create", "field")
    return tmp_path / "a"


def ticket(home: Path, *args: str) -> str:
    return str(run(home, "invite", *args)["ticket"])


def test_whatever_seed_a_ticket_is_made_with_can_be_read_again(operator: Path) -> None:
    node, name = str(Identity.generate().id), "n" * 60 + ".example"
    for seed in (f"{node}@{name}:4242", f" {node}@192.0.2.1:4242\n"):
        assert parse_ticket(ticket(operator, "--seed", seed)).seeds == (seed.strip(),)
    long = f"{node}@{name}.{name}:4242"
    assert "too long for a ticket" in refused(operator, "invite", "--seed", long).message
    (operator / "meshnode.toml").write_text(f'seeds = ["{long}", "{node}@192.0.2.1:4242"]')
    assert parse_ticket(ticket(operator)).seeds == (f"{node}@192.0.2.1:4242",)


def test_a_mesh_is_made_with_its_secrets_readable_by_this_user_alone(tmp_path: Path) -> None:
    home = tmp_path / "a"
    said = run(home, "mesh", "create", "field")
    mesh = load_mesh(home)
    assert mesh is not None
    assert (said["mesh"], said["authority"]) == ("field", str(mesh.authority))
    for name in ("mesh.json", "grant", "authority.key", "key"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    assert mesh.key not in json.dumps(said)
    config = Config.load(home, env={})
    assert (config.mesh, config.authority) == (mesh.key, said["authority"])
    assert mesh.key not in repr(config)
    assert isinstance(refused(home, "mesh", "create", "other"), ConfigError)


@pytest.mark.parametrize("full", ["authority.key", "grant", "mesh.json"])
def test_a_mesh_that_was_half_made_on_a_full_disk_is_made_when_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    replace = os.replace

    def fill(source: str, target: str, **folders: int) -> None:
        if target == full:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target, **folders)

    monkeypatch.setattr(os, "replace", fill)
    assert "the disk is full" in refused(tmp_path, "mesh", "create", "field").message
    monkeypatch.setattr(os, "replace", replace)
    assert run(tmp_path, "mesh", "create", "field")["mesh"] == "field"


def test_a_mesh_that_cannot_be_made_takes_no_authoritys_key_along_that_another_program_has_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(source: str, target: str, **folders: int) -> None:
        (tmp_path / "authority.key").write_bytes(b"the other's")
        raise OSError(errno.ENOSPC, "No space left on device")

    run(tmp_path, "keygen")
    monkeypatch.setattr(os, "replace", fill)
    assert "the disk is full" in refused(tmp_path, "mesh", "create", "field").message
    assert (tmp_path / "authority.key").read_bytes() == b"the other's"


def test_a_setting_or_flag_for_another_mesh_leaves_the_homes_mesh_out(operator: Path) -> None:
    assert Config.load(operator, {"mesh": "open"}, env={}).authority == ""
    assert Config.load(operator, env={"MESHNODE_MESH": "other"}).authority == ""


def test_a_ticket_brings_another_home_into_the_mesh_with_its_roles(operator: Path, tmp_path: Path) -> None:
    seed = f"{Identity(b's' * 32).id}@192.0.2.1:4242"
    text = ticket(operator, "--role", "web", "--role", "db", "--service", "web*", "--seed", seed)
    said = run(tmp_path / "b", "join", text)
    mine, theirs = load_mesh(operator), load_mesh(tmp_path / "b")
    assert mine is not None
    assert theirs is not None
    assert (theirs.name, theirs.key, theirs.authority) == (mine.name, mine.key, mine.authority)
    assert (said["mesh"], said["roles"]) == ("field", ["db", "web"])
    assert said["id"] == run(tmp_path / "b", "id")["id"]
    assert Config.load(tmp_path / "b", env={}).seeds == (seed,)
    shown = run(tmp_path / "b", "grant", "show")
    assert (shown["roles"], shown["services"], shown["delegate"]) == (["db", "web"], ["web*"], False)


def test_a_ticket_comes_from_a_file_and_from_stdin_too(operator: Path, tmp_path: Path) -> None:
    file = tmp_path / "ticket"
    assert run(operator, "invite", "--role", "web", "--out", str(file))["file"] == str(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run(tmp_path / "b", "join", f"@{file}")["roles"] == ["web"]
    assert run(tmp_path / "c", "join", "-", stdin=file.read_text())["roles"] == ["web"]
    assert isinstance(refused(operator, "invite", "--out", str(file)), ConfigError), "it is not overwritten"


@pytest.mark.parametrize("text", ["", "mesh-", "mesh-aaaa", "open", "@/nonexistent"])
def test_what_is_no_ticket_is_said_to_be_none_and_leaves_the_home_as_it_was(tmp_path: Path, text: str) -> None:
    error = refused(tmp_path / "b", "join", text)
    assert isinstance(error, ConfigError)
    assert error.hint
    assert not (tmp_path / "b" / "mesh.json").exists()


def test_a_home_joins_one_mesh_and_its_own_again(operator: Path, tmp_path: Path) -> None:
    run(tmp_path / "x", "mesh", "create", "other")
    run(tmp_path / "b", "join", ticket(operator, "--role", "web"))
    assert isinstance(refused(tmp_path / "b", "join", ticket(tmp_path / "x")), ConfigError)
    assert run(tmp_path / "b", "join", ticket(operator, "--role", "db"))["roles"] == ["db"]


def test_a_ticket_that_has_expired_is_refused_with_what_to_do(operator: Path, tmp_path: Path) -> None:
    text = ticket(operator, "--expires", "0.01s")
    time.sleep(0.05)
    error = refused(tmp_path / "b", "join", text)
    assert isinstance(error, GrantError)
    assert error.reason is GrantReject.TOO_LATE
    assert "meshnode invite" in error.hint


def test_what_an_invitation_says_is_in_the_ticket(operator: Path) -> None:
    found = parse_ticket(ticket(operator, "--role", "web", "--expires", "2h", "--uses", "7", "--lifetime", "3d"))
    now = time.time() * 1000
    assert found.delegation.uses == 7
    assert found.delegation.until == pytest.approx(now + 2 * 3_600_000, abs=60_000)
    assert found.delegation.roles == ("web",)


def test_the_authoritys_key_is_encrypted_under_its_own_passphrase(tmp_path: Path) -> None:
    home, passphrase = tmp_path / "a", {"MESHNODE_AUTHORITY_PASSPHRASE": "correct horse"}
    run(home, "mesh", "create", "field", **passphrase)
    assert isinstance(refused(home, "invite"), KeyFileError)
    assert run(home, "invite", **passphrase)["ticket"].startswith("mesh-")
    assert run(home, "id")["id"], "the node's key is not"
    key = load_authority(home, "correct horse")
    assert key is not None
    assert run(home, "invite", MESHNODE_AUTHORITY_KEY=key.seed.hex())["ticket"].startswith("mesh-")
    assert isinstance(refused(home, "invite", MESHNODE_AUTHORITY_KEY="00" * 32), ConfigError)


def test_the_node_of_the_authoritys_home_invites_without_the_authoritys_key(operator: Path, tmp_path: Path) -> None:
    (operator / "authority.key").unlink()
    run(tmp_path / "b", "join", ticket(operator, "--role", "web"))
    mesh = load_mesh(operator)
    assert mesh is not None
    node = run(tmp_path / "b", "id")["id"]
    chain = load_chain(tmp_path / "b")
    assert len(chain) == 3
    assert str(verify_chain(chain, _id(node), mesh.authority, time.time()).id) == node


def _id(text: str) -> Any:
    from meshnode.identity.node_id import NodeId

    return NodeId.parse(text)


def test_a_grant_that_is_dated_behind_all_calendars_is_taken_and_shown(tmp_path: Path) -> None:
    authority, now = Identity.generate(), int(time.time() * 1000)
    made = make_ticket(
        Issuer(authority),
        "field",
        bytes(32),
        authority.id,
        (),
        roles=("web",),
        services=None,
        now=now,
        until=now + 3_600_000,
        expires=2**53,
        uses=1,
        entropy=os.urandom,
    )
    assert run(tmp_path / "b", "join", format_ticket(made))["expires"] == 2**53 / 1000
    assert run(tmp_path / "b", "grant", "show")["roles"] == ["web"]


def test_a_member_without_a_delegation_cannot_invite(operator: Path, tmp_path: Path) -> None:
    run(tmp_path / "b", "join", ticket(operator, "--role", "web"))
    error = refused(tmp_path / "b", "invite", "--role", "web")
    assert "may give no grants" in error.message


def test_a_delegate_gives_its_roles_and_no_others(operator: Path, tmp_path: Path) -> None:
    file, more = tmp_path / "grant", tmp_path / "more"
    run(tmp_path / "b", "join", ticket(operator, "--role", "web"))
    node = run(tmp_path / "b", "id")["id"]
    made = run(operator, "grant", "issue", node, "--role", "web", "--delegate", "--out", str(file))
    assert (made["delegate"], made["renews"]) == (True, False)
    assert run(tmp_path / "b", "grant", "install", str(file))["grant"] == made["grant"]
    other = str(Identity(b"o" * 32).id)
    assert run(tmp_path / "b", "grant", "issue", other, "--role", "web", "--out", str(more))["roles"] == ["web"]
    error = refused(tmp_path / "b", "grant", "issue", other, "--role", "db", "--out", str(tmp_path / "no"))
    assert isinstance(error, GrantError)
    assert error.reason is GrantReject.WIDER
    assert not (tmp_path / "no").exists()


def test_a_grant_for_another_node_is_not_installed(operator: Path, tmp_path: Path) -> None:
    run(tmp_path / "b", "join", ticket(operator, "--role", "web"))
    file = tmp_path / "grant"
    run(operator, "grant", "issue", str(Identity(b"o" * 32).id), "--role", "db", "--out", str(file))
    error = refused(tmp_path / "b", "grant", "install", str(file))
    assert isinstance(error, GrantError)
    assert error.reason is GrantReject.OTHER_KEY
    assert run(tmp_path / "b", "grant", "show")["roles"] == ["web"]


def test_the_authoritys_own_node_is_renewed_from_half_of_its_time_on(operator: Path) -> None:
    authority, node = load_authority(operator, None), _id(run(operator, "id")["id"])
    assert authority is not None
    now = time.time()
    assert not renew_own(operator, node, authority, now, lambda count: bytes(count))
    save_chain(operator, own_grant(authority, node, now - 200 * 86_400, lambda count: bytes(count)))
    assert renew_own(operator, node, authority, now, lambda count: bytes(count))
    assert run(operator, "grant", "show")["expires"] == pytest.approx(now + 365 * 86_400, abs=60)


def test_a_clock_before_the_ticket_was_made_is_told_as_such(operator: Path, tmp_path: Path) -> None:
    from meshnode.trust.ticket import redeem

    found = parse_ticket(ticket(operator, "--role", "web"))
    with pytest.raises(GrantError) as caught:
        redeem(found, Identity(b"n" * 32).id, time.time() - 86_400, lambda count: bytes(count))
    assert "clock" in caught.value.message
    assert caught.value.hint == "set the clock"


@pytest.mark.parametrize("args", [["--role", "No Role"], [f"--role=r{n}" for n in range(9)], ["--service", ""]])
def test_a_role_or_service_that_is_none_or_one_too_many_is_told(operator: Path, args: list[str]) -> None:
    error = refused(operator, "invite", *args)
    assert isinstance(error, ConfigError)
    assert error.hint


def test_the_secret_is_rotated_once_at_a_time_and_tickets_have_the_one_of_their_time(operator: Path) -> None:
    before = load_mesh(operator)
    assert before is not None
    said = run(operator, "mesh", "rotate", "--delay", "0.01s", "--overlap", "1h")
    assert (said["mesh"], said["told"]) == ("field", False)
    assert said["ends"] - said["begins"] == pytest.approx(3600)
    time.sleep(0.05)
    rotation = load_rotation(operator, before.authority)
    assert rotation is not None
    assert parse_ticket(ticket(operator)).secret == rotation.key != mesh_key_bytes(before.key)
    assert isinstance(refused(operator, "mesh", "rotate"), ConfigError)


def test_a_key_or_secret_of_before_counts_for_90_days_at_most(operator: Path) -> None:
    before = run(operator, "id")["id"]
    for args in (("rotate", "--grace"), ("mesh", "rotate", "--overlap"), ("mesh", "rotate", "--delay")):
        error = refused(operator, *args, "91d")
        assert isinstance(error, ConfigError)
        assert error.hint == "at most 90 days"
    assert run(operator, "id")["id"] == before
    assert not (operator / "mesh.rotation").exists()
    assert run(operator, "rotate", "--grace", "90d")["old"] == before


def test_a_key_is_replaced_again_once_its_grants_are_its_own(operator: Path) -> None:
    first = run(operator, "rotate")["id"]
    authority = load_authority(operator, None)
    assert authority is not None
    wall = time.time() + 300 * 86_400
    assert renew_own(operator, NodeId.parse(first), authority, wall, os.urandom)
    grant, link = load_chain(operator)
    assert verify_chain((grant, link), NodeId.parse(first), authority.id, wall).former == open_succession(link).issuer
    chain = own_grant(authority, NodeId.parse(first), time.time(), os.urandom, open_grant(grant).lineage)
    save_chain(operator, (*chain, link))
    assert run(operator, "rotate")["old"] == first


def test_a_key_that_could_not_be_renewed_for_all_that_it_has_replaced_is_not_made(operator: Path) -> None:
    authority, before, now = load_authority(operator, None), run(operator, "id")["id"], round(time.time() * 1000)
    assert authority is not None
    for count in (MAX_LINEAGE, MAX_LINEAGE - 1):
        said = {"not_before": now, "expires": now + 3_600_000, "entropy": os.urandom}
        lineage = tuple(bytes([n]) * 32 for n in range(count))
        save_chain(operator, Issuer(authority).issue(NodeId.parse(before), lineage=lineage, **said))  # type: ignore[arg-type]
        if count == MAX_LINEAGE:
            assert "grant issue" in refused(operator, "rotate").hint
            assert run(operator, "id")["id"] == before
    assert run(operator, "rotate")["old"] == before


def _rotate(home: Path, ahead: float = 0.0) -> Rotation:
    mesh, authority = load_mesh(home), load_authority(home, None)
    assert mesh is not None
    assert authority is not None
    wall = time.time() + ahead
    return rotate_mesh(home, mesh, authority, delay_s=600.0, overlap_s=1.0, wall=wall, entropy=os.urandom)


def test_a_next_secret_that_a_wrong_clock_has_dated_is_followed_by_one_that_counts(operator: Path) -> None:
    wrong = _rotate(operator, ahead=400 * 86_400.0)
    save_rotation(operator, wrong)
    right = _rotate(operator)
    assert right.serial > wrong.serial
    assert right.begins < time.time() * 1000 + 700_000
    save_rotation(operator, right)
    with pytest.raises(ConfigError, match="already"):
        _rotate(operator)


def test_a_damaged_next_secret_makes_no_ticket_and_no_other_secret(operator: Path) -> None:
    run(operator, "mesh", "rotate")
    good = (operator / "mesh.rotation").read_bytes()
    foreign = sign_rotation(Identity(b"x" * 32), serial=1, key=bytes(32), begins=0, ends=0).encoded
    for damaged in (b"", good[:-1], foreign):
        (operator / "mesh.rotation").write_bytes(damaged)
        for args in (("invite",), ("mesh", "rotate")):
            error = refused(operator, *args)
            assert "mesh.rotation is damaged" in error.message
            assert error.hint
    (operator / "mesh.rotation").write_bytes(good)
    assert ticket(operator)


def test_a_home_that_joins_again_has_the_secret_of_its_ticket_and_none_of_before(
    operator: Path, tmp_path: Path
) -> None:
    first = ticket(operator)
    homes = [tmp_path / name for name in ("kept", "damaged")]
    for home in homes:
        run(home, "join", first)
    for at in range(2):
        run(operator, "mesh", "rotate", "--delay", "0.01s", "--overlap", "0.01s")
        if at == 0:
            (homes[0] / "mesh.rotation").write_bytes((operator / "mesh.rotation").read_bytes())
            (homes[1] / "mesh.rotation").write_bytes(b"junk")
        time.sleep(0.05)
    run(homes[0], "join", first)
    assert (homes[0] / "mesh.rotation").exists(), "what follows the secret of the ticket is known"
    again = ticket(operator, "--uses", "2")
    for home in homes:
        run(home, "join", again)
        mesh = load_mesh(home)
        assert mesh is not None
        assert mesh_key_bytes(secret_of(home, mesh, time.time()).key) == parse_ticket(again).secret


def test_a_setting_that_names_another_mesh_is_warned_of_when_a_home_joins(operator: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir(mode=0o700)
    for home, text, warned in ((tmp_path / "b", 'mesh = "open"', True), (tmp_path / "c", None, False)):
        if text is not None:
            (home / "meshnode.toml").write_text(text)
        line = ["--home", str(home), "join", ticket(operator, "--role", "web")]
        done = CliRunner().invoke(group, line, standalone_mode=False, catch_exceptions=False)
        assert ("names another mesh" in done.stderr) is warned


def test_a_grant_in_a_file_is_made_again_for_later_by_what_may_make_it(operator: Path, tmp_path: Path) -> None:
    old, new, node = tmp_path / "old", tmp_path / "new", str(Identity(b"o" * 32).id)
    more = ["--role", "web", "--service", "web*", "--renews", "--lifetime", "1h"]
    first = run(operator, "grant", "issue", node, *more, "--out", str(old))
    again = run(operator, "grant", "renew", str(old), "--out", str(new))
    same = ("id", "roles", "services", "delegate", "renews")
    assert [again[key] for key in same] == [first[key] for key in same]
    assert again["expires"] > first["expires"]
    run(tmp_path / "b", "join", ticket(operator, "--role", "web"))
    assert isinstance(refused(tmp_path / "b", "grant", "renew", str(old), "--out", str(tmp_path / "no")), ConfigError)


def test_a_key_that_replaces_another_has_the_price_of_an_id(operator: Path) -> None:
    assert has_price(NodeId.parse(run(operator, "rotate")["id"]))


def test_a_key_that_has_just_replaced_another_is_not_replaced_and_the_reason_is_told(operator: Path) -> None:
    new = run(operator, "rotate")["id"]
    error = refused(operator, "rotate")
    assert isinstance(error, ConfigError)
    assert "replaced another" in error.message
    assert error.hint
    assert run(operator, "id")["id"] == new


@pytest.mark.parametrize("full", ["key.new", "key.old", "grant", "key"])
def test_a_key_whose_replacement_did_not_fit_on_the_disk_has_one_successor(
    operator: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    old, replace = run(operator, "id")["id"], os.replace

    def fill(source: str, target: str, **folders: int) -> None:
        if os.path.basename(target) == full:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target, **folders)

    monkeypatch.setattr(os, "replace", fill)
    with pytest.raises((MeshError, OSError)):
        run(operator, "rotate")
    monkeypatch.setattr(os, "replace", replace)
    told = load_chain(operator)[-1]
    assert run(operator, "id")["id"] == old
    assert is_succession(told) == (full == "key")
    new = run(operator, "rotate")["id"]
    assert run(operator, "id")["id"] == new
    assert not is_succession(told) or str(open_succession(told).subject) == new
    assert not (operator / "key.new").exists()


def test_the_replaced_key_goes_when_its_grace_period_is_over_and_not_before(operator: Path) -> None:
    assert not drop_old_key(operator, time.time() + 1e6), "nothing was replaced"
    ends = run(operator, "rotate", "--grace", "2h")["grace_until"]
    assert not drop_old_key(operator, ends)
    assert (operator / "key.old").exists()
    assert drop_old_key(operator, ends + 61)
    assert not (operator / "key.old").exists()
    assert (operator / "key").exists()
    assert not drop_old_key(operator, ends + 61)


def test_a_ticket_is_shown_as_a_qr_code_where_that_can_be_made(operator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segno", None)
    assert "pip install" in refused(operator, "invite", "--qr").hint


def test_a_camera_reads_the_ticket_from_the_terminal(operator: Path) -> None:
    line = ["--home", str(operator), "invite", "--qr", "--json"]
    done = CliRunner().invoke(group, line, standalone_mode=False, catch_exceptions=False)
    text = json.loads(done.stdout)["ticket"]
    read = read_qr("\n".join(row for row in done.stderr.splitlines() if set(row) <= set(" █▀▄")))
    assert read == text.upper(), "capitals and digits make the smallest code"
    assert parse_ticket(read) == parse_ticket(text)


@pytest.mark.parametrize("length", [20, 400, 1_800, 3_900])
def test_a_code_of_any_size_is_read(length: int, capsys: pytest.CaptureFixture[str]) -> None:
    text = ("mesh0a1b2c3-" * 400)[:length]
    show_qr(text)
    assert read_qr(capsys.readouterr().err) == text.upper()


def test_a_ticket_that_fits_no_code_is_an_error_that_says_so() -> None:
    with pytest.raises(ConfigError, match="too long for a QR code"):
        show_qr("a" * 5_000)
