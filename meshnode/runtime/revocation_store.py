"""The revocations that a home has seen: its file ``revocations`` holds them, so that no restart forgets one."""

from __future__ import annotations

import os

from meshnode.base.limits import MAX_OTHER_REVOCATIONS, MAX_REVOCATION, MAX_REVOCATIONS
from meshnode.base.wire import as_bytes, as_list, decode, encode
from meshnode.runtime.state_files import MAX_STATE, StateFiles
from meshnode.stack.component import Revokes

FILE_NAME = "revocations"


def keep_revocations(revoking: Revokes, state: StateFiles) -> None:
    """Restore what an earlier process knew, and save the set when there is more."""
    if revoking.held is not None:
        was_there = os.path.lexists(state.home / FILE_NAME)
        found = state.read(FILE_NAME, parse_statements)
        revoking.restore(found if found is not None or was_there else [])
        revoking.on_taken = lambda: state.save(FILE_NAME, packed(revoking))


def packed(revoking: Revokes) -> bytes:
    """Return the file of a node's set."""
    return encode([each.encoded for each in revoking.held or ()])


def parse_statements(data: bytes) -> list[bytes]:
    """Return the statements in a file, unverified.

    Raises WireError.
    """
    items = as_list(decode(data, MAX_STATE), MAX_REVOCATIONS + MAX_OTHER_REVOCATIONS)
    return [as_bytes(item, 1, MAX_REVOCATION) for item in items]
