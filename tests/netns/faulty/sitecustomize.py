"""Makes a Python process of the tests have a slow disk or a wrong clock, as the environment says.

``FAULTY_FSYNC_S``: seconds that each fsync takes. ``FAULTY_CLOCK``: a file with the seconds by which the wall clock is
ahead, read at each look.
"""

import os
import time

if pause := os.environ.get("FAULTY_FSYNC_S"):
    _fsync = os.fsync

    def fsync(fd: int) -> None:
        """Take as long as a worn SD card."""
        time.sleep(float(pause))
        _fsync(fd)

    os.fsync = fsync

if offset := os.environ.get("FAULTY_CLOCK"):
    _time = time.time

    def wrong() -> float:
        """Return the time of a clock that is wrong."""
        with open(offset) as file:
            return _time() + float(file.read() or 0)

    time.time = wrong
