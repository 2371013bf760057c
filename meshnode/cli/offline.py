"""What this host tells of its network without a running node."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

from meshnode.base.limits import MAX_DOCTOR_SEEDS
from meshnode.config import Config, parse_seed
from meshnode.diagnosis.finding import Snapshot
from meshnode.runtime.interfaces import local_networks

NAME_TIMEOUT_S = 3.0


def snapshot_without_node(home: Path) -> Snapshot:
    """Return this host's addresses, and whether the names of the seeds resolve.

    Raises ConfigError.
    """
    seeds = [parse_seed(text) for text in Config.load(home).seeds[:MAX_DOCTOR_SEEDS]]
    names = _look_up(list(dict.fromkeys(seed.host for seed in seeds)))
    return {
        "running": False,
        "home": str(home),
        "addresses": [list(network) for network in local_networks(loopback=True)],
        "seeds": [{"id": str(seed.id), "host": seed.host, "port": seed.port, **names[seed.host]} for seed in seeds],
        "peer": None,
    }


def _look_up(hosts: list[str]) -> dict[str, dict[str, Any]]:
    """Resolve all names at once, so that a name server that does not answer costs its time once."""
    late = {"addresses": [], "error": "the name server does not answer"}
    found: dict[str, dict[str, Any]] = {}

    def ask(host: str) -> None:
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
            found[host] = {"addresses": list(dict.fromkeys(str(item[4][0]) for item in answers)), "error": ""}
        except (OSError, UnicodeError) as error:
            found[host] = {"addresses": [], "error": getattr(error, "strerror", None) or str(error)}

    threads = [threading.Thread(target=ask, args=(host,), daemon=True) for host in hosts]
    until = time.monotonic() + NAME_TIMEOUT_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return {host: found.get(host, late) for host in hosts}
