"""What mistakes are told without a node: what is wrong in plain words, and a hint that a person can follow."""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from meshnode.base.files import why_unsafe, write_atomic
from meshnode.base.refusals import listen_refusal, refusal, refused, user_name
from meshnode.cli.main import main
from meshnode.config import Config, parse_seed
from meshnode.daemon.client import call
from meshnode.daemon.request import parse as parse_request
from meshnode.daemon.requests.node import Status
from meshnode.diagnosis.network import diagnose
from meshnode.errors import AddressInUse, ConfigError, InvalidId, KeyFileError, MeshError, NotRunning
from meshnode.identity.keyfile import load, save
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId, id_or_label
from meshnode.services.ends import End, parse_listen, parse_target
from meshnode.services.registry import parse_service
from meshnode.services.unix import UnixListener
from tests.unit.test_config_cli import told
from tests.unit.test_diagnosis import SILENT, seed, snapshot

ID = str(Identity(bytes(32)).id)
UP = ("up", "--listen", "127.0.0.1:0", "--no-mdns")


def error_of(home: Path, *args: str, **env: str) -> tuple[str, str, str]:
    """The code, message and hint of a command that fails; nothing in it is a raw error of the system."""
    status, out, _ = told(home, *args, "--json", **env)
    assert status in (1, 2, 78)
    error = json.loads(out)["error"]
    assert "Errno" not in error["message"]
    assert error["hint"]
    return error["code"], error["message"], error["hint"]


def raised(kind: type[MeshError], call: object, *args: object) -> tuple[str, str]:
    with pytest.raises(kind) as caught:
        call(*args)  # type: ignore[operator]
    return caught.value.message, caught.value.hint


# ---- the doctor


def test_no_answer_at_all_is_no_double_negative() -> None:
    found = diagnose(snapshot({"counters": {"tunnel_failures": 3}}, udp=SILENT, peers=[], seeds=[seed()]))
    assert "no node answers by UDP or by WebSocket over TCP" in [finding.text for finding in found]


@pytest.mark.parametrize(("heard", "words"), [(1, "1 node on this LAN found"), (2, "2 nodes on this LAN found")])
def test_multicast_is_told_in_the_right_number(heard: int, words: str) -> None:
    mdns = {"on": True, "announced": True, "error": "", "neighbours": heard}
    assert any(words in finding.text for finding in diagnose(snapshot({"mdns": mdns})))


# ---- homes and users


def test_a_home_where_others_may_write_is_told_with_chmod(tmp_path: Path) -> None:
    home = tmp_path / "open"
    home.mkdir()
    home.chmod(0o777)
    code, message, hint = error_of(home, *UP)
    assert (code, hint) == ("config_error", f"chmod 700 {home}")
    assert "mode 777" in message
    assert raised(NotRunning, list, call(home, Status()))[1] == f"chmod 700 {home}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_the_node_of_another_user_is_told_with_that_user_and_for_root_with_sudo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "other"
    home.mkdir()
    os.chown(home, 12345, 12345)
    message, hint = why_unsafe(home) or ("", "")
    assert message == f"{home} belongs to user 12345"
    assert f"sudo -u 12345 meshnode --home {home}" in hint
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "sudo" not in (why_unsafe(home) or ("", ""))[1]


@pytest.mark.parametrize("option", ["--home", "--mesh"])
def test_an_empty_home_or_mesh_is_an_error(tmp_path: Path, option: str) -> None:
    code, message, _ = error_of(tmp_path, *UP, option, "")
    assert code == "config_error"
    assert "is empty" in message
    with pytest.raises(ConfigError, match="home is empty"):
        Config(home="")


def test_an_empty_variable_for_the_home_is_no_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MESHNODE_HOME", "")
    monkeypatch.setattr(sys, "argv", ["meshnode", "id"])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "MESHNODE_HOME is empty" in capsys.readouterr().err


def test_an_empty_home_in_front_of_the_command_is_an_error_too(tmp_path: Path) -> None:
    assert "--home is empty" in error_of(tmp_path, "--home", "", "status")[1]


# ---- what the system refuses


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EISDIR, errno.EMFILE, errno.EIO, errno.EDQUOT])
def test_what_the_system_refuses_is_told_in_words_with_the_place(tmp_path: Path, number: int) -> None:
    path = tmp_path / "lock"
    error = refused(OSError(number, os.strerror(number), str(path)))
    assert error.message.startswith(f"{path}: ")
    assert "Errno" not in error.message
    assert error.hint
    assert error.code == ("no_space" if number in (errno.ENOSPC, errno.EDQUOT) else "mesh_error")


