"""The audit log: what was let in, refused and cut, and which policies were in force; each line holds the one before.

Lines of JSON, in segments. ``prev`` of each is the BLAKE2b-256 of the line before (person ``mesh-audit``), ``seq``
counts from 1. A segment begins with a line ``segment``; a full one ends with a ``checkpoint``, which is signed.
The head, signed after each write, names the first and the last line: what is cut at either end is noticed as much as
what is edited. A connection has the same ``session`` in the logs of both its ends. Pure: files are in
``runtime/audit_files.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from enum import StrEnum
from functools import lru_cache

from meshnode.base.value import state, value
from meshnode.errors import InvalidId
from meshnode.identity.keys import Identity, verify
from meshnode.identity.node_id import NodeId

DOMAIN = b"meshnode audit v1\x00"
START = "0" * 64  # prev of the very first line
LAST_SEQ = 2**53  # a larger number, or one below 0, is damage
Line = dict[str, object]


class Kind(StrEnum):
    """What an entry is about. The first three are of the log itself."""

    SEGMENT = "segment"
    CHECKPOINT = "checkpoint"
    DAMAGED = "damaged"  # lines were missing when the node started
    LOST = "lost"  # entries that were not written: the disk was full, or a peer caused too many
    STARTED = "started"
    STOPPED = "stopped"
    ADMITTED = "admitted"
    ENDED = "ended"
    REFUSED = "refused"
    CUT = "cut"
    OPENED = "opened"  # a service, at the end that has it and at the end that uses it
    FAILED = "failed"  # a service of another node that this one asked for and did not get
    POLICY = "policy"
    REVOKED = "revoked"


@lru_cache(256)  # asked for each stream
def session_of(dialler: NodeId, listener: NodeId, odcid: bytes) -> str:
    """Return what names a connection in the logs of both ends: the original connection id, which TLS authenticates."""
    data = bytes(dialler) + bytes(listener) + odcid
    return hashlib.blake2b(data, digest_size=16, person=b"mesh-session").hexdigest()


def hash_of(line: bytes) -> str:
    """Return the hash of a line, without its newline."""
    return hashlib.blake2b(line, digest_size=32, person=b"mesh-audit").hexdigest()


def _encoded(fields: Line) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _signed(node: NodeId, seq: int, digest: str, first: int) -> bytes:
    return DOMAIN + bytes(node) + seq.to_bytes(8, "big") + first.to_bytes(8, "big") + bytes.fromhex(digest)


@state
class Chain:
    """Makes lines. ``seq`` and ``last`` are the number and the hash of the last line, ``first`` the oldest kept."""

    identity: Identity
    seq: int = 0
    last: str = START
    first: int = 1

    def line(self, time_ms: int, kind: Kind, **fields: object) -> bytes:
        """Return the next line, ended by a newline; fields that are None are left out."""
        kept = {name: value for name, value in fields.items() if value is not None}
        line = _encoded({"seq": self.seq + 1, "time": time_ms, "kind": kind.value, "prev": self.last, **kept})
        self.seq += 1
        self.last = hash_of(line)
        return line + b"\n"

    def checkpoint(self, time_ms: int) -> bytes:
        """Return a line that signs all before it."""
        signature = self.identity.sign(_signed(self.identity.id, self.seq, self.last, self.first))
        return self.line(
            time_ms, Kind.CHECKPOINT, node=str(self.identity.id), first=self.first, signature=signature.hex()
        )

    def head(self) -> bytes:
        """Return the signed head: the first and the last line as they are now."""
        signature = self.identity.sign(_signed(self.identity.id, self.seq, self.last, self.first))
        return _encoded(
            {
                "kind": "head",
                "node": str(self.identity.id),
                "seq": self.seq,
                "hash": self.last,
                "first": self.first,
                "signature": signature.hex(),
            }
        )


@value
class Report:
    """Result of a verification.

    Attributes:
        ok: Nothing is missing and nothing was changed.
        entries: Lines of the log that hold.
        problem: What is wrong first, "" when nothing is.
        first: Number of the oldest line.
        last: Number of the newest line.
        unsealed: Lines behind the signed head: written in the moment before the process was killed.
        node: The node whose key signed.
    """

    ok: bool
    entries: int
    problem: str
    first: int
    last: int
    unsealed: int
    node: str

    def to_json(self) -> dict[str, object]:
        """Return all attributes."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def parse_line(line: bytes) -> Line | None:
    """Return the fields of a line; None when it is no entry."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
        return None
    seq = found.get("seq")
    return found if type(seq) is int and 0 <= seq <= LAST_SEQ else None


def verify_log(lines: Iterable[bytes], head: bytes | None, node: NodeId | None = None) -> Report:
    """Check a log.

    Args:
        lines: All lines, oldest first, without their newlines.
        head: The signed head; None when it is missing, which is a fault.
        node: The node whose log it is; None to take the head's word for it.
    """
    said = parse_line(head) if head is not None else None
    if said is None or (node is not None and said.get("node") != str(node)):
        return Report(False, 0, "there is no head: it is missing, or another node's", 0, 0, 0, "")
    name = str(said.get("node"))
    if not _holds(said, said["seq"], str(said.get("hash")), said.get("first")):
        return Report(False, 0, "the head's signature does not hold", 0, 0, 0, name)
    check, problem = _Check(name), ""
    for line in lines:
        problem = check.take(line, said)
        if problem:
            break
    problem = problem or check.missing(said)
    ok = not problem
    return Report(ok, check.count, problem, check.first, check.last, max(0, check.last - int(str(said["seq"]))), name)


class _Check:
    """One pass over a log."""

    def __init__(self, node: str) -> None:
        self.count = self.first = self.last = 0
        self._node = node
        self._prev = ""
        self._is_head_seen = False

    def take(self, line: bytes, head: Line) -> str:
        """Take the next line; returns what is wrong with it."""
        fields = parse_line(line)
        if fields is None:
            return f"the line after {self.last} is no entry"
        seq = int(str(fields["seq"]))
        if self.count and (seq != self.last + 1 or fields.get("prev") != self._prev):
            return f"line {self.last + 1} is missing or was changed"
        if fields["kind"] == Kind.CHECKPOINT and not self._is_signed(fields):
            return f"the signature of line {seq} does not hold"
        if fields["kind"] == Kind.DAMAGED:
            return f"line {seq} says that lines were missing when the node started"
        self._prev = hash_of(line)
        if seq == head["seq"]:
            if self._prev != head.get("hash"):
                return f"line {seq} was changed: it is not the one that the head signs"
            self._is_head_seen = True
        self.count, self.last = self.count + 1, seq
        self.first = self.first or seq
        return ""

    def missing(self, head: Line) -> str:
        """Return what is missing at either end."""
        if not self._is_head_seen and head["seq"] != 0:
            return f"the end is missing: the head signs line {head['seq']}, the last one is {self.last}"
        if self.count and self.first > int(str(head.get("first"))):
            return f"the beginning is missing: the head signs line {head.get('first')}, the first one is {self.first}"
        return ""

    def _is_signed(self, fields: Line) -> bool:
        seq = int(str(fields["seq"])) - 1
        return fields.get("node") == self._node and _holds(fields, seq, str(fields.get("prev")), fields.get("first"))


def _holds(fields: Line, seq: object, digest: str, first: object) -> bool:
    try:
        signature = bytes.fromhex(str(fields.get("signature")))
        node = NodeId.parse(str(fields.get("node")))
        if type(seq) is not int or type(first) is not int or seq < 0 or first < 0 or len(digest) != len(START):
            return False
        return verify(node, _signed(node, seq, digest, first), signature)
    except (ValueError, InvalidId, OverflowError):
        return False


# ---- two ends of one connection


@value
class Mismatch:
    """Something that one end's log has and the other's has not."""

    session: str
    what: str
    seen_by: str


def compare(one: Iterable[Line], other: Iterable[Line]) -> tuple[int, list[Mismatch]]:
    """Return how many facts about their connections two nodes' logs agree on, and those that only one has.

    Facts are connections and opened services. One is missing in the other log when that covers its time: from before
    the connection began until after the fact. Not missing is what failed at the end that asked for it, and what a log
    says that it left out.
    """
    logs = [list(one), list(other)]
    names = [_node_of(log) for log in logs]
    failed = {
        (str(fields.get("session")), _stream(fields)) for log in logs for fields in log if fields["kind"] == Kind.FAILED
    }
    left_out = {str(fields.get("session")) for log in logs for fields in log if fields["kind"] == Kind.LOST}
    facts = [dict(_facts(log, names[1 - n])) for n, log in enumerate(logs)]
    covers = [(_time(log[0]), _time(log[-1])) if log else (0, 0) for log in logs]
    found = [
        Mismatch(fact[0], fact[1], names[n])
        for n in (0, 1)
        for fact, (began, at) in facts[n].items()
        if fact not in facts[1 - n] and fact not in failed and fact[0] not in left_out
        if covers[1 - n][0] <= began and at <= covers[1 - n][1]
    ]
    return sum(fact in facts[1] for fact in facts[0]), found


def _node_of(log: list[Line]) -> str:
    return next((str(fields["node"]) for fields in log if "node" in fields), "")


def _time(fields: Line) -> int:
    found = fields.get("time")
    return found if type(found) is int else 0


def _facts(log: list[Line], peer: str) -> Iterator[tuple[tuple[str, str], tuple[int, int]]]:
    """Yield what a log says of its connections with a peer, and when the connection and the fact began."""
    began: dict[str, int] = {}
    for fields in log:
        session, at = str(fields.get("session")), _time(fields)
        if fields.get("peer") != peer:
            continue
        if fields["kind"] == Kind.ADMITTED:
            began[session] = at
            yield (session, "connection"), (at, at)
        elif fields["kind"] == Kind.OPENED and session in began:
            yield (session, _stream(fields)), (began[session], at)


def _stream(fields: Line) -> str:
    return f"stream {fields.get('stream')} to {fields.get('service')}"
