"""Runs a program as if it had been started itself: signals go on to it, and its end is the end of this process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from meshnode.errors import NotFound

PASSED_ON = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
SI_KERNEL = 0x80  # sigaction(2): the terminal sent it, to every process of its foreground group
TERMINAL = (signal.SIGINT, signal.SIGQUIT)
IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)  # by Python, and what it starts would inherit that
CANNOT_RUN, NO_SUCH = 126, 127  # exit codes, as shells have them


class CannotRun(NotFound):
    """A program that is not there, or may not be run."""

    code = "cannot_run"


def launch(command: Sequence[str], environment: Mapping[str, str], started: Callable[[int], None]) -> int:
    """Run a program, and return its exit code; a program that a signal ended ends this process by the same one.

    ``started`` is called with its process id. Raises CannotRun.
    """
    if not command[0]:
        raise CannotRun("cannot run a program without a name", hint="is a variable empty?") from FileNotFoundError()
    waited = {*PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)  # what comes from here on is waited for below
    try:
        try:
            process = os.posix_spawnp(command[0], list(command), environment, setsigmask=before, setsigdef=IGNORED)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise CannotRun(f"cannot run {command[0]}: {reason}", hint="is it installed, and in PATH?") from error
        started(process)
        status = _wait(process, waited)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if os.WIFSIGNALED(status):
        _die_of(os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status)


def _wait(process: int, waited: set[signal.Signals]) -> int:
    """Pass signals on until a process has ended; return its wait status."""
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return status
        number, is_terminal = _next_signal(waited)
        if number != signal.SIGCHLD and not is_terminal:
            os.kill(process, number)


def _next_signal(waited: set[signal.Signals]) -> tuple[int, bool]:
    """Wait for a signal; return it, and whether the program has it already, from the terminal."""
    if hasattr(signal, "sigwaitinfo"):
        found = signal.sigwaitinfo(waited)
        return found.si_signo, found.si_code == SI_KERNEL
    number = signal.sigwait(waited)
    return number, number in TERMINAL and sys.stdin.isatty()


def _die_of(number: int) -> None:
    """End this process by a signal, without a core: that is the program's."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.flush()
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