def test_a_full_disk_says_which_file_did_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught:
        write_atomic(tmp_path / "seq", b"1")
    assert refused(caught.value).message == f"{tmp_path / 'seq'}: the disk is full"
    code, message, hint = error_of(tmp_path, "keygen")
    assert (code, message) == ("key_file_error", f"cannot write {tmp_path / 'key'}: the disk is full")
    assert hint == "free some space there"


def test_a_key_that_is_a_directory_is_told_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    _, message, hint = error_of(tmp_path, *UP)
    assert (message, hint) == (f"cannot read {tmp_path / 'key'}: it is a directory", "name a file, or move it away")


@pytest.mark.parametrize("below", ["", "node"])
def test_a_home_that_is_a_link_to_what_is_not_there_is_told_with_both(tmp_path: Path, below: str) -> None:
    link, disk = tmp_path / "home", tmp_path / "disk"
    link.symlink_to(disk)
    _, message, hint = error_of(link / below, *UP)
    assert message == f"cannot use {link / below}: {link} is a link to {disk}, which is not there"
    assert hint == "mount or make that, or remove the link"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_what_another_user_owns_is_told_with_the_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(tmp_path, 12345, 12345)
    monkeypatch.setattr(os, "geteuid", lambda: 12346)
    message, hint = refusal(PermissionError(errno.EACCES, "Permission denied"), tmp_path / "meshnode.toml")
    assert message == f"{tmp_path} belongs to user 12345"
    assert hint.startswith("run it as 12345, or: chown -R 12346 ")
    os.chown(tmp_path, 12346, 12346)
    (tmp_path / "lock").touch()
    error = refused(PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "lock")))
    assert error.message == f"{tmp_path / 'lock'} belongs to user {user_name(0)}"
    assert error.hint.endswith(f": chown -R 12346 {tmp_path}"), "the lock is not the only file of a home"


def test_a_settings_file_that_cannot_be_read_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "meshnode.toml").mkdir()
    code, message, hint = error_of(tmp_path, *UP)
    assert (code, message) == ("config_error", f"cannot read {tmp_path / 'meshnode.toml'}: it is a directory")
    assert hint == "name a file, or move it away"


def test_a_low_port_is_told_with_root_and_an_address_of_others_with_ip_address() -> None:
    reason, hint = listen_refusal(PermissionError(errno.EACCES, "Permission denied"), 443)
    assert "below 1024" in reason
    assert "1024 on" in hint
    assert "ip address" in listen_refusal(OSError(errno.EADDRNOTAVAIL, "x"), 4242)[1]
    assert "IPv6" not in listen_refusal(OSError(errno.EAFNOSUPPORT, "x"), 4242)[0], "it may be IPv4 that is missing"


# ---- keys


def test_a_key_that_cannot_be_read_is_told_with_what_helps(tmp_path: Path) -> None:
    assert "keygen" in raised(KeyFileError, load, tmp_path / "key")[1]
    (tmp_path / "key").mkdir()
    message, hint = raised(KeyFileError, load, tmp_path / "key")
    assert (message, hint) == (f"cannot read {tmp_path / 'key'}: it is a directory", "name a file, or move it away")
    (tmp_path / "other").write_text("")
    assert (
        "a file is there instead of a directory"
        in raised(KeyFileError, save, tmp_path / "other" / "key", Identity.generate())[0]
    )


def test_up_and_id_tell_of_a_wrong_key_in_the_same_words_once(tmp_path: Path) -> None:
    up, shown = error_of(tmp_path, *UP, MESHNODE_KEY="zz"), error_of(tmp_path, "id", MESHNODE_KEY="zz")
    assert up[1:] == shown[1:]
    assert "64 hex digits" not in up[1]
    assert "64 hex digits, 52 base32 characters" in up[2]


def test_a_secret_that_is_not_mounted_is_told_as_that(tmp_path: Path) -> None:
    secret = str(tmp_path / "nothing")
    for command in (UP, ("id",)):
        _, message, hint = error_of(tmp_path, *command, MESHNODE_KEY_FILE=secret)
        assert message == f"MESHNODE_KEY_FILE: there is no {secret}"
        assert hint == "is the secret mounted there?"


