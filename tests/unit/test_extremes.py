"""Values that are of no use, too large, or no text: each is an error that says so, and none is a traceback."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshnode.config import Config
from meshnode.daemon.attached.node import attach
from meshnode.errors import ConfigError, InvalidId
from meshnode.identity.keyfile import save
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.sdk.arguments import seconds, whole
from tests.unit.test_error_texts import UP, error_of

NO_TEXT = "p\udce4ss"  # as an argument or a variable has it in another encoding
NO_USER = "~no-such-user/file"
HUGE = 10**5000  # of more digits than CPython writes


@pytest.mark.parametrize("name", ["mesh", "name", "passphrase", "engine"])
def test_a_setting_that_is_no_text_is_told_by_its_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is not UTF-8") as caught:
        Config(home=tmp_path, **{name: NO_TEXT})  # type: ignore[arg-type]
    assert caught.value.hint
    variable = f"MESHNODE_{name.upper()}"
    assert error_of(tmp_path, *UP, **{variable: NO_TEXT})[1] == f"{variable}: {name} is not UTF-8"


def test_a_passphrase_that_is_no_text_is_told_and_makes_no_key(tmp_path: Path) -> None:
    code, message, _ = error_of(tmp_path, "keygen", MESHNODE_PASSPHRASE=NO_TEXT)
    assert (code, message) == ("key_file_error", "the passphrase is not UTF-8")
    assert not (tmp_path / "key").exists()
    save(tmp_path / "key", Identity.generate(), "right")
    assert error_of(tmp_path, "id", MESHNODE_PASSPHRASE=NO_TEXT)[1] == "the passphrase is not UTF-8"


@pytest.mark.parametrize(
    "command",
    [
        ("keygen", "--mesh", NO_USER),
        ("join", f"@{NO_USER}"),
        ("expose", "web", f"unix:{NO_USER}"),
        (*UP, "--mesh", f"@{NO_USER}"),
    ],
    ids=lambda command: command[0],
)
def test_the_home_of_a_user_that_does_not_exist_is_told_as_that(tmp_path: Path, command: tuple[str, ...]) -> None:
    code, message, _ = error_of(tmp_path, *command)
    assert (code, message) == ("config_error", f"{NO_USER}: no such user has a home directory")


def test_a_file_whose_name_has_a_zero_byte_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "meshnode.toml").write_text('mesh = "@a\\u0000b"')
    assert error_of(tmp_path, *UP)[1].endswith("there is no such file")


def test_bytes_in_the_place_of_a_ticket_are_no_ticket(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "meshnode", "--home", str(tmp_path), "join", "-"]
    done = subprocess.run(line, input=b"\xff\xfe\x00" * 99, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, b"error: that is no ticket")


@pytest.mark.parametrize(
    "call",
    [
        lambda home: Config(home=home, idle_timeout=HUGE),
        lambda home: Config(home=home, mdns=HUGE),
        lambda home: Config(home=home, mdns="x" * 10_000),
        lambda home: whole("limit", HUGE, 1, 9),
        lambda home: seconds("timeout", -HUGE),
    ],
    ids=["number", "switch", "long text", "argument", "seconds"],
)
def test_a_value_that_cannot_be_shown_whole_is_an_error_of_one_line(
    tmp_path: Path, call: Callable[[Path], object]
) -> None:
    with pytest.raises(ConfigError) as caught:
        call(tmp_path)
    assert len(caught.value.message) < 120


@pytest.mark.parametrize("value", [float("inf"), 1.7e308, 10**400])
def test_a_limit_for_ever_is_one_that_clocks_reckon_with(value: float) -> None:
    assert 1e6 < time.monotonic() + seconds("timeout", value) < 1e12
    assert seconds("timeout", 2) == 2


@pytest.mark.parametrize("home", ["", "a\0b", None, 7])
def test_a_home_without_a_name_is_none_to_attach_to(home: Any) -> None:
    with pytest.raises(ConfigError, match="home is no name of a directory"):
        attach(home)


@pytest.mark.parametrize("value", [None, 7, ["a"], 1.5, "", "a" * 10_000, "\udcff" * 52, "\u0660" * 52, b"", b"x" * 31])
def test_what_is_no_id_is_told_whatever_it_is(value: Any) -> None:
    with pytest.raises(InvalidId) as caught:
        NodeId.parse(value)
    assert len(caught.value.message) < 400  # a sign that is escaped is six
