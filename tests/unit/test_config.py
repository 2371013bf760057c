"""Settings and key files: what beats what, and what every mistake in them is told."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from meshnode.config import OTHER_VARIABLES, Config, parse_seed, unknown_variables
from meshnode.errors import ConfigError, InvalidId, KeyFileError, MeshError
from meshnode.identity.keyfile import load, load_or_create, parse_seed_text, save
from meshnode.identity.keys import Identity
from tests.unit.test_config_cli import meshnode

ID = str(Identity(bytes(32)).id)


def config(home: Path, file: str = "", flags: dict[str, object] | None = None, **env: str) -> Config:
    """Load a configuration from a file's text, flags and an environment."""
    (home / "meshnode.toml").write_text(file)
    return Config.load(home, flags, {f"MESHNODE_{name.upper()}": value for name, value in env.items()})


# ---- what beats what


def test_flags_beat_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = 'listen = "127.0.0.1:1"\nmesh = "file"\nidle_timeout = 11\nmdns = false\n'
    found = config(tmp_path, file, {"listen": "127.0.0.1:3"}, listen="127.0.0.1:2", mesh="env")
    assert (found.listen, found.mesh, found.idle_timeout, found.mdns, found.engine) == (
        "127.0.0.1:3",
        "env",
        11,
        False,
        "auto",
    )


def test_a_flag_that_was_not_given_beats_nothing(tmp_path: Path) -> None:
    assert config(tmp_path, 'mesh = "file"', {"mesh": None}).mesh == "file"


@pytest.mark.parametrize(("text", "value"), [("1", True), ("TRUE", True), ("on", True), ("no", False), ("0", False)])
def test_switches_in_the_environment_are_words(tmp_path: Path, text: str, value: bool) -> None:
    assert config(tmp_path, mdns=text).mdns is value


def test_port_mapping_and_upnp_are_on_unless_told_otherwise(tmp_path: Path) -> None:
    assert (config(tmp_path).port_mapping, config(tmp_path).upnp) == (True, True)
    assert config(tmp_path, "port_mapping = false").port_mapping is False
    assert config(tmp_path, upnp="off").upnp is False
    assert config(tmp_path, "port_mapping = true", {"port_mapping": False}, port_mapping="1").port_mapping is False


def test_lists_in_the_environment_are_split_at_commas_and_spaces(tmp_path: Path) -> None:
    assert config(tmp_path, advertise="192.0.2.1:1, 192.0.2.2:2  192.0.2.3:3").advertise == (
        "192.0.2.1:1",
        "192.0.2.2:2",
        "192.0.2.3:3",
    )


def test_a_key_file_of_the_environment_is_read_and_a_key_beats_it(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("ab" * 32 + "\n")
    found = Config.load(tmp_path, None, {"MESHNODE_KEY_FILE": str(secret)})
    assert found.key is not None
    assert parse_seed_text(found.key).seed == bytes.fromhex("ab" * 32)
    both = Config.load(tmp_path, None, {"MESHNODE_KEY_FILE": str(secret), "MESHNODE_KEY": "cd" * 32})
    assert both.key == "cd" * 32


def test_a_byte_order_mark_and_line_ends_of_windows_are_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "meshnode.toml").write_bytes('\ufeffmesh = "file"\r\nmdns = false\r\n'.encode())
    found = Config.load(tmp_path, {}, {})
    assert (found.mesh, found.mdns) == ("file", False)


def test_a_file_nested_too_deep_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="toml"):
        config(tmp_path, "seeds = " + "[" * 10_000)


def test_a_wrong_setting_is_told_with_its_place(tmp_path: Path) -> None:
    cases = (
        ('seeds = ["x"]', {}, {}, f"{tmp_path}/meshnode.toml: seeds: 'x' is not a seed"),
        ("", {}, {"allow": "x y"}, "MESHNODE_ALLOW: 'x' is a name"),
        ('mesh = "fine"\nlisten = "here"', {}, {"seeds": "x"}, f"{tmp_path}/meshnode.toml: listen: "),
        ('seeds = ["x"]', {"seeds": ("y",)}, {"seeds": "z"}, "'y' is not a seed"),
    )
    for file, flags, env, beginning in cases:
        with pytest.raises((ConfigError, InvalidId)) as caught:
            config(tmp_path, file, flags, **env)  # type: ignore[arg-type]
        assert caught.value.message.startswith(beginning)


