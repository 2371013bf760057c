"""A reader that takes its time holds the sender back; neither process piles anything up."""

from __future__ import annotations

import sys

import pytest

from bench.slow_reader import run


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from /proc")
def test_neither_end_grows_while_a_slow_reader_is_written_to() -> None:
    found = run(megabytes=60, rate_mb=20)
    assert found["sender_MB"] < 30
    assert found["reader_MB"] < 30
    assert found["rate_MBps"] < 22, "the reader was not slow"
