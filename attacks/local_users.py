"""Another user of the host: secrets in the list of processes, a planted home, planted names in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from attacks import Row, Skipped
from attacks.lab import Member
from meshnode.identity.mesh_file import make_mesh_key, read_mesh_key

OTHER = 65_534
PRECIOUS = "precious"
QUIET = ("--listen", "127.0.0.1:0", "--no-mdns", "--no-port-mapping")
ROWS = {
    "arguments": Row(
        16, "medium", "local user: reads the arguments of all processes", "identity/mesh_file.py",
        "secrets of the node and its mesh in them", 1, 0,
    ),
    "core": Row(
        16, "medium", "local user, later: reads the core dump of a crash", "daemon/server.py",
        "bytes that a dump may have", None, 0, "B",
    ),
    "home": Row(
        17, "medium", "local user: makes the home before root starts a node there", "base/files.py",
        "files that the node leaves there: key, lock, seq", 3, 0,
    ),
    "names": Row(
        17, "medium", "local user: links at the temporary names of 4,000 processes", "base/files.py",
        "files of root that are overwritten", 1, 0,
    ),
    "state": Row(
        17, "medium", "local user: links in place of the lock and the state files", "base/files.py",
        "files of root that are changed", None, 0,
    ),
}  # fmt: skip
STATE = ("lock", "seq", "name.json", "services.json", "contacts", "known_names.json")


def _node(home: Path, *command: str) -> None:
    """Run a command in a home; it ends by itself, because the home is refused."""
    line = [sys.executable, "-m", "meshnode", "--home", str(home), *command]
    with suppress(subprocess.TimeoutExpired):  # it runs there
        subprocess.run(line, capture_output=True, timeout=10)


def _planted(root: Path) -> Path:
    home = root / "planted"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    return home


def _overwritten(victim: Path) -> int:
    changed = victim.read_text() != PRECIOUS or victim.stat().st_mode & 0o777 != 0o644
    victim.write_text(PRECIOUS)
    victim.chmod(0o644)
    return int(changed)


def run(short: bool) -> dict[str, float]:
    """Plant as another user, run nodes as this one. Raises Skipped without root."""
    if os.geteuid() != 0:
        raise Skipped("only root can act as two users")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        victim = root / "victim"
        victim.write_text(PRECIOUS)
        victim.chmod(0o644)
        found: dict[str, float] = {}
        make_mesh_key(root / "mesh.key")
        with Member(root / "m", "--mesh", f"@{root / 'mesh.key'}") as member:
            arguments = Path(f"/proc/{member.pid}/cmdline").read_text()
            found["arguments"] = int(read_mesh_key(root / "mesh.key") in arguments)
            limits = Path(f"/proc/{member.pid}/limits").read_text().splitlines()
            core = next(line for line in limits if "core file" in line).split()[4]
            found["core"] = float("inf") if core == "unlimited" else int(core)

        home = _planted(root)
        os.chown(home, OTHER, OTHER)
        for command in (["up", *QUIET], ["keygen"]):
            _node(home, *command)
        found["home"] = len(os.listdir(home))

        home = _planted(root)
        for pid in range(os.getpid(), os.getpid() + 4_000):
            (home / f".key.{pid}.tmp").symlink_to(victim)
        os.chown(home, OTHER, OTHER)
        _node(home, "keygen")
        found["names"] = _overwritten(victim)

        home = _planted(root)
        for name in STATE:
            (home / name).symlink_to(victim)
        os.chown(home, OTHER, OTHER)
        _node(home, "up", *QUIET)
        found["state"] = _overwritten(victim)
        return found
