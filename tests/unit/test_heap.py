"""The heap of a process with a node: what one batch of datagrams gave back is taken again without page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

TAKEN = """
import resource
from meshnode.runtime.sockets import keep_heap
keep_heap()
def take():
    for _ in range(50):
        pieces = [bytes(4_000) for _ in range(500)]
        del pieces
take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep what they choose")
def test_memory_of_one_batch_of_datagrams_is_kept_for_the_next() -> None:
    done = subprocess.run([sys.executable, "-c", TAKEN], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 1_000  # 12,800 where each batch takes its pages anew
