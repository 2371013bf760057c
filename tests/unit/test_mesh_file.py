"""A mesh's secret key in a file: made by one command, read by the setting, warned of where others may see it."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from meshnode.cli.commands.run import up_command
from meshnode.config import Config
from meshnode.errors import ConfigError, KeyFileError
from meshnode.identity.mesh_file import make_mesh_key, read_mesh_key
from meshnode.identity.sealing import MeshKey
from tests.unit.test_config_cli import told


def test_keygen_makes_a_key_that_the_setting_reads_and_prints_only_its_place(tmp_path: Path) -> None:
    path = tmp_path / "mesh.key"
    code, out, err = told(tmp_path / "home", "keygen", "--mesh", str(path))
    assert (code, err) == (0, "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not (tmp_path / "home").exists(), "no home is made for it"
    text = path.read_text().strip()
    assert str(MeshKey.from_text(text)) == text
    assert text not in out
    assert Config(home=tmp_path, mesh=f"@{path}").mesh == text
    assert text not in repr(Config(home=tmp_path, mesh=f"@{path}"))


def test_two_keys_differ_and_none_replaces_another_unasked(tmp_path: Path) -> None:
    path = tmp_path / "mesh.key"
    make_mesh_key(path)
    first = path.read_text()
    with pytest.raises(KeyFileError, match="exists already"):
        make_mesh_key(path)
    assert path.read_text() == first
    make_mesh_key(path, replace=True)
    assert path.read_text() != first


def test_a_planted_link_in_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "mesh.key").symlink_to(victim)
    with pytest.raises(KeyFileError):
        make_mesh_key(tmp_path / "mesh.key")
    assert not victim.exists()


@pytest.mark.parametrize("text", ["", "open\n", "mk-" + "a" * 2_000, "\xff"])
def test_a_file_that_holds_no_key_leads_into_no_open_mesh(tmp_path: Path, text: str) -> None:
    (tmp_path / "mesh.key").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match="holds no mesh key"):
        Config(home=tmp_path, mesh=f"@{tmp_path / 'mesh.key'}")
    with pytest.raises(ConfigError, match="cannot read the mesh key"):
        Config(home=tmp_path, mesh=f"@{tmp_path / 'absent'}")


def test_the_settings_file_names_it_relative_to_itself_and_the_environment_too(tmp_path: Path) -> None:
    make_mesh_key(tmp_path / "mesh.key")
    (tmp_path / "meshnode.toml").write_text('mesh = "@mesh.key"')
    key = read_mesh_key(tmp_path / "mesh.key")
    assert Config.load(tmp_path, env={}).mesh == key
    assert Config.load(tmp_path / "other", env={"MESHNODE_MESH": f"@{tmp_path / 'mesh.key'}"}).mesh == key


def test_a_secret_that_others_may_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_mesh_key(tmp_path / "mesh.key")
    key, settings = read_mesh_key(tmp_path / "mesh.key"), tmp_path / "meshnode.toml"
    for text, told_of in (('name = "x"', ""), (f'mesh = "{key}"', "mesh"), ('passphrase = "p"', "passphrase")):
        settings.write_text(text)
        settings.chmod(0o640)
        caplog.clear()
        Config.load(tmp_path, env={})
        assert [record.getMessage() for record in caplog.records] == (
            [f"others may read {settings}, which holds {told_of}: chmod 600 {settings}"] if told_of else []
        )
        settings.chmod(0o600)
        caplog.clear()
        Config.load(tmp_path, env={})
        assert not caplog.records
    (tmp_path / "mesh.key").chmod(0o644)
    with caplog.at_level(logging.WARNING):
        read_mesh_key(tmp_path / "mesh.key")
    assert "others may read the mesh key: chmod 600" in caplog.text


def test_a_key_as_an_argument_is_used_with_a_warning_that_says_how_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    monkeypatch.setattr("meshnode.daemon.server.run", lambda config, ready: used.append(config.mesh))
    make_mesh_key(tmp_path / "mesh.key")
    key = read_mesh_key(tmp_path / "mesh.key")
    for given, warned in ((key, True), (f"@{tmp_path / 'mesh.key'}", False), ("open", False)):
        result = CliRunner().invoke(up_command, ["--home", str(tmp_path / "h"), "--mesh", given])
        assert result.exit_code == 0
        assert ("list of processes" in result.output and "--mesh @FILE" in result.output) is warned
        assert key not in result.output
    assert used == [key, key, "open"]
