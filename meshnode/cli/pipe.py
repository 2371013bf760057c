"""Standard input and output as the two directions of a stream that the control socket carries."""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import threading
from typing import BinaryIO

from meshnode.daemon.client import STOPPED_HINT, error_of
from meshnode.daemon.frames import BROKEN, END, LENGTH, MAX_FRAME, WHOLE, frame
from meshnode.errors import ConnectionLost

STDIN, STDOUT = 0, 1


def pipe(connection: socket.socket, source: BinaryIO) -> None:
    """Carry stdin to the service and what comes back to stdout, until both have ended.

    When the service has ended its direction, stdout is closed: what reads it learns so while stdin goes on. At a
    terminal the command ends then. Raises ConnectionLost and what the node tells when the stream broke, BrokenPipeError
    when stdout is closed.
    """
    threading.Thread(target=_send, args=(connection,), daemon=True).start()
    while True:
        head = source.read(LENGTH.size)
        if head == WHOLE:
            return
        if head == BROKEN:
            raise error_of(json.loads(source.readline()))
        if len(head) < LENGTH.size:
            raise ConnectionLost("the node stopped; what came is not the whole", hint=STOPPED_HINT)
        if head == END:
            _close_stdout()
            if sys.stdin is not None and sys.stdin.isatty():
                return
            continue
        (size,) = LENGTH.unpack(head)
        data = source.read(size)
        _write_out(data)


def _send(connection: socket.socket) -> None:
    """Send stdin, and its end. A socket that is over is met by the reader."""
    try:
        while data := _read_in():
            connection.sendall(frame(data))
        connection.sendall(END)
    except OSError:
        return


def _read_in() -> bytes:
    while True:
        try:
            return os.read(STDIN, MAX_FRAME)
        except BlockingIOError:  # the other side of the pipe has set it so
            select.select([STDIN], [], [])


def _write_out(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(STDOUT, rest) :]
        except BlockingIOError:
            select.select([], [STDOUT], [])


def _close_stdout() -> None:
    """Let what reads stdout see its end; the number stays taken, so that no file gets it."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, STDOUT)
    os.close(nothing)
