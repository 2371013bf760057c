"""A member that offers a service or claims a name of another member: whose service does a caller get?"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attacks import Row
from attacks.lab import Member, mesh, settled
from meshnode.errors import MeshError

PROVIDERS, NAMES = "directory/providers.py", "directory/names.py"
CALLS = 40
ROWS = {
    "first_use": Row(
        11, "high", "member: offers a service of another's name", PROVIDERS,
        f"of {CALLS} connections by its name alone, to it", 21, 0,
    ),
    "later_use": Row(
        11, "high", "member: offers a service that was used before", PROVIDERS,
        f"of {CALLS} connections by its name alone, to it", 21, 0,
    ),
    "real": Row(
        11, "high", "member: offers a service of another's name", PROVIDERS,
        f"of {CALLS} connections with --from, to the right one", 19, CALLS, more=True,
    ),
    "name_1970": Row(
        11, "high", "member: claims another's name with a date of 1970", NAMES,
        "nodes of 3 that take it for the other", 1, 0,
    ),
}  # fmt: skip


@contextmanager
def says(text: bytes) -> Iterator[str]:
    """A TCP server that says so and closes; yields what ``expose`` takes."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    with listener.accept()[0] as sock:
                        sock.sendall(text)

        threading.Thread(target=serve, daemon=True).start()
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"


def answers(member: Member, **how: object) -> list[bytes]:
    """Return what connections to ``db`` get through a forward; none when there is no forward."""
    try:
        host, _, port = str(member.ask("forward", listen="127.0.0.1:0", to="db", **how)["listen"]).rpartition(":")
    except MeshError:
        return []
    found = []
    for _ in range(CALLS):
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=10) as sock:
            found.append(sock.recv(4))
    return found


def _listed(member: Member) -> float:
    return len(member.run("services", "db").stdout.splitlines())


def run(short: bool) -> dict[str, float]:
    """Have an impostor offer what a member offers, and claim its name."""
    with mesh(4) as (root, seed, (real, early, late, evil)), says(b"REAL") as right, says(b"EVIL") as wrong:
        real.ask("expose", name="db", target=right, allow=["any"])
        settled(lambda: _listed(early), lambda count: count >= 1, 15.0)
        answers(early)  # it has used the service before the impostor came
        evil.ask("expose", name="db", target=wrong, allow=["any"])
        for member in (early, late):
            settled(lambda member=member: _listed(member), lambda count: count >= 2, 15.0)  # type: ignore[misc]
        figures = {
            "first_use": float(answers(late).count(b"EVIL")),
            "later_use": float(answers(early).count(b"EVIL")),
            "real": float(answers(late, trusted=[str(real.id)]).count(b"REAL")),
        }
        return figures | {"name_1970": _taken(root, seed, early, late)}


def _taken(root: Path, seed: Member, early: Member, late: Member) -> float:
    """Return how many nodes take an impostor for the node of a name: one that used it before, one late, one young."""
    args = ("--seed", seed.at, "--name", "laptop")
    home = root / "impostor"
    home.mkdir(mode=0o700)
    (home / "name.json").write_text(json.dumps({"name": "laptop", "first": 1}))
    with Member(root / "laptop", *args) as right:
        settled(lambda: _means(early, "laptop") == str(right.id), bool, 15.0)
        with Member(home, *args) as wrong, Member(root / "young", "--seed", seed.at) as young:
            settled(lambda: _means(late, "laptop") == "name_disputed", bool, 15.0)
            settled(lambda: _means(young, "laptop") != "not_found", bool, 15.0)
            return float(sum(_means(user, "laptop") == str(wrong.id) for user in (early, late, young)))


def _means(user: Member, name: str) -> str:
    """Return the id that a name means to a node, or the code of the error."""
    try:
        return str(user.ask("resolve", id=name)["record"]["id"])
    except MeshError as error:
        return error.code