# ---- ids, names, services and targets


def test_what_is_neither_an_id_nor_a_name_is_told_with_both_forms() -> None:
    message, hint = raised(InvalidId, id_or_label, "läptop")
    assert message == "'läptop' is neither a node id nor a name"
    assert "52 characters" in hint
    assert "a-z, 0-9 and inner hyphens" in hint


def test_a_long_mistake_is_cut(tmp_path: Path) -> None:
    long = "x" * 300
    for message, _ in (raised(InvalidId, NodeId.parse, long), raised(InvalidId, id_or_label, long)):
        assert len(message) < 120
    assert len(error_of(tmp_path, *UP, "--name", long)[1]) < 120


def test_a_slash_in_a_service_is_told_as_that() -> None:
    message, hint = raised(ConfigError, parse_service, "one/web/x")
    assert message == "'web/x' is no name for a service"
    assert "no slash" in hint
    assert parse_service("one/web") == ("one", "web")
    assert parse_service(f"{ID}/web") == (NodeId.parse(ID), "web")
    assert parse_service("web") == (None, "web")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("8000", ("127.0.0.1", 8000)),
        ("192.0.2.1:80", ("192.0.2.1", 80)),
        ("tcp://host:1", ("host", 1)),
        ("tcp://[::1]:2", ("::1", 2)),
        ("[::1]:3", ("::1", 3)),
    ],
)
def test_a_target_is_a_port_an_address_or_a_url(text: str, where: tuple[str, int]) -> None:
    assert parse_target(text) == End(*where)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ftp://127.0.0.1:80", "no 'ftp' is carried"),
        ("tcp://", "is not a target"),
        ("0", "is not a target"),
        (":80", "is not a target"),
        ("host:²", "is not a target"),
        ("host:" + "9" * 5000, "is not a target"),
        ("tcp://[::1", "is not a target"),
        ("::1", "is not a target"),
        ("tcp://[host]:80", "is not a target"),
        ("tcp://a b:80", "is not a target"),
        ("user@host:80", "is not a target"),
    ],
)
def test_another_target_is_told_with_what_is_carried(text: str, said: str) -> None:
    message, hint = raised(ConfigError, parse_target, text)
    assert said in message
    assert hint == "write PORT, HOST:PORT, tcp://HOST:PORT, udp://HOST:PORT, unix:PATH or http://HOST:PORT"


@pytest.mark.parametrize("text", ["::1", "[::1:80", "1:2:80", "a/b:80", "9" * 5000])
def test_another_place_to_listen_is_told_as_that(text: str) -> None:
    assert "is not a place to listen" in raised(ConfigError, parse_listen, text)[0]
    assert "is not a seed" in raised(ConfigError, parse_seed, f"{ID}@{text}")[0]


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "255.255.255.255", "224.0.0.1", "[ff02::1]"])
def test_a_seed_at_no_address_of_one_host_is_told_as_that(host: str) -> None:
    message, hint = raised(ConfigError, parse_seed, f"{ID}@{host}:4242")
    assert message == f"{host.strip('[]')} in a seed is no address of one host"
    assert "other hosts reach" in hint
    assert parse_seed(f"{ID}@{'a' * 253}:1").host == "a" * 253
    assert "is not a seed" in raised(ConfigError, parse_seed, f"{ID}@{'a' * 254}:1")[0]


@pytest.mark.parametrize("parse", [parse_target, parse_listen])
def test_a_unix_socket_has_a_whole_path_that_fits(parse: Callable[[str], End]) -> None:
    assert parse("unix:/run/a/../x.sock") == End(path="/run/x.sock")
    assert parse("unix:/" + "x" * 106).path == "/" + "x" * 106
    for text, said in (
        ("unix:x.sock", "no whole path"),
        ("unix:", "no whole path"),
        ("unix:/x\0y", "no whole path"),
        ("unix:/" + "x" * 107, "107 bytes at most"),
        ("unix:/" + "ö" * 54, "107 bytes at most"),
    ):
        assert said in raised(ConfigError, parse, text)[0]


def test_metadata_without_a_value_is_wrong_usage(tmp_path: Path) -> None:
    for text in ("novalue", "=text"):
        _, message, _ = error_of(tmp_path, "expose", "web", "80", "--meta", text)
        assert f"{text!r} is not KEY=TEXT" in message


