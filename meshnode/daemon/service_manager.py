"""Messages to the service manager that started this process (sd_notify(3)): ready, alive, stopping.

Nothing is sent where ``NOTIFY_SOCKET`` is not set: outside of systemd, or in a unit that is not ``Type=notify``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket

log = logging.getLogger("meshnode.daemon")


def notify(state: str) -> None:
    """Send one state, as ``READY=1``.

    A manager that cannot be reached is logged, and costs nothing else.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
            notifier.setblocking(False)
            notifier.sendto(state.encode(), "\0" + path[1:] if path[0] == "@" else path)
    except OSError as error:
        log.debug("the service manager was not told %s: %s", state, error)


def watchdog_s() -> float | None:
    """Return the seconds between two signs of life: half of what the manager waits; None when it waits for none."""
    mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    wanted = os.environ.get("WATCHDOG_USEC", "")
    return int(wanted) / 2e6 if mine and wanted.isdecimal() and int(wanted) else None


async def stay_alive() -> None:
    """Send signs of life from the event loop until cancelled, so that a loop that hangs is restarted."""
    period = watchdog_s()
    while period is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(period)