def test_every_setting_and_variable_is_in_the_reference() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(MESHNODE_\w+)` \| .+ \| .+ \|$", page, re.MULTILINE)
    assert rows == [(item.name, f"MESHNODE_{item.name.upper()}") for item in fields(Config)]
    for name in OTHER_VARIABLES:
        assert f"`{name}`" in page
    assert unknown_variables(dict.fromkeys(re.findall(r"MESHNODE_[A-Z][A-Z_]*", page), "")) == []


def test_an_unknown_variable_is_warned_of_by_every_command(tmp_path: Path) -> None:
    for command in ("status", "id", "keygen", "doctor", "connect a/b", "watch"):
        process = meshnode(tmp_path, *command.split(), MESHNODE_SEED="x")
        said = "MESHNODE_SEED in the environment is no setting: did you mean MESHNODE_SEEDS or MESHNODE_SEED_ROLE?"
        assert process.stderr.count(said) == 1, command
    said = unknown_variables({"MESHNODE_MTU": "", "MESHNODE_LISTEN": "", "PATH": ""})[0]
    assert said.endswith("MESHNODE_TICKET_FILE")


# ---- mistakes in settings

WRONG_FILES = {
    "unknown key": "lisen = '[::]:0'",
    "not TOML": "listen = ",
    "wrong type: number for text": "listen = 7",
    "wrong type: text for number": "idle_timeout = 'long'",
    "wrong type: text for list": "seeds = 'x@y:1'",
    "wrong type: numbers in a list": "seeds = [1]",
    "wrong type: number for list": "allow = 3",
    "wrong type: text for switch": "mdns = 'no'",
    "wrong type: number for mesh": "mesh = 5",
    "wrong type: table": "[dht]\nx = 1",
    "too short": "idle_timeout = 0.1",
    "not a number": "idle_timeout = nan",
    "bad address": "listen = 'here'",
    "bad port": "listen = '127.0.0.1:65536'",
    "name for address": "advertise = ['example.org:1']",
    "advertised everywhere": "advertise = [':4242']",
    "advertised without a port": "advertise = ['203.0.113.7:0']",
    "advertised to many hosts": "advertise = ['224.0.0.1:4242']",
    "bad seed": "seeds = ['abc']",
    "bad id": "allow = ['abc']",
    "no UTF-8": "mesh = '\udcff'",
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_every_mistake_in_the_file_is_a_config_error_that_says_what_to_do(tmp_path: Path, case: str) -> None:
    (tmp_path / "meshnode.toml").write_bytes(WRONG_FILES[case].encode(errors="surrogateescape"))
    with pytest.raises(MeshError) as caught:
        Config.load(tmp_path, None, {})
    assert caught.value.code in ("config_error", "invalid_id")
    assert caught.value.message
    assert caught.value.hint, "an error without a hint leaves people alone"


def test_an_unknown_setting_is_named_with_the_file_and_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, "lisen = '[::]:0'")
    assert "lisen" in caught.value.message
    assert "meshnode.toml" in caught.value.message
    assert "listen" in caught.value.hint


WRONG_ENVIRONMENT = [
    ("mdns", "perhaps"),
    ("idle_timeout", "soon"),
    ("idle_timeout", "nan"),
    ("listen", "nowhere"),
    ("seeds", "x@y"),
    ("allow", "me"),
    ("key_file", "/nonexistent/secret"),
]


@pytest.mark.parametrize(("name", "value"), WRONG_ENVIRONMENT)
def test_every_mistake_in_the_environment_is_a_config_error(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(MeshError) as caught:
        config(tmp_path, **{name: value})
    assert caught.value.code in ("config_error", "invalid_id")
    assert caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "@", f"{ID}@", f"{ID}@host", f"{ID}@host:0", f"{ID}@host:65536", f"{ID}@:1", "x@host:1", f"{ID}@h:²"]
)
def test_what_is_no_seed_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_seed(text)


def test_a_seed_may_be_a_name_an_address_or_a_bracketed_ipv6_address() -> None:
    assert parse_seed(f" {ID}@192.0.2.1:1\n").port == 1, "as copied from a terminal"
    assert [parse_seed(f"{ID}@{where}").host for where in ("a.example:1", "192.0.2.1:1", "[2001:db8::1]:1")] == [
        "a.example",
        "192.0.2.1",
        "2001:db8::1",
    ]


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    shown = repr(Config(home=tmp_path, mesh="mk-secret-name", passphrase="hunter2", key="ab" * 32))
    assert not any(secret in shown for secret in ("mk-secret", "hunter2", "abab"))


# ---- key files


def test_a_key_file_is_private_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "home" / "key"
    made = load_or_create(path)
    assert load(path).id == made.id
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create(path).id == made.id


def test_a_locked_key_opens_with_its_passphrase_only(tmp_path: Path) -> None:
    path = tmp_path / "key"
    me = Identity.generate()
    save(path, me, "open sesame")
    assert me.seed not in path.read_bytes()
    assert load(path, "open sesame").id == me.id
    for wrong in ("open barley", "", None):
        with pytest.raises(KeyFileError) as caught:
            load(path, wrong)
        assert caught.value.hint


DAMAGED = [
    b"",
    b"junk",
    b"\xff\xfe\x00",
    b"meshnode-key-1 ",
    b"meshnode-key-1 !!!!",
    b"meshnode-key-1 AAAA",
    b"meshnode-key-1-locked ",
    b"meshnode-key-1-locked AAAA",
    b"ab" * 31,
    b"zz" * 32,
]


@pytest.mark.parametrize("data", DAMAGED)
@pytest.mark.parametrize("passphrase", [None, "x"])
def test_a_damaged_key_file_is_a_key_file_error(tmp_path: Path, data: bytes, passphrase: str | None) -> None:
    path = tmp_path / "key"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(KeyFileError) as caught:
        load(path, passphrase)
    assert caught.value.hint


def test_a_key_file_that_others_may_read_is_refused_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "key"
    save(path, Identity.generate())
    path.chmod(0o644)
    with pytest.raises(KeyFileError) as caught:
        load(path)
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize(
    ("given", "means"),
    [("on", "on"), (True, "on"), ("true", "on"), (False, "off"), ("false", "off"), ("required", "required")],
)
def test_post_quantum_is_a_word_or_a_switch(tmp_path: Path, given: object, means: str) -> None:
    assert Config(home=tmp_path, post_quantum=given).post_quantum == means  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["", "yes please", 1, None, ["on"]])
def test_another_word_for_post_quantum_is_refused_with_those_that_there_are(tmp_path: Path, given: object) -> None:
    with pytest.raises(ConfigError):
        Config(home=tmp_path, post_quantum=given)  # type: ignore[arg-type]
