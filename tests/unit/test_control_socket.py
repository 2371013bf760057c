"""Where the control socket is, and which one the commands believe."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import uvloop

from meshnode.base.files import why_unsafe
from meshnode.base.metrics import Metrics
from meshnode.daemon.client import RemoteError, call
from meshnode.daemon.context import Daemon
from meshnode.daemon.paths import MAX_UNIX_PATH, socket_path
from meshnode.daemon.request import Json, Request
from meshnode.daemon.requests.attached import Events
from meshnode.daemon.requests.node import Peers, Status
from meshnode.daemon.requests.services import Expose
from meshnode.daemon.server import ControlServer, _loop_factory, _until_gone
from meshnode.errors import ConfigError, NotRunning
from meshnode.runtime.acceptor import Accepted


@pytest.fixture
def long_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="m") as runtime:  # tmp_path itself may be too long
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        yield tmp_path / ("x" * MAX_UNIX_PATH)


def test_a_long_home_gets_a_short_socket_path_of_its_own(long_home: Path) -> None:
    path = socket_path(long_home)
    assert len(os.fsencode(path)) <= MAX_UNIX_PATH
    assert path != socket_path(long_home / "other")
    assert why_unsafe(path.parent) is None, "nothing is there yet"


def test_where_it_is_does_not_depend_on_what_can_be_written_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> str:
        raise FileNotFoundError("no usable temporary directory")

    home = tmp_path / ("x" * MAX_UNIX_PATH)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    before = socket_path(home)
    monkeypatch.setattr(tempfile, "gettempdir", full)
    assert socket_path(home) == before
    with pytest.raises(NotRunning, match="no node runs in"):
        list(call(tmp_path, Status()))
    with tempfile.TemporaryDirectory(prefix="m", dir="/var/tmp") as other:
        monkeypatch.setenv("TMPDIR", other)
        assert socket_path(home).parent.parent == Path(other)
        monkeypatch.setenv("TMPDIR", f"{other}/{'x' * 50}")
        assert socket_path(home).parent.parent == Path("/tmp")


def test_a_socket_where_others_may_write_is_not_believed(long_home: Path) -> None:
    folder = socket_path(long_home).parent
    folder.mkdir(mode=0o700)
    assert why_unsafe(socket_path(long_home).parent) is None
    folder.chmod(0o777)
    with pytest.raises(NotRunning, match="others may write"):
        list(call(long_home, Status()))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder that belongs to another user")
def test_a_socket_in_the_folder_of_another_user_is_not_believed(long_home: Path) -> None:
    folder = socket_path(long_home).parent
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(NotRunning, match="belongs to user 12345"):
        list(call(long_home, Status()))


async def test_a_request_that_is_too_long_is_told_as_that(long_home: Path) -> None:
    server = ControlServer(None, long_home, Accepted(Metrics()))  # type: ignore[arg-type]
    await server.start()
    try:
        for many in (1_300, 30_000):
            asked = Expose("web", "80", tuple(f"{number:052}" for number in range(many)))
            with pytest.raises(RemoteError, match="the request is too long: it has more than 64 kB"):
                await asyncio.to_thread(list, call(long_home, asked, 30))
    finally:
        await server.close()


@pytest.mark.parametrize("asked", [Status(), Events()], ids=["once", "endless"])
async def test_a_request_that_fails_is_answered_and_told_in_the_log(
    long_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, asked: Request
) -> None:
    async def fail(asked: Request, daemon: Daemon) -> AsyncIterator[Json]:
        yield {}
        raise AssertionError("a fault")

    monkeypatch.setattr(type(asked), "answer", fail)
    server = ControlServer(None, long_home, Accepted(Metrics()))  # type: ignore[arg-type]
    await server.start()
    try:
        with pytest.raises(RemoteError, match="the node failed to do that: AssertionError"):
            await asyncio.to_thread(list, call(long_home, asked, 30))
    finally:
        await server.close()
    assert f"{asked.method} failed" in caplog.text


async def test_an_answer_takes_as_long_as_the_node_answers_others(
    long_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    enough = asyncio.Event()

    async def slowly(asked: Request, daemon: Daemon) -> AsyncIterator[Json]:
        await enough.wait()
        yield {"is": "late"}

    async def at_once(asked: Request, daemon: Daemon) -> AsyncIterator[Json]:
        nonlocal looks
        looks += 1
        if looks > 2:
            enough.set()
        yield {}

    monkeypatch.setattr("meshnode.daemon.client.QUIET_S", 0.3)
    monkeypatch.setattr(Peers, "answer", slowly)
    monkeypatch.setattr(Status, "answer", at_once)
    server = ControlServer(None, long_home, Accepted(Metrics()))  # type: ignore[arg-type]
    await server.start()
    try:
        assert await asyncio.to_thread(list, call(long_home, Peers())) == [{"is": "late"}]
    finally:
        await server.close()


@pytest.mark.parametrize("waiting", [0, 9], ids=["no connection is taken", "it is taken"])
def test_a_node_whose_process_is_stopped_is_told(
    long_home: Path, monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    monkeypatch.setattr("meshnode.daemon.client.QUIET_S", 0.1)
    path = socket_path(long_home)
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as stopped, socket.socket(socket.AF_UNIX) as other:
        stopped.bind(str(path))
        stopped.listen(waiting)
        other.connect(str(path))
        with pytest.raises(NotRunning, match="does not answer"):
            list(call(long_home, Peers()))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder that belongs to another user")
async def test_a_node_does_not_listen_in_the_folder_of_another_user_and_says_where_it_would(long_home: Path) -> None:
    folder = socket_path(long_home).parent
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    accepted = Accepted(Metrics())
    with pytest.raises(ConfigError, match="belongs to user 12345") as refused:
        await ControlServer(None, long_home, accepted).start()  # type: ignore[arg-type]
    assert refused.value.hint.startswith("set XDG_RUNTIME_DIR")
    assert list(folder.iterdir()) == []


def test_up_runs_on_uvloop_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _loop_factory() is uvloop.new_event_loop
    monkeypatch.setitem(sys.modules, "uvloop", None)  # not installed
    assert _loop_factory() is None


async def test_a_client_that_goes_in_the_moment_of_its_answer_is_no_fault_of_the_node() -> None:
    loop, faults = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda loop, context: faults.append(context))
    ours, client = socket.socketpair()
    ours.setblocking(False)
    waiting = asyncio.ensure_future(_until_gone(ours))
    await asyncio.sleep(0)
    client.close()
    loop.call_soon(waiting.cancel)  # in the turn of the loop in which the end of the client is met
    await asyncio.gather(waiting, return_exceptions=True)
    assert not faults
    ours.close()
