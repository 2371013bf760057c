"""Signals of the process: which ones end the node, those that have it tell its state, and SIGHUP, which is two things.

A terminal that closes sends it to what runs in it, which then ends in order, unless nohup(1) has it ignored. By custom
it also asks a service to read its settings again (``kill -HUP``, ``systemctl reload``): that is meant where the process
still has its terminal, or never had one.

SIGUSR1 and SIGUSR2 mean to other daemons "open the log again" or "say how it goes"; by default they end a process.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress


def handle_signals(
    loop: asyncio.AbstractEventLoop, stop: Callable[[], None], reload: Callable[[], None], tell: Callable[[], None]
) -> None:
    """Have ``stop`` called by SIGINT, SIGTERM and a closed terminal, ``reload`` by any other SIGHUP.

    ``tell`` is called by SIGUSR1 and SIGUSR2.
    """
    had_terminal = has_terminal()

    def on_hangup() -> None:
        if had_terminal and not has_terminal():
            stop()
        else:
            reload()

    with suppress(NotImplementedError):
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            loop.add_signal_handler(number, tell)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, on_hangup)


def has_terminal() -> bool:
    """Return whether this process has a controlling terminal that is there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
