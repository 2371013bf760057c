"""Commands of meshnode as copies of a process that has loaded all modules: four fifths of a command's CPU time.

Each is a process of its own, as with ``subprocess.Popen``: id, signals, pipes, environment, folder and exit code are
real, and it runs ``meshnode.__main__``. Its new keys have no price. Tests of the start itself, of the interpreter and
of other users take ``subprocess``.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from runpy import run_module, run_path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
UNLOADED = ("meshnode.__main__", "meshnode.ext.", "meshnode.sim.")
GONE = "the process that makes the copies has ended"
ONE_AT_A_TIME = threading.Lock()
LONGEST = 1 << 18  # bytes of a request: the arguments and the environment


class Forked(subprocess.Popen[Any]):
    """A command; ``args`` is what stands behind ``meshnode``, or a Python file and what stands behind it.

    What is given by name is Popen's, for pipes, text, cwd and env.
    """

    told: socket.socket  # has four bytes when it has ended

    def __init__(self, args: Sequence[str], **more: Any) -> None:
        super().__init__(list(args), **more)

    def _execute_child(self, args: Any, _1: Any, _2: Any, _3: Any, _4: Any, cwd: Any, env: Any, *rest: Any) -> None:
        mine, theirs = socket.socketpair()
        ends = rest[3:9]  # of the pipes of the three standard streams, each to read and to write
        given = [number if end == -1 else end for number, end in enumerate((ends[0], ends[3], ends[5]))]
        asked = {"args": args, "cwd": os.fspath(cwd or os.getcwd()), "env": dict(os.environ if env is None else env)}
        with theirs, ONE_AT_A_TIME:
            socket.send_fds(_original(), [json.dumps(asked).encode()], [*given, theirs.fileno()])
        self._close_pipe_fds(*ends)  # type: ignore[attr-defined]
        self.told = mine
        self.pid = int.from_bytes(mine.recv(4, socket.MSG_WAITALL), "big")
        assert self.pid, GONE

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code. Raises TimeoutExpired."""
        if self.returncode is None:
            self.told.settimeout(timeout if timeout is None else max(timeout, 0))
            try:
                status = self.told.recv(4, socket.MSG_WAITALL)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            assert status, GONE
            self.told.close()
            self.returncode = int.from_bytes(status, "big", signed=True)
        return self.returncode


def run(args: Sequence[str], timeout: float, said: str | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; ``said`` is its standard input, else that of the tests."""
    stdin = None if said is None else subprocess.PIPE
    with Forked(args, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more) as process:
        try:
            out, err = process.communicate(said, timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@cache
def _original() -> socket.socket:
    """Start the process that makes the copies; it ends with this one. Return the socket of its requests."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        line = [sys.executable, "-m", __name__, str(theirs.fileno())]
        process = subprocess.Popen(line, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd=ROOT)
    process.returncode = 0  # it outlives all that could wait for it
    return mine


def _load() -> None:
    """Import all that a command may load, and leave it out of the looks for garbage."""
    gc.disable()
    package = import_module("meshnode")
    for module in walk_packages(package.__path__, "meshnode."):
        if not module.name.startswith(UNLOADED):
            import_module(module.name)
    keys = import_module("meshnode.identity.keys")
    vars(import_module("meshnode.identity.keyfile"))["make_identity"] = keys.Identity.generate
    gc.collect()
    gc.freeze()
    gc.enable()


def _make_copies(requests: socket.socket) -> tuple[bytes, list[int]] | None:
    """Make a process of each request and tell its end; return the request in the copy, None when the tests are over."""
    with selectors.DefaultSelector() as waits:
        waits.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in waits.select():
                if key.data is not None:
                    waits.unregister(key.fileobj)
                    os.close(key.fd)
                    _tell_end(*key.data)
                    continue
                asked, fds, _, _ = socket.recv_fds(requests, LONGEST, 4)
                if not asked:
                    return None
                if (pid := os.fork()) == 0:
                    return asked, fds
                for number in fds[:3]:
                    os.close(number)
                told = socket.socket(fileno=fds[3])
                told.send(pid.to_bytes(4, "big"))
                waits.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, told))


def _tell_end(pid: int, told: socket.socket) -> None:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with told, suppress(OSError):  # of a test that did not wait for it
        told.send(status.to_bytes(4, "big", signed=True))


def _become(asked: dict[str, Any], fds: list[int]) -> None:
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(asked["cwd"])
    sys.path[0] = asked["cwd"]  # as ``python -m`` has it
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.argv[1:] = asked["args"]


def _run() -> int:
    try:
        if sys.argv[1:] and sys.argv[1].endswith(".py"):
            del sys.argv[0]
            sys.path[0] = os.path.dirname(sys.argv[0])
            run_path(sys.argv[0], run_name="__main__")
        else:
            run_module("meshnode", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        assert ended.code is None or isinstance(ended.code, int)
        return ended.code or 0
    return 0


def _serve() -> None:
    found = None
    with suppress(KeyboardInterrupt):  # the terminal's Ctrl-C is the tests', which end, and this process with them
        _load()
        with socket.socket(fileno=int(sys.argv[1])) as requests:
            found = _make_copies(requests)
    if found is not None:
        asked, fds = found
        _become(json.loads(asked), fds)
        code = _run()
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the interpreter takes down each module of this many, which is most of a short command


if __name__ == "__main__":
    _serve()