# ---- settings


def test_an_unknown_setting_is_answered_with_the_one_that_is_meant(tmp_path: Path) -> None:
    (tmp_path / "meshnode.toml").write_text("seed = []")
    code, message, hint = error_of(tmp_path, *UP)
    assert code == "config_error"
    assert "unknown setting 'seed'" in message
    assert hint.startswith("did you mean seeds")


def test_an_unknown_variable_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = {"MESHNODE_MESH": "m", "MESHNODE_HOME": "x", "MESHNODE_PASSPHRASE": "p", "OTHER": "1"}
    with caplog.at_level(logging.WARNING):
        Config.load(tmp_path, None, known)
        assert not caplog.records
        Config.load(tmp_path, None, {"MESHNODE_MESSH": "m"})
    assert "MESHNODE_MESSH in the environment is no setting: did you mean MESHNODE_MESH" in caplog.text


# ---- numbers, files and programs that are none


@pytest.mark.parametrize("name", ["idle_timeout", "relay_mb_per_s", "drain"])
@pytest.mark.parametrize("value", [float("nan"), 10**400])
def test_what_is_no_number_is_no_setting(tmp_path: Path, name: str, value: float) -> None:
    assert f"{name} is a number of seconds" in raised(ConfigError, lambda: Config(home=tmp_path, **{name: value}))[0]  # type: ignore[arg-type]


def test_no_command_takes_nan_for_a_number(tmp_path: Path) -> None:
    for args in (("ping", "-i", "nan", ID), ("unexpose", "web", "--drain", "nan")):
        assert "'nan' is not a number" in error_of(tmp_path, *args)[1]
    with pytest.raises(MeshError, match="interval of ping is a number"):
        parse_request(b'{"method": "ping", "arguments": {"id": "x", "count": 1, "interval": NaN}}')


def test_a_named_directory_or_endless_file_is_told_with_its_path(tmp_path: Path) -> None:
    for args in (("policy", "set"), ("apply",), ("audit", "verify", "--file")):
        assert error_of(tmp_path, *args, "/")[1] == "/: it is a directory"
    assert error_of(tmp_path, "audit", "verify", "--file", "/dev/zero")[1] == "/dev/zero is too long for an audit log"
    assert told(tmp_path, "policy", "test", "/")[0] == 1, "and no traceback"


def test_an_empty_file_for_the_key_of_a_mesh_is_told(tmp_path: Path) -> None:
    assert error_of(tmp_path, "keygen", "--mesh", "")[1] == "--mesh is empty"


def test_a_server_that_is_not_there_is_told_before_it_is_offered(tmp_path: Path) -> None:
    code, message, _ = error_of(tmp_path, "mcp", "serve", "--json", "--", "/nonexistent")
    assert (code, message) == ("cannot_run", "cannot run /nonexistent: it is not there, or no program")


def test_a_file_in_the_place_of_a_unix_socket_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    message, _ = raised(AddressInUse, UnixListener, str(path), 1)
    assert message == f"cannot listen on unix:{path}: there is a file that is no socket"


def test_a_name_where_no_node_is_asked_is_told_with_what_to_write(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[[allow]]\nfrom = ["any"]\nservices = ["web"]\n')
    _, message, hint = error_of(tmp_path, "policy", "explain", "self", "role:db", "web", "--file", str(policy))
    assert (message, hint) == ("'self' is no id", "a node is an id, role:R, name:N or any")


def test_a_host_that_has_no_thread_or_memory_left_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, said in (
        (RuntimeError("can't start new thread"), "no thread can be started"),
        (MemoryError(), "there is no memory left"),
    ):
        monkeypatch.setattr("threading.Thread.start", Mock(side_effect=error))
        assert error_of(tmp_path, *UP)[1] == said
        assert gc.isenabled(), "the command has turned it off to start"


def test_a_path_in_a_hint_is_as_a_shell_takes_it(tmp_path: Path) -> None:
    home = tmp_path / "a home; of two"
    words = shlex.split(error_of(home, "status")[2].partition(": ")[2])
    assert words == ["meshnode", "--home", str(home), "up"]
    home.mkdir()
    home.chmod(0o777)
    assert shlex.split(error_of(home, "status")[2]) == ["chmod", "700", str(home)]
