"""The log of a node's process, on standard error: written by a thread, so that a pipe that nothing reads stops no node.

What waits is bounded; lines that find no room are counted, and told when there is room again.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from contextlib import suppress

from meshnode.base.log_lines import LogFormatter, LogRate

MAX_LINES = 2_000  # that wait to be written; x about 200 B, tracebacks more
FLUSH_S = 0.5  # the end of the process waits no longer for its reader
RETRY_S = 0.05  # where standard error does not block and is full
STDERR = 2


class LogWriter(logging.Handler):
    """Handler that hands its lines to a thread."""

    def __init__(self, fd: int = STDERR) -> None:
        super().__init__()
        self._fd = fd
        self._lost = 0
        self._lines: queue.Queue[bytes] = queue.Queue(MAX_LINES)
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record; returns at once."""
        try:
            self._lines.put_nowait(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except queue.Full:
            self._lost += 1
        except Exception:
            self.handleError(record)  # its text and its arguments do not fit

    def flush(self) -> None:
        """Wait until everything is written, at most ``FLUSH_S``."""
        until = time.monotonic() + FLUSH_S
        while self._lines.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.005)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            lost, self._lost = self._lost, 0
            if lost:
                line = f"{lost} lines of the log are lost: nothing read them in time\n".encode() + line
            with suppress(OSError):  # the reader has gone
                self._put(line)
            self._lines.task_done()

    def _put(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                time.sleep(RETRY_S)


def begin_log(verbose: bool) -> None:
    """Log to standard error: what happens to the node, and with ``verbose`` how."""
    writer = LogWriter()
    writer.setFormatter(LogFormatter())
    writer.addFilter(LogRate())
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, handlers=[writer])
    if not verbose:
        logging.getLogger("meshnode").setLevel(logging.INFO)
