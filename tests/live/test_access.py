"""Access as an operator gives it: ``up --allow`` and ``expose --allow``, in processes of their own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.given_time import HANG_S, eventually
from tests.live.cli_node import CliNode, stopping


@pytest.fixture
def target() -> Iterator[int]:
    """The port of a TCP program that greets each client."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    client.sendall(b"secret")

        threading.Thread(target=greet, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def read_through(node: CliNode, to: str) -> bytes:
    """What a client of a forward to a service gets; nothing when it is reset."""
    host, _, port = node.ask("forward", "0", to)["listen"].rpartition(":")
    try:
        with socket.create_connection((host, int(port)), HANG_S) as client:
            client.settimeout(HANG_S)
            return client.recv(100)
    except ConnectionResetError:
        return b""


def test_a_node_is_closed_to_all_that_it_does_not_allow_whichever_end_dialled(tmp_path: Path, target: int) -> None:
    seed = CliNode(tmp_path / "seed", command="seed")
    other = CliNode(tmp_path / "other", "--name", "other", seed=seed)
    closed = CliNode(tmp_path / "closed", "--allow", seed.id, seed=seed)
    with stopping(closed, other, seed):
        closed.ask("expose", "secret", str(target), "--allow", "any")
        eventually(lambda: other.run("services", "secret", "--json").returncode == 0)
        assert other.error("ping", closed.id, "-c", "1")["code"] == "policy_denied"
        assert read_through(other, f"{closed.id}/secret") == b""
        assert closed.ask("ping", "other", "-c", "1")["rtt_ms"] is not None, "it may use others"
        assert read_through(other, f"{closed.id}/secret") == b"", "and gives nothing on the connection that it dialled"
        assert read_through(seed, f"{closed.id}/secret") == b"secret"


def test_a_name_that_is_allowed_is_bound_to_the_id_that_has_it(tmp_path: Path, target: int) -> None:
    seed = CliNode(tmp_path / "seed", command="seed")
    laptop = CliNode(tmp_path / "laptop", "--name", "laptop", seed=seed)
    desk = CliNode(tmp_path / "desk", seed=seed)
    with stopping(laptop, desk, seed):
        for name in ("laptop", desk.id[:12]):
            eventually(lambda name=name: seed.run("resolve", name, "--json").returncode == 0)
        told = seed.ask("expose", "files", str(target), "--allow", "laptop", "--allow", desk.id[:12])
        assert told["allow"] == [laptop.id, desk.id]
        assert read_through(laptop, f"{seed.id}/files") == b"secret"
        assert seed.error("expose", "files", str(target), "--allow", "nobody-here")["code"] == "not_found"
        assert seed.ask("status")["exposes"][0]["allow"] == [laptop.id, desk.id], "the mistake changed nothing"


def test_a_name_where_only_ids_can_be_told_is_refused_as_that(tmp_path: Path) -> None:
    from tests.unit.test_error_texts import error_of

    code, message, hint = error_of(tmp_path, "up", "--allow", "laptop", "--no-mdns", "--listen", "127.0.0.1:0")
    assert (code, message) == ("invalid_id", "'laptop' is a name; allow takes only ids and roles")
    assert "meshnode id" in hint
