"""A live stream in a mesh of 12 processes: from an order of the authority, to revoke say, until it has ended."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from meshnode.daemon.client import call
from meshnode.daemon.request import Request
from meshnode.daemon.requests.policy import PolicyApply
from meshnode.daemon.requests.trust import StatementApply
from meshnode.identity.keyfile import load
from meshnode.trust.operator import revoke
from meshnode.trust.signed_policy import sign_policy
from tests.live.cli_node import CliNode, run, stopping

PROCESSES = 12


def echo_all(server: socket.socket) -> None:
    with suppress(OSError):
        while True:
            client, _ = server.accept()
            threading.Thread(target=_answer, args=(client,), daemon=True).start()


def _answer(client: socket.socket) -> None:
    with suppress(OSError), client:
        while data := client.recv(4096):
            client.sendall(data)


def _revoked(home: Path, thief: str) -> Request:
    made = revoke(home, thief, load(home / "key"), None, None, "stolen", time.time())
    return StatementApply(made.encoded.hex())


def _denied(home: Path, thief: str) -> Request:
    policy = home / "denying.toml"
    deny = f'[[deny]]\nname = "it was sold"\nfrom = "{thief}"\nservices = "echo"\n'
    policy.write_text(f'version = 2\n{deny}[[allow]]\nfrom = "any"\nservices = "echo"\n')
    authority = load(home / "authority.key")
    (home / "denying.signed").write_bytes(sign_policy(authority, policy.read_bytes()).encoded)
    return PolicyApply(str(home / "denying.signed"))


ORDERS: dict[str, Callable[[Path, str], Request]] = {"revoked": _revoked, "policy": _denied}


def cut_s(count: int = PROCESSES, order: str = "revoked") -> float:
    """Seconds from the request at the authority's node to the end of a TCP connection of the machine that it hits."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as echo:
        threading.Thread(target=echo_all, args=(echo,), daemon=True).start()
        homes = [Path(folder) / f"n{n}" for n in range(count)]
        assert run(homes[0], "mesh", "create", "field").returncode == 0
        nodes = [CliNode(homes[0])]
        with stopping(nodes[0]):
            ticket = json.loads(run(homes[0], "invite", "--role", "web", "--uses", str(count), "--json").stdout)[
                "ticket"
            ]
            for home in homes[1:]:
                assert run(home, "join", ticket, "--json").returncode == 0
                nodes.append(CliNode(home, seed=nodes[0]))
            with stopping(*nodes[1:]):
                server, thief = nodes[-1], nodes[count // 2]
                server.ask("expose", "echo", f"tcp://127.0.0.1:{echo.getsockname()[1]}", "--allow", "role:web")
                port = int(thief.ask("forward", "127.0.0.1:0", f"{server.id}/echo")["listen"].rpartition(":")[2])
                with socket.create_connection(("127.0.0.1", port), 10) as tcp:
                    tcp.settimeout(10)
                    tcp.sendall(b"x")
                    assert tcp.recv(1) == b"x"
                    asked = ORDERS[order](homes[0], thief.id)
                    began = time.monotonic()
                    list(call(homes[0], asked, 10.0))
                    with suppress(ConnectionError):
                        while tcp.recv(64):
                            pass
                    return time.monotonic() - began


if __name__ == "__main__":
    for name in ORDERS:
        print(json.dumps({"processes": PROCESSES, "order": name, "cut_s": round(cut_s(PROCESSES, name), 3)}))
