"""Files of a home: nothing that another user planted leads a write elsewhere, and a crash leaves nothing behind."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
import tempfile
from pathlib import Path

import pytest

from meshnode.base import files
from meshnode.base.files import (
    create_secret,
    is_volume,
    make_private,
    read_given,
    remove_temporary,
    short_folder,
    why_unsafe,
    write_atomic,
    write_given,
)
from meshnode.base.refusals import refused
from meshnode.errors import ConfigError, KeyFileError
from meshnode.identity.keyfile import load, save
from meshnode.identity.keys import Identity
from meshnode.runtime.files import HomeLock

OTHER = 12345
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def precious(tmp_path: Path) -> Path:
    path = tmp_path / "precious"
    path.write_text("precious")
    return path


def test_a_planted_temporary_name_is_neither_followed_nor_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim, home = precious(tmp_path), tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setattr(secrets, "token_hex", lambda count: "0" * 16)
    planted = home / f".key.{'0' * 16}.tmp"
    for plant in (lambda: planted.symlink_to(victim), lambda: planted.write_text("x")):
        plant()
        with pytest.raises(FileExistsError) as caught:
            write_atomic(home / "key", b"secret")
        assert caught.value.filename == str(home / "key"), "the error names the file that was to be written"
        assert victim.read_text() == "precious"
        assert not (home / "key").exists()
        planted.unlink()


def test_temporary_names_cannot_be_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b, **at: (names.append(a), replace(a, b, **at)))
    for _ in range(20):
        write_atomic(tmp_path / "seq", b"1")
    assert len(set(names)) == 20
    assert all(files.TEMPORARY.fullmatch(name) for name in names)


def test_a_lock_or_state_file_that_is_a_planted_link_changes_nothing_elsewhere(tmp_path: Path) -> None:
    victim, home = precious(tmp_path), tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "lock").symlink_to(victim)
    with pytest.raises(ConfigError) as caught:
        HomeLock(home)
    assert caught.value.message == f"cannot lock {home}: it is a symbolic link, or one in a circle"
    (home / "seq").symlink_to(victim)
    write_atomic(home / "seq", b"1")
    assert victim.read_text() == "precious"
    assert not (home / "seq").is_symlink(), "the link was replaced, and not what it leads to"


@root_only
@pytest.mark.parametrize("kind", ["owner", "link"])
def test_nothing_is_written_into_a_home_that_another_user_planted(tmp_path: Path, kind: str) -> None:
    home, inside = tmp_path / "home", tmp_path / "home"
    if kind == "owner":
        home.mkdir()
        os.chown(home, OTHER, OTHER)
    else:
        inside = tmp_path / "private"
        inside.mkdir(mode=0o700)
        home.symlink_to(inside)
        os.lchown(home, OTHER, OTHER)
    with pytest.raises(ConfigError, match="12345"):
        HomeLock(home)
    with pytest.raises(KeyFileError, match="12345"):
        save(home / "key", Identity.generate())
    with pytest.raises(PermissionError):
        write_atomic(home / "seq", b"1")
    assert not list(inside.iterdir())


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.ENOLCK, "its file system gives no locks"),
        (errno.EOPNOTSUPP, "its file system gives no locks"),
        (errno.EIO, "the disk fails"),
    ],
)
def test_a_home_that_cannot_be_locked_says_why_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, why: str
) -> None:
    def refuse(fd: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        broken.setattr(fcntl, "flock", refuse)
        with pytest.raises(ConfigError, match=re.escape(f"cannot lock {tmp_path}: {why}")) as caught:
            HomeLock(tmp_path)
    assert caught.value.hint
    HomeLock(tmp_path).release()


def test_a_home_that_is_a_link_of_this_user_is_used(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    HomeLock(tmp_path / "home").release()
    save(tmp_path / "home" / "key", Identity.generate())
    assert (tmp_path / "disk" / "key").exists()


def test_a_new_home_and_its_parents_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private(tmp_path / "a" / "b")
        save(tmp_path / "a" / "b" / "key", Identity.generate())
    finally:
        os.umask(before)
    for path in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "key"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


@root_only
@pytest.mark.parametrize(
    ("mode", "group", "safe"), [(0o2777, True, True), (0o2775, True, True), (0o1777, False, False)]
)
def test_a_volume_of_a_group_is_used_and_the_folder_of_all_users_is_not(
    tmp_path: Path, mode: int, group: bool, safe: bool
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    os.chown(volume, 0, OTHER if group else 0)
    volume.chmod(mode)
    for path in (tmp_path, *tmp_path.parents):
        if path == Path(tempfile.gettempdir()):
            break
        path.chmod(0o755)
    child = os.fork()
    if child == 0:  # as another user: the right to write is asked of the kernel
        os.setgroups([])
        os.setgid(OTHER)
        os.setuid(OTHER)
        os._exit(int(why_unsafe(volume) is None) + 2 * int(is_volume(volume)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (3 if safe else 0)


@root_only
def test_a_key_that_another_user_put_into_a_volume_is_not_used(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o2777)
    save(volume / "key", Identity.generate())
    load(volume / "key")
    os.chown(volume / "key", OTHER, OTHER)
    with pytest.raises(KeyFileError, match="belongs to user 12345"):
        load(volume / "key")


def test_a_write_that_fails_leaves_neither_a_temporary_file_nor_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "seq", b"1")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_atomic(tmp_path / "seq", b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["seq"]
    assert (tmp_path / "seq").read_bytes() == b"1"


def test_the_directory_is_on_the_disk_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(stat.S_ISDIR(os.fstat(fd).st_mode)), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b, **at: (order.append("renamed"), replace(a, b, **at)))
    write_atomic(tmp_path / "seq", b"1")
    assert order == [False, "renamed", True]


def test_temporary_files_of_dead_processes_go_when_the_home_is_locked(tmp_path: Path) -> None:
    left = tmp_path / f".seq.{'a' * 16}.tmp"
    left.write_text("")
    (tmp_path / ".seq.tmp").write_text("a file of the user")
    HomeLock(tmp_path).release()
    assert not left.exists()
    assert (tmp_path / ".seq.tmp").exists()
    assert remove_temporary(tmp_path) == 0


# ---- files that a person has named


def test_a_named_file_is_written_where_others_may_write_too(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    path = tmp_path / "statement"
    path.symlink_to(precious(tmp_path))
    for data in (b"one", b"two"):
        write_given(path, data)
        assert path.read_bytes() == data
    assert (tmp_path / "precious").read_text() == "precious", "a link is replaced, not followed"
    assert sorted(os.listdir(tmp_path)) == ["precious", "statement"]


def test_a_named_pipe_or_device_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_given(pipe, b"said")
        assert os.read(reader, 10) == b"said"
    finally:
        os.close(reader)
    with pytest.raises(FileExistsError):
        create_secret(pipe, b"secret", replace=True)
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


def test_a_named_file_that_cannot_be_written_is_told_by_its_name(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "file"):
        with pytest.raises((IsADirectoryError, FileNotFoundError)) as caught:
            write_given(path, b"x")
        assert refused(caught.value).message.startswith(f"{path}: ")
    with pytest.raises(IsADirectoryError) as read:
        read_given(tmp_path, 10)
    assert read.value.filename == str(tmp_path)


def test_sockets_have_a_short_folder_whatever_the_one_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 100)
    assert short_folder() == "/tmp"
    monkeypatch.setattr(tempfile, "tempdir", "/var/tmp")
    assert short_folder() == "/var/tmp"
