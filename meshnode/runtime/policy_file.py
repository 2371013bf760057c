"""The policies in a home. ``policy.toml``, the node's own, is read at the start and within a second of each change.

A file that is wrong stops a start, for a node must not run without the rules that it was given. Once the node runs, a
wrong file changes nothing: the rules of before stay in force, and the node's status says what to mend.
``policy.signed`` is the newest policy of the mesh's authority that this home has seen, so that none older comes back.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from meshnode.base.files import read_given
from meshnode.base.limits import MAX_POLICY
from meshnode.base.refusals import refusal
from meshnode.errors import ConfigError
from meshnode.runtime.state_files import StateFiles
from meshnode.stack.component import Policies
from meshnode.trust.guard import Guard
from meshnode.trust.policy import Policy, parse_policy
from meshnode.trust.signed_policy import MAX_SIGNED, SignedPolicy

log = logging.getLogger("meshnode.policy")

FILE_NAME, SIGNED_NAME = "policy.toml", "policy.signed"
LOOK_S = 0.9  # between looks at the file, each one stat(2): a change is in force within a second
AWAKE_S = 0.6  # before a look is due, from when on a node that is awake for something else looks: it wakes for few then
SETTLE_S = 0.05  # from a look that finds a change to the next: an editor moves the old file away first, or empties it

Seen = tuple[int, int, int]


class PolicyFile:
    """Keeps a guard's local policy as the file is. Raises ConfigError: the file is wrong."""

    def __init__(self, loop: asyncio.AbstractEventLoop, home: Path, guard: Guard) -> None:
        self.path = home / FILE_NAME
        self._loop = loop
        self._guard = guard
        self._problem = ""
        self._seen = self._found = _look(self.path)  # what is in force, and what the last look found
        policy = read_policy(self.path)
        if policy is not None:
            guard.set_local(policy)
            _tell(policy)
        self._timer = loop.call_later(LOOK_S, self._tick)

    def look(self, now: float) -> None:
        """Look at the file now, while the node is awake, unless it did a moment ago."""
        if self._found == self._seen and self._timer.when() - self._loop.time() <= AWAKE_S:
            self._timer.cancel()
            self._tick()

    def _tick(self) -> None:
        before, self._found = self._found, _look(self.path)
        is_new, is_settled = self._found != self._seen, self._found == before
        self._timer = self._loop.call_later(SETTLE_S if is_new and not is_settled else LOOK_S, self._tick)
        if is_new and is_settled:
            self._loop.call_soon(self._load_or_say)  # not in the middle of a tick of the stack

    def _load_or_say(self) -> None:
        try:
            self.load()
        except ConfigError as error:
            log.warning("%s; the rules of before stay in force. To mend it: %s", error.message, error.hint)

    def read_again(self) -> None:
        """Put the file in force now, and say what is in force, also where nothing has changed."""
        before = self._guard.local
        self._load_or_say()
        if self._guard.local is before:
            log.info("the policy of this node was read again: %s", "it is as before" if before else "it has none")

    def load(self) -> Policy | None:
        """Put the file in force.

        Raises ConfigError: it is wrong, and the rules of before stay.
        """
        seen = _look(self.path)
        if seen == self._seen and not self._problem:
            return self._guard.local  # it is in force
        self._seen = seen
        try:
            policy = read_policy(self.path)
        except ConfigError as error:
            self._problem = f"policy: {error.message}; the rules of before stay in force"
            raise
        self._problem = ""
        if policy is not None or self._guard.local is not None:
            self._guard.set_local(policy)
            _tell(policy)
        return policy

    def degraded(self) -> list[str]:
        """Return what is wrong with the file, in words; empty while it is in force."""
        return [self._problem] if self._problem else []

    def close(self) -> None:
        """Look no more."""
        self._timer.cancel()


def _look(path: Path) -> Seen | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def read_policy(path: Path) -> Policy | None:
    """Return the policy in a file; None when there is none.

    Raises ConfigError.
    """
    try:
        data, _ = read_given(path, MAX_POLICY + 1, wait=0)  # a running node looks at it, and cannot wait for a pipe
    except FileNotFoundError:
        return None
    except OSError as error:
        reason, hint = refusal(error, path)
        raise ConfigError(f"cannot read {path}: {reason}", hint=hint) from error
    return parse_policy(data, str(path))


def _tell(policy: Policy | None) -> None:
    if policy is None:
        log.warning("this node has no policy of its own any more")
    else:
        way = "is only observed" if policy.observes else "is in force"
        log.info("the policy of this node, version %d with %d rules, %s", policy.version, len(policy.rules), way)


def read_signed(path: Path) -> bytes:
    """Return what a file of a signed policy holds, one byte too many where it is too long.

    Raises OSError.
    """
    return read_given(path, MAX_SIGNED + 1)[0]


def keep_mesh_policy(link: Policies, state: StateFiles) -> bool:
    """Put the newest policy of the authority that this home has seen in force again, and save newer ones.

    Returns False when it is lost: there is a file, and it is of no use.
    """
    was_there = os.path.lexists(state.home / SIGNED_NAME)
    held = state.read(SIGNED_NAME, link.adopt) if link.takes_any else None  # ConfigError is a ValueError
    if held is not None:
        _tell_mesh(held)

    def keep(encoded: bytes) -> None:
        state.save(SIGNED_NAME, encoded)
        if link.held is not None:
            _tell_mesh(link.held)

    link.on_adopted = keep
    return link.held is not None or not was_there


def _tell_mesh(held: SignedPolicy) -> None:
    log.info("the policy of the mesh, version %d with %d rules, is in force", held.version, len(held.policy.rules))
