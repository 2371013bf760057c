"""Connections that a node accepts: in one counter until they are closed, and the last descriptors are kept back."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import MAX_CONTROL_SILENT
from meshnode.base.metrics import Metrics
from meshnode.runtime import acceptor, descriptors
from meshnode.runtime.acceptor import Accepted, Acceptor, CountedSocket, bind_udp, listen_at, listen_tcp
from meshnode.runtime.descriptors import bound_again, is_reserved
from tests.given_time import HANG_S, status_of, within
from tests.live.cli_node import clean_environment

COMMAND = [sys.executable, "-m", "meshnode"]
QUIET = ("--listen", "127.0.0.1:0", "--no-mdns", "--no-port-mapping")


# ---- the counter


def counted(stack: ExitStack) -> CountedSocket:
    return stack.enter_context(CountedSocket())


def test_a_connection_is_counted_until_it_is_closed_however_often() -> None:
    accepted = Accepted(Metrics(), bound=4)
    with ExitStack() as stack:
        sock = counted(stack)
        assert accepted.enter(sock, (b"a", b"a"))
        assert len(accepted) == 1
        sock.close()
        sock.close()
        assert len(accepted) == 0


def test_a_network_takes_half_of_the_places_and_there_is_always_room_for_another_one() -> None:
    metrics = Metrics()
    accepted = Accepted(metrics, bound=64)
    with ExitStack() as stack:
        held = [sum(accepted.enter(counted(stack), (group, group)) for _ in range(100)) for group in range(6)]
        assert held[0] == 32
        assert all(count > 0 for count in held)
        assert len(accepted) <= 64
        assert metrics.counters["accept_refused"] == 600 - sum(held)
    assert len(accepted) == 0


# ---- accepting


@pytest.fixture
async def listening() -> AsyncIterator[Callable[..., tuple[Acceptor, list[tuple[socket.socket, Addr]], Metrics]]]:
    made: list[Acceptor] = []
    taken: list[tuple[socket.socket, Addr]] = []
    metrics = Metrics()

    def make(*, bound: int = 64, reserved: bool = False) -> tuple[Acceptor, list[tuple[socket.socket, Addr]], Metrics]:
        sock = listen_tcp("127.0.0.1", 0, 16)
        loop = asyncio.get_running_loop()
        made.append(
            Acceptor(
                loop, Accepted(metrics, bound), [sock], lambda sock, at: taken.append((sock, at)), reserved=reserved
            )
        )
        return made[0], taken, metrics

    yield make
    for one in made:
        one.close()
    for sock, _ in taken:
        sock.close()


async def until(holds: Callable[[], bool]) -> None:
    async with within(10):
        while not holds():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)


async def test_a_connection_comes_with_its_source_and_one_over_the_share_is_closed(
    listening: Callable[..., tuple[Acceptor, list[tuple[socket.socket, Addr]], Metrics]],
) -> None:
    made, taken, metrics = listening(bound=2)
    with socket.create_connection(made.bound) as first:
        await until(lambda: len(taken) == 1)
        assert taken[0][1] == Addr(*first.getsockname())
        with socket.create_connection(made.bound) as second:
            await until(lambda: metrics.counters.get("accept_refused") == 1)
            second.settimeout(HANG_S)
            assert await asyncio.to_thread(second.recv, 1) == b""


async def test_a_connection_that_cannot_be_taken_over_is_closed() -> None:
    accepted = Accepted(Metrics(), 4)
    loop = asyncio.get_running_loop()
    failed: list[object] = []
    loop.set_exception_handler(lambda loop, context: failed.append(context["exception"]))

    def refuse(sock: socket.socket, source: Addr) -> None:
        raise OSError("no option of it can be set")

    made = Acceptor(loop, accepted, [listen_tcp("127.0.0.1", 0, 16)], refuse)
    with socket.create_connection(made.bound) as client:
        client.settimeout(HANG_S)
        assert await asyncio.to_thread(client.recv, 1) == b""
    assert len(accepted) == 0
    assert len(failed) == 1
    made.close()


@pytest.mark.parametrize("reserved", [False, True])
async def test_the_last_descriptors_are_only_for_what_is_reserved_and_accepting_pauses(
    listening: Callable[..., tuple[Acceptor, list[tuple[socket.socket, Addr]], Metrics]],
    monkeypatch: pytest.MonkeyPatch,
    reserved: bool,
) -> None:
    monkeypatch.setattr(acceptor, "ACCEPT_PAUSE_S", 0.3)
    made, taken, metrics = listening(reserved=reserved)
    asked = 0

    def last(sock: socket.socket) -> bool:
        nonlocal asked
        asked += 1
        return asked <= 2

    monkeypatch.setattr(acceptor, "is_reserved", last)
    began = time.monotonic()
    clients = [socket.create_connection(made.bound) for _ in range(3)]
    if reserved:
        await until(lambda: len(taken) == 3)
        assert asked == 0
    else:
        await until(lambda: len(taken) == 1)
        assert metrics.counters["accept_paused"] == 2
        assert time.monotonic() - began >= 0.6, "it waited twice, and did not spin"
    for client in clients:
        client.close()


@pytest.mark.parametrize("is_chosen", [True, False])
async def test_a_listener_that_was_ended_listens_again_where_it_did(is_chosen: bool) -> None:
    taken: list[socket.socket] = []
    metrics = Metrics()
    listener = listen_tcp("127.0.0.1", 0, 16)
    if not is_chosen:
        port = listener.getsockname()[1]
        listener.close()
        listener = listen_tcp("127.0.0.1", port, 16)
    made = Acceptor(asyncio.get_running_loop(), Accepted(metrics), [listener], lambda sock, _: taken.append(sock))
    for times in (1, 2):
        (listener,) = made._listeners
        listener.shutdown(socket.SHUT_RDWR)  # as SOCK_DESTROY: it is in no state to accept, and its reader is called
        await until(lambda: metrics.counters.get("accept_ended", 0) >= times)  # noqa: B023
        with socket.create_connection(made.bound):
            await until(lambda: len(taken) == times)  # noqa: B023
        assert metrics.counters["accept_ended"] == times, "it does not spin"
    made.close()
    for sock in taken:
        sock.close()


async def test_a_listener_whose_port_was_taken_meanwhile_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "ACCEPT_PAUSE_S", 0.05)
    taken: list[socket.socket] = []
    metrics = Metrics()
    listener = listen_tcp("127.0.0.1", 0, 16)
    made = Acceptor(asyncio.get_running_loop(), Accepted(metrics), [listener], lambda sock, _: taken.append(sock))
    listener.shutdown(socket.SHUT_RDWR)
    rival = listen_tcp(*made.bound, 16)
    await until(lambda: metrics.counters.get("accept_paused", 0) >= 2)
    rival.close()
    await until(lambda: next(iter(made._listeners)) is not listener)
    with socket.create_connection(made.bound):
        await until(lambda: len(taken) == 1)
    made.close()
    taken[0].close()


def lose_its_port(sock: socket.socket) -> None:
    """Do to a UDP socket whose port the kernel chose what SOCK_DESTROY does, but for the error."""
    nowhere = bytes(16)  # AF_UNSPEC
    assert ctypes.CDLL(None).connect(sock.fileno(), nowhere, len(nowhere)) == 0
    assert sock.getsockname()[1] == 0


async def test_a_udp_socket_whose_port_was_taken_meanwhile_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "ACCEPT_PAUSE_S", 0.05)
    loop, metrics, ended = asyncio.get_running_loop(), Metrics(), OSError(errno.ECONNABORTED, "ended")
    with bind_udp("127.0.0.1", 0) as sock:
        name = sock.getsockname()
        bound_again(loop, sock, name, OSError(errno.ECONNREFUSED, "an earlier answer"), metrics)
        assert metrics.counters == {}
        lose_its_port(sock)
        with bind_udp(*name):
            bound_again(loop, sock, name, ended, metrics)
            await asyncio.sleep(0.2)
            assert sock.getsockname()[1] == 0
        await until(lambda: sock.getsockname() == name)
        bound_again(loop, sock, name, ended, metrics)  # it has its port: nothing is to be done
        assert metrics.counters == {"udp_ended": 2}


def test_the_kernels_numbers_tell_how_many_descriptors_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as sock:
        for limit, last in ((sock.fileno() + 65, False), (sock.fileno() + 1, True), (resource.RLIM_INFINITY, False)):
            monkeypatch.setattr(resource, "getrlimit", lambda kind, limit=limit: (limit, limit))
            assert is_reserved(sock) is (last or (0 < limit < 256 and sock.fileno() >= limit - min(64, limit // 4)))


def test_all_addresses_are_those_of_ipv4_too() -> None:
    try:
        (found,) = listen_at(["::"], 0, 1)
    except OSError:
        pytest.skip("this host has no IPv6")
    with found:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, found.getsockname()[1]), HANG_S).close()


def test_of_several_addresses_of_a_name_those_that_this_host_has_are_listened_at() -> None:
    found = listen_at(["192.0.2.1", "127.0.0.1"], 0, 1)
    assert [sock.getsockname()[0] for sock in found] == ["127.0.0.1"]
    found[0].close()
    with pytest.raises(OSError):
        listen_at(["192.0.2.1"], 0, 1)


# ---- a whole node


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A node with 96 descriptors that forwards its port to itself, and what it exposes is silent."""
    home = tmp_path / "n"
    process = subprocess.Popen(
        ["prlimit", "--nofile=96:96", *COMMAND, "--home", str(home), "up", "--json", *QUIET],
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "log").open("w"),
        text=True,
        env=clean_environment(),
    )
    assert process.stdout is not None
    json.loads(process.stdout.readline())
    yield home, process
    process.terminate()
    status_of(process, 30)


