"""The audit log: what is cut or edited is noticed, both ends of a connection agree, a full disk stops nothing."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from meshnode.base.limits import AUDIT_PEER_BURST
from meshnode.base.metrics import Metrics
from meshnode.identity.keys import Identity
from meshnode.runtime import audit_files
from meshnode.runtime.audit import Audit
from meshnode.runtime.audit_files import AuditFiles, Writer, read_head, segments_of
from meshnode.trust.audit import Chain, Kind, Line, Mismatch, compare, parse_line, session_of, verify_log
from meshnode.trust.audit_report import report_page
from meshnode.trust.guard import Guard
from meshnode.trust.revocation import sign_revocation

ME, OTHER = Identity(b"m" * 32), Identity(b"o" * 32)


def _log(count: int = 10) -> tuple[list[bytes], bytes]:
    chain = Chain(ME)
    lines = [chain.line(n, Kind.OPENED, peer=str(OTHER.id), service=f"s{n}").rstrip() for n in range(count)]
    lines.append(chain.checkpoint(count).rstrip())
    return lines, chain.head()


def test_a_whole_log_holds() -> None:
    lines, head = _log()
    report = verify_log(lines, head, ME.id)
    assert (report.ok, report.entries, report.first, report.last, report.unsealed) == (True, 11, 1, 11, 0)
    assert report.node == str(ME.id)


@pytest.mark.parametrize("at", range(11))
def test_a_line_that_is_removed_is_missed_wherever_it_was(at: int) -> None:
    lines, head = _log()
    del lines[at]
    assert not verify_log(lines, head, ME.id).ok


@pytest.mark.parametrize("at", range(11))
def test_a_line_that_is_changed_is_noticed_wherever_it_is(at: int) -> None:
    lines, head = _log()
    lines[at] = lines[at].replace(b'"time":', b'"time":1')
    assert not verify_log(lines, head, ME.id).ok


def test_an_end_that_is_cut_with_its_checkpoints_is_noticed_by_the_head() -> None:
    lines, head = _log()
    report = verify_log(lines[:6], head, ME.id)
    assert report.problem == "the end is missing: the head signs line 11, the last one is 6"
    assert not verify_log([], head, ME.id).ok
    assert not verify_log(lines, None, ME.id).ok


def test_a_log_that_another_key_has_written_again_does_not_hold() -> None:
    lines, _ = _log()
    forged = Chain(OTHER)
    again = [forged.line(n, Kind.OPENED, service="none").rstrip() for n in range(len(lines))]
    assert not verify_log(again, forged.head(), ME.id).ok
    head = json.loads(forged.head()) | {"node": str(ME.id)}
    assert verify_log(again, json.dumps(head).encode(), ME.id).problem == "the head's signature does not hold"


def test_a_checkpoint_of_another_key_is_noticed() -> None:
    chain, other = Chain(ME), Chain(OTHER)
    lines = [chain.line(0, Kind.STARTED).rstrip()]
    other.seq, other.last = chain.seq, chain.last
    lines.append(other.checkpoint(1).rstrip())
    chain.seq, chain.last = other.seq, other.last
    assert verify_log(lines, chain.head(), ME.id).problem == "the signature of line 2 does not hold"


def test_junk_is_no_log() -> None:
    lines, head = _log()
    for junk in (b"", b"[]", b"{}", b'{"seq": "1"}', b"\xff", b"[" * 100_000):
        assert not verify_log([junk, *lines], head, ME.id).ok
        assert not verify_log(lines, junk, ME.id).ok


# ---- both ends


def _entry(kind: Kind, time: int, peer: Identity, **fields: object) -> Line:
    return {"seq": 1, "kind": kind.value, "time": time, "peer": str(peer.id), **fields}


def _both() -> tuple[list[Line], list[Line]]:
    session = session_of(ME.id, OTHER.id, b"odcid")
    mine: list[Line] = [{"seq": 1, "kind": "segment", "time": 0, "node": str(ME.id)}]
    theirs: list[Line] = [{"seq": 1, "kind": "segment", "time": 0, "node": str(OTHER.id)}]
    for log, peer, side in ((mine, OTHER, "opener"), (theirs, ME, "acceptor")):
        log.append(_entry(Kind.ADMITTED, 5, peer, session=session))
        log.append(_entry(Kind.OPENED, 6, peer, session=session, stream=4, service="web", side=side))
        log.append(_entry(Kind.ENDED, 9, peer, session=session))
    return mine, theirs


def test_both_ends_logs_of_a_connection_agree() -> None:
    assert compare(*_both()) == (2, [])


def test_what_one_end_hides_the_other_shows() -> None:
    mine, theirs = _both()
    session = str(theirs[1]["session"])
    del theirs[2]
    assert compare(mine, theirs) == (1, [Mismatch(session, "stream 4 to web", str(ME.id))])


def test_what_one_log_does_not_cover_is_no_mismatch() -> None:
    mine, theirs = _both()
    assert compare(mine[:3], theirs[:2])[1] == [], "the other log ends before the stream"
    later, theirs = _both()
    del later[1:2]
    later[0]["time"] = 7
    assert compare(later, theirs)[1] == [], "the log begins when the connection was there already"
    mine, theirs = _both()
    mine[3]["time"] = 6
    assert compare(mine, theirs) == (2, []), "one log may be exported a moment before the other"


def test_an_open_that_failed_and_one_that_was_left_out_are_no_mismatch() -> None:
    mine, theirs = _both()
    mine[2] = mine[2] | {"kind": "failed"}
    assert compare(mine, theirs)[1] == []
    mine, theirs = _both()
    theirs[2] = {"seq": 3, "kind": "lost", "time": 6, "count": 1, "session": mine[1]["session"]}
    assert compare(mine, theirs)[1] == []


def test_the_page_shows_text_of_others_as_text() -> None:
    lines, head = _log(1)
    evil: Line = {"seq": 2, "time": 0, "kind": "refused", "why": "<script>alert(1)</script>\x1b[2J", "peer": "x"}
    page = report_page(verify_log(lines, head), [evil])
    assert "<script>" not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;" in page


def test_entries_with_fields_of_any_type_are_compared_and_shown() -> None:
    odd: list[Line] = [
        {"seq": n, "kind": kind.value, "session": value, "peer": value, "time": value, "stream": value, "node": value}
        for n, kind in enumerate(Kind)
        for value in ([], {}, None, 10**30, -1, True, "x", 1.5)
    ]
    assert compare(odd, odd[::-1])[1] == []
    lines, head = _log(1)
    assert "</html>" in report_page(verify_log(lines, head), odd)


# ---- on disk


def _files(home: Path) -> tuple[list[bytes], bytes | None]:
    folder = home / "audit"
    return [line for path in segments_of(folder) for line in path.read_bytes().splitlines()], read_head(folder)


async def _written(home: Path, count: int, **fields: Any) -> AuditFiles:
    files = AuditFiles(asyncio.get_running_loop(), home, ME, lambda: 1.0, Metrics())
    for n in range(count):
        files.note(Kind.OPENED, None, service=f"s{n}", **fields)
    await files.settled()
    return files


async def test_what_is_settled_is_on_the_disk_and_a_restart_goes_on_with_the_chain(tmp_path: Path) -> None:
    await _written(tmp_path, 3)  # and then it is killed
    assert verify_log(*_files(tmp_path), ME.id).ok
    with segments_of(tmp_path / "audit")[0].open("ab") as file:
        file.write(b'{"half a li')
    (await _written(tmp_path, 2)).finish()
    report = verify_log(*_files(tmp_path), ME.id)
    assert (report.ok, report.problem, report.unsealed) == (True, "", 0)
    assert report.last == 1 + 3 + 2 or report.last == 1 + 3 + 2 + 1


async def test_lines_behind_the_head_are_of_the_moment_of_a_kill(tmp_path: Path) -> None:
    await _written(tmp_path, 3)
    head = read_head(tmp_path / "audit")
    await _written(tmp_path, 2)
    lines, _ = _files(tmp_path)
    report = verify_log(lines, head, ME.id)
    assert (report.ok, report.unsealed) == (True, 2)


async def test_a_log_that_was_cut_while_the_node_was_down_says_so_for_ever(tmp_path: Path) -> None:
    await _written(tmp_path, 5)
    segment = segments_of(tmp_path / "audit")[0]
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join(lines[:3]))
    (await _written(tmp_path, 5)).finish()
    report = verify_log(*_files(tmp_path), ME.id)
    assert "lines were missing when the node started" in report.problem


@pytest.mark.parametrize("seq", [-1, 2**64, 10**30])
async def test_a_line_whose_number_is_none_is_damage_and_the_node_goes_on_and_ends(tmp_path: Path, seq: int) -> None:
    (await _written(tmp_path, 3)).finish()
    segment = segments_of(tmp_path / "audit")[-1]
    *lines, last = segment.read_bytes().splitlines()
    segment.write_bytes(b"\n".join([*lines, json.dumps({**json.loads(last), "seq": seq}).encode(), b""]))
    async with asyncio.timeout(20):
        (await _written(tmp_path, 1)).finish()
    assert not verify_log(*_files(tmp_path), ME.id).ok


async def test_whatever_a_write_raises_is_told_to_those_that_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = await _written(tmp_path, 1)
    with monkeypatch.context() as broken:
        broken.setattr(Writer, "write", Mock(side_effect=ValueError("a fault")))
        files.note(Kind.OPENED, None, service="later")
        async with asyncio.timeout(20):
            with pytest.raises(OSError, match="a fault"):
                await files.settled()
        assert "a fault" in files.degraded()[0]
    async with asyncio.timeout(20):
        await files.settled()
    assert verify_log(*_files(tmp_path), ME.id).ok


@pytest.mark.parametrize("error", [ValueError("a fault"), OSError(errno.EIO, "I/O error")])
async def test_what_could_not_be_written_at_the_end_is_told_in_the_log_and_the_node_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    files = await _written(tmp_path, 1)
    files.note(Kind.OPENED, None, service="later")
    files.note(Kind.STOPPED)
    monkeypatch.setattr(Writer, "write", Mock(side_effect=error))
    files.finish()
    (said,) = [record.getMessage() for record in caplog.records if record.name == "meshnode.audit"]
    assert "the last 2 entries" in said
    assert ("a fault" if isinstance(error, ValueError) else "the disk fails") in said


def test_a_head_that_names_no_node_does_not_hold() -> None:
    lines, head = _log()
    said = json.loads(head)
    del said["node"]
    assert verify_log(lines, json.dumps(said).encode()).problem == "the head's signature does not hold"


async def test_a_log_whose_head_and_segments_are_gone_does_not_begin_again_unseen(tmp_path: Path) -> None:
    await _written(tmp_path, 5)
    for segment in segments_of(tmp_path / "audit"):
        segment.unlink()
    await _written(tmp_path, 1)
    assert not verify_log(*_files(tmp_path), ME.id).ok


async def test_segments_are_sealed_and_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_files, "AUDIT_SEGMENT", 2_000)
    monkeypatch.setattr(audit_files, "AUDIT_SEGMENTS", 4)
    for _ in range(30):
        await _written(tmp_path, 5)
        assert verify_log(*_files(tmp_path), ME.id).ok
    segments = segments_of(tmp_path / "audit")
    assert len(segments) == 4
    assert sum(path.stat().st_size for path in segments) < 4 * 4_000
    for segment in segments[:-1]:
        last = parse_line(segment.read_bytes().splitlines()[-1])
        assert last is not None
        assert last["kind"] == "checkpoint"
    segments[0].unlink()
    assert "the beginning is missing" in verify_log(*_files(tmp_path), ME.id).problem


async def test_a_full_disk_is_told_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = await _written(tmp_path, 1)
    real, full = os.write, True

    def write(fd: int, data: bytes) -> int:
        if full:
            real(fd, data[:10])  # some bytes still fit
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(audit_files.os, "write", write)
    files.note(Kind.OPENED, None, service="later")
    with pytest.raises(OSError, match="No space"):
        await files.settled()
    assert "cannot be written" in files.degraded()[0]
    assert verify_log(*_files(tmp_path), ME.id).ok, "half a line is taken back"
    full = False
    await files.settled()
    assert files.degraded() == []
    lines, head = _files(tmp_path)
    assert verify_log(lines, head, ME.id).ok
    assert b'"service":"later"' in lines[-1]


async def test_what_was_written_before_its_head_could_not_be_is_in_the_log_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = await _written(tmp_path, 1)
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as broken:
        broken.setattr(audit_files, "write_atomic", Mock(side_effect=full))
        files.note(Kind.OPENED, None, service="later")
        with pytest.raises(OSError, match="No space"):
            await files.settled()
    await files.settled()
    lines, head = _files(tmp_path)
    assert verify_log(lines, head, ME.id).ok
    assert sum(b'"service":"later"' in line for line in lines) == 1


async def test_an_old_segment_that_cannot_be_removed_repeats_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = await _written(tmp_path, 1)
    monkeypatch.setattr(audit_files, "AUDIT_SEGMENT", 1)
    monkeypatch.setattr(audit_files, "AUDIT_SEGMENTS", 1)
    monkeypatch.setattr(audit_files.Path, "unlink", Mock(side_effect=OSError(errno.EPERM, "not permitted")))
    files.note(Kind.OPENED, None, service="later")
    await files.settled()
    assert files.degraded() == []
    assert sum(b'"service":"later"' in line for line in _files(tmp_path)[0]) == 1


async def test_what_asks_while_the_disk_is_written_to_is_answered_too(tmp_path: Path) -> None:
    files = AuditFiles(asyncio.get_running_loop(), tmp_path, ME, lambda: 1.0, Metrics())
    files.note(Kind.OPENED, None, service="first")
    first = asyncio.create_task(files.settled())
    await asyncio.sleep(0)  # the thread has begun, and its end is not heard of yet
    async with asyncio.timeout(20):
        await asyncio.gather(first, files.settled())


async def test_one_peer_does_not_drive_out_what_others_did(tmp_path: Path) -> None:
    metrics = Metrics()
    files = AuditFiles(asyncio.get_running_loop(), tmp_path, ME, lambda: 1.0, metrics)
    for _ in range(5_000):
        files.note(Kind.OPENED, OTHER.id, session="s", service="web")
    await files.settled()
    lines, _ = _files(tmp_path)
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds.count("opened") < 2_100
    lost = [json.loads(line) for line in lines if b'"lost"' in line]
    assert sum(line["count"] for line in lost) == metrics.counters["audit_lost"] == 5_000 - kinds.count("opened")
    assert {(line["of"], line["peer"], line["session"], line["service"]) for line in lost} == {
        ("opened", str(OTHER.id), "s", "web")
    }


async def test_a_member_that_revokes_ever_new_keys_does_not_drive_out_what_others_did(tmp_path: Path) -> None:
    files = await _written(tmp_path, 1)
    audit = Audit(files, Guard(ME.id))
    liar, authority = Identity(b"l" * 32), Identity(b"a" * 32)
    for n in range(int(AUDIT_PEER_BURST) + 50):
        audit.on_revoked(sign_revocation(liar, n.to_bytes(32, "big"), time=n, chain=(b"grant",)))
    audit.on_revoked(sign_revocation(authority, bytes(liar.id), time=1))
    await files.settled()
    lines = [parse_line(line) or {} for line in _files(tmp_path)[0]]
    issuers = Counter(line.get("issuer") for line in lines if line["kind"] == Kind.REVOKED)
    assert AUDIT_PEER_BURST <= issuers[str(liar.id)] < AUDIT_PEER_BURST + 50
    assert issuers[str(authority.id)] == 1
    assert any(line["kind"] == Kind.LOST and line["peer"] == str(liar.id) for line in lines)


def test_the_writer_makes_no_link_its_log(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir(mode=0o700)
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / "audit" / "00000001.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        Writer(tmp_path / "audit", ME).write([(1.0, Kind.STARTED, {})])
    assert (tmp_path / "elsewhere").read_text() == ""
