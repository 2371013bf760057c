"""Where each peer's program runs: this project's environment, or one of its own that is made when it is needed.

Those are kept in the user's cache folder, by what is pinned in them, so that a second run needs no network.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
INSTALL_S = 600.0
TAILSCALE = "it needs Python 3.12, and a control server for every address and key"


class UnavailableError(Exception):
    """The peer cannot be had here; the text says why."""


def cache() -> Path:
    """Return the folder that environments are kept in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meshnode" / "peers"


@dataclass(frozen=True, slots=True)
class Peer:
    """One column of the table.

    Attributes:
        name: Its name, short enough for a column's head.
        program: The arguments of its program.
        imports: What a user imports.
        needs: The file of pinned requirements (``requirements-*.txt``), or a folder with a ``package.json``; "" when
            this project's environment has all.
        env: Variables of its processes.
        note: What is to be known where it does not run.
    """

    name: str
    program: tuple[str, ...]
    imports: str = ""
    needs: str = ""
    env: tuple[tuple[str, str], ...] = ()
    note: str = ""

    def variables(self) -> dict[str, str]:
        """Return the environment of its processes."""
        return {**os.environ, "PYTHONPATH": str(ROOT), **dict(self.env)}


PEERS = (
    Peer("tcp", ("-m", "bench.peers.plain", "tcp"), "asyncio"),
    Peer("tls", ("-m", "bench.peers.plain", "tls"), "asyncio, ssl"),
    Peer("aioquic.asyncio", ("-m", "bench.peers.plain", "aioquic"), "aioquic.asyncio"),
    Peer("iroh", ("-m", "bench.peers.iroh_wheel"), "iroh", "requirements-iroh.txt"),
    Peer("py-libp2p", ("-m", "bench.peers.py_libp2p"), "libp2p", "requirements-libp2p.txt"),
    Peer("tailscale-py", ("-m", "bench.peers.tailscale"), "tailscale", "requirements-tailscale.txt", note=TAILSCALE),
    Peer("hyperdht", ("peer.js",), "", "hyperdht"),
    Peer("aioquic", ("-m", "bench.peers.mesh"), "meshnode", env=(("MESHNODE_ENGINE", "aioquic"),)),
    Peer("qh3", ("-m", "bench.peers.mesh"), "meshnode", env=(("MESHNODE_ENGINE", "qh3"),)),
)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{Path(command[0]).name}: {error}") from error
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines
        raise UnavailableError(f"not installed: {errors[-1].strip() if errors else 'no reason given'}")


def _made(pins: bytes, what: str) -> tuple[Path, bool]:
    """Return an environment's folder, and whether it is complete."""
    folder = cache() / f"{what}-{hashlib.sha256(pins).hexdigest()[:12]}"
    return folder, (folder / "complete").exists()


def _python(peer: Peer) -> tuple[str, ...]:
    pins = HERE / peer.needs
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder, complete = _made(pins.read_bytes() + version.encode(), peer.name)
    python = str(folder / "bin" / "python")
    if not complete:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        _run(python, "-m", "pip", "install", "--quiet", "-r", str(pins))
        (folder / "complete").touch()
    return python, *peer.program


def _node(peer: Peer) -> tuple[str, ...]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise UnavailableError("node and npm are not installed")
    folder, complete = _made((HERE / peer.needs / "package.json").read_bytes(), peer.name)
    if not complete:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copy(HERE / peer.needs / "package.json", folder)
        _run(npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder))
        (folder / "complete").touch()
    shutil.copy(HERE / peer.needs / peer.program[0], folder)
    return node, str(folder / peer.program[0])


def command(peer: Peer) -> tuple[str, ...]:
    """Return the command of a peer's program; makes its environment when there is none. Raises UnavailableError."""
    if not peer.needs:
        return sys.executable, *peer.program
    return _python(peer) if peer.needs.endswith(".txt") else _node(peer)