def ask(home: Path, *words: str) -> dict[str, object]:
    done = subprocess.run(
        [*COMMAND, "--home", str(home), *words, "--json"],
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=HANG_S,
    )
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit and /proc are Linux's")
def test_a_node_whose_descriptors_are_used_up_is_asked_moves_and_does_not_spin(
    cramped: tuple[Path, subprocess.Popen[str]],
) -> None:
    home, process = cramped
    listen = str(ask(home, "forward", "127.0.0.1:0", f"{'a' * 52}/x")["listen"])
    host, port = listen.rsplit(":", 1)
    with ExitStack() as stack:
        for _ in range(200):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            with suppress(BlockingIOError):
                client.connect((host, int(port)))
        time.sleep(1.0)
        used, at = cpu_s(process.pid), time.monotonic()
        open_ = len(os.listdir(f"/proc/{process.pid}/fd"))
        assert 40 < open_ < 96
        status = ask(home, "status")
        counters = status["counters"]
        assert isinstance(counters, dict)
        moved = str(ask(home, "rebind", "127.0.0.2:0")["listen"])
        assert moved.startswith("127.0.0.2:")
        assert cpu_s(process.pid) - used < 0.7 * (time.monotonic() - at), "it does not spin"
    assert "accept_paused" in counters


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit and /proc are Linux's")
def test_control_clients_that_ask_nothing_push_out_one_another_and_no_command(
    cramped: tuple[Path, subprocess.Popen[str]],
) -> None:
    home, process = cramped
    with ExitStack() as stack:
        for _ in range(4 * MAX_CONTROL_SILENT):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(HANG_S)
            client.connect(str(home / "control.sock"))
        assert ask(home, "status")["id"]
        assert len(os.listdir(f"/proc/{process.pid}/fd")) < 96 - 8
