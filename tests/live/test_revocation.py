"""A stolen machine in a real mesh: revoked from the authority's home, cut at once, kept out after every restart."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.given_time import HANG_S, GivenTime, eventually
from tests.live.cli_node import CliNode, run, stopping


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(4096):
            self.request.sendall(data)


@contextmanager
def _echo() -> Iterator[int]:
    """The port of a TCP server that echoes."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def _joined(home: Path, inviter: Path, *args: str) -> Path:
    done = run(inviter, "invite", "--json", *args)
    ticket = json.loads(done.stdout)["ticket"]
    assert run(home, "join", ticket, "--json").returncode == 0
    return home


def test_a_live_stream_of_a_revoked_node_is_cut_in_a_second_and_no_restart_lets_it_in_again(tmp_path: Path) -> None:
    hub, server, thief = tmp_path / "hub", tmp_path / "server", tmp_path / "thief"
    assert run(hub, "mesh", "create", "field").returncode == 0
    with _echo() as echo:
        nodes = [CliNode(hub)]
        with stopping(*nodes):
            for home in (server, thief):
                nodes.append(CliNode(_joined(home, hub, "--role", "web"), seed=nodes[0]))
            nodes[1].ask("expose", "echo", f"tcp://127.0.0.1:{echo}", "--allow", "role:web")
            forward = nodes[2].ask("forward", "127.0.0.1:0", f"{nodes[1].id}/echo")
            port = int(forward["listen"].rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port), HANG_S) as tcp:
                tcp.sendall(b"x" * 64)
                assert tcp.recv(64)
                began = GivenTime()
                said = nodes[0].ask("revoke", nodes[2].id, "--reason", "stolen")
                assert (said["id"], said["kind"], said["reason"]) == (nodes[2].id, "key", "stolen")
                tcp.settimeout(HANG_S)
                with suppress(ConnectionError):
                    while tcp.recv(64):
                        pass
                assert began.seconds < 5.0, "the command's own start included"
            eventually(lambda: nodes[1].ask("status")["revocations"] == {"known": 1, "waits": False})
            assert nodes[1].ask("revoke", "--list")["id"] == nodes[2].id
            refused = nodes[2].error("ping", nodes[1].id, "-c", "1")
            assert "revoked" in refused["message"]
            nodes[1].kill()
            nodes[1] = CliNode(server, seed=nodes[0])
            assert nodes[1].ask("status")["revocations"]["known"] == 1, "it was on the disk"
            kinds = [line["kind"] for line in _audit(nodes[1])]
            assert "revoked" in kinds
            for node in nodes[1:]:
                node.stop()


def _audit(node: CliNode) -> list[dict[str, str]]:
    done = node.run("audit", "show", "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_node_keeps_its_place_with_a_new_key_and_the_old_id_leads_to_it(tmp_path: Path) -> None:
    hub, member = tmp_path / "hub", tmp_path / "member"
    assert run(hub, "mesh", "create", "field").returncode == 0
    first = CliNode(hub)
    with stopping(first):
        seed = f"{first.id}@{first.endpoint}"
        _joined(member, hub, "--role", "web")
        node = CliNode(member, seed=first)
        done = node.ask("rotate")
        assert (done["old"], done["restart"]) == (node.id, True)
        assert node.ask("ping", first.id, "-c", "1")["rtt_ms"] is not None, "it goes on with the old key"
        node.stop()
        assert (member / "key.old").stat().st_mode & 0o777 == 0o600
        node = CliNode(member, "--seed", seed)
        with stopping(node):
            assert node.id == done["id"]
            assert node.ask("ping", first.id, "-c", "1")["rtt_ms"] is not None
            assert first.ask("ping", done["old"], "-c", "1")["rtt_ms"] is not None, "the old id leads to the new one"
            first.ask("revoke", done["old"])
            eventually(lambda: "revoked" in node.error("ping", first.id, "-c", "1")["message"])


def test_a_statement_in_a_file_is_applied_by_any_member_and_a_forged_one_by_none(tmp_path: Path) -> None:
    hub, member = tmp_path / "hub", tmp_path / "member"
    assert run(hub, "mesh", "create", "field").returncode == 0
    _joined(member, hub, "--role", "web")
    lost = json.loads(run(_joined(tmp_path / "lost", hub, "--role", "web"), "id", "--json").stdout)["id"]
    file = tmp_path / "revoked.statement"
    assert run(hub, "revoke", lost, "--out", str(file), "--json").returncode == 0
    assert json.loads(run(member, "revoke", lost, "--json").stdout)["error"]["code"] == "config_error"
    node = CliNode(member)
    with stopping(node):
        assert node.ask("apply", str(file))["id"] == lost
        forged = bytearray(file.read_bytes())
        forged[5] ^= 1
        file.write_bytes(forged)
        assert "forged" in node.error("apply", str(file))["message"]
        own = node.ask("revoke", node.id)
        assert own["issuer"] == node.id, "a machine revokes its own key"
        assert any("revoked" in text for text in node.ask("status")["degraded"])
