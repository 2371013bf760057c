"""``audit``: the log of what a node admitted, refused, cut and opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshnode.cli.ask import ask_one
from meshnode.cli.options import home_option, json_option
from meshnode.cli.output import emit, say
from meshnode.errors import ConfigError, MeshError

if TYPE_CHECKING:
    from meshnode.identity.node_id import NodeId

FILE = click.Path(path_type=Path)


@click.group("audit")
def audit_group() -> None:
    """Show, verify and export the log of what was admitted and refused.

    \b
    Example: meshnode audit show
             meshnode audit verify
             meshnode audit export --html report.html
    """


def _read(home: Path, file: Path | None) -> tuple[list[bytes], bytes | None]:
    """Return the lines of a home's log, or of an export, and the head. Raises ConfigError."""
    from meshnode.base.files import read_given
    from meshnode.base.limits import AUDIT_SEGMENT, AUDIT_SEGMENTS
    from meshnode.runtime.audit_files import FOLDER, read_head, segments_of
    from meshnode.trust.audit import parse_line

    if file is not None:
        most = 2 * AUDIT_SEGMENT * AUDIT_SEGMENTS  # a log is never that long
        data, _ = read_given(file, most)
        if len(data) >= most:
            raise ConfigError(
                f"{file} is too long for an audit log", hint="`meshnode audit export --out FILE` writes one"
            )
        lines = data.splitlines()
        if not lines or (parse_line(lines[-1]) or {}).get("kind") != "head":
            return lines, None
        return lines[:-1], lines[-1]
    with suppress(MeshError):
        from meshnode.daemon.requests.policy import AuditSettle

        ask_one(home, AuditSettle(), 10.0)
    folder = home / FOLDER
    head = read_head(folder)  # before the lines: they may become more meanwhile
    found = list(_lines(segments_of(folder)))
    if not found and head is None:
        raise ConfigError(f"{home} has no audit log", hint="a node that runs there writes it, unless audit = false")
    return found, head


def _lines(segments: list[Path]) -> Iterator[bytes]:
    """Yield the lines of segments; half a line at the very end is being written, or was when the node was killed."""
    for segment in segments:
        data = segment.read_bytes()
        yield from data[: data.rfind(b"\n") + 1].splitlines()


@audit_group.command("show")
@click.option("-n", "count", type=click.IntRange(1), default=50, show_default=True, help="How many of the newest.")
@home_option
@json_option
def show_command(count: int, home: Path, as_json: bool) -> None:
    """Show the newest entries, one a line.

    JSON: {"seq", "time", "kind", "peer", "act", "service", "rule", "grant", "why", "session", "side", "stream", "prev"}

    \b
    Example: meshnode audit show -n 20
    """
    from meshnode.trust.audit import Line, parse_line
    from meshnode.trust.audit_report import when

    lines, _ = _read(home, None)
    for line in lines[-count:]:
        fields: Line = parse_line(line) or {"seq": 0, "kind": "no entry", "time": 0}
        at = when(fields, None)
        named = [
            str(fields[key])[:12] if key == "peer" else str(fields[key])
            for key in ("peer", "service", "why")
            if key in fields
        ]
        emit(fields, as_json, f"{fields['seq']:6} {at}  {fields['kind']:10} {'  '.join(named)}")


@audit_group.command("verify")
@click.option("--file", type=FILE, help="An export instead of this home's log.")
@click.option("--against", type=FILE, help="The export of another node: compare both ends of their connections.")
@home_option
@json_option
def verify_command(file: Path | None, against: Path | None, home: Path, as_json: bool) -> int:
    """Check that no entry is missing or was changed; exit code 1 when one is.

    With --against, connections and opened services of the two nodes must be in both logs; both are verified.

    JSON: {"ok", "entries", "problem", "first", "last", "unsealed", "node"}, with --against also {"matched",
    "mismatches"}

    \b
    Example: meshnode audit verify
             meshnode audit verify --against other.jsonl
    """
    from meshnode.trust.audit import compare, parse_line, verify_log

    lines, head = _read(home, file)
    report = verify_log(lines, head, None if file is not None else _own_id(home))
    found, said = report.to_json(), [report.problem or f"{report.entries} entries hold"]
    if against is not None and report.ok:
        others, other_head = _read(home, against)
        other = verify_log(others, other_head)
        one, two = ([fields for line in each if (fields := parse_line(line))] for each in (lines, others))
        matched, wrong = compare(one, two)
        found["ok"] = other.ok and not wrong
        found["problem"] = other.problem and f"{against}: {other.problem}"
        found["matched"] = matched
        found["mismatches"] = [{"session": m.session, "what": m.what, "only_in": m.seen_by} for m in wrong]
        said += [str(found["problem"])] if other.problem else [f"{matched} facts are in both logs"]
        said += [f"only {m.seen_by[:12]} has: {m.what} of session {m.session}" for m in wrong]
    emit(found, as_json, *said)
    return 0 if found["ok"] else 1


def _own_id(home: Path) -> NodeId | None:
    """Return the id of this home where its key can be read without a passphrase; else the head's word counts."""
    from meshnode.errors import KeyFileError
    from meshnode.identity.keyfile import load

    try:
        return load(home / "key").id
    except (KeyFileError, OSError):
        return None


@audit_group.command("export")
@click.option("--html", type=FILE, help="Write a page for a person here instead.")
@click.option("--out", type=FILE, help="Write the lines here instead of stdout.")
@home_option
@json_option
def export_command(html: Path | None, out: Path | None, home: Path, as_json: bool) -> None:
    """Write the whole log: JSON lines with the signed head last, or a page.

    `meshnode audit verify --file` checks the lines anywhere, without this home.

    JSON: the lines of the log; with --html or --out {"file", "entries"}

    \b
    Example: meshnode audit export --out audit.jsonl
             meshnode audit export --html report.html
    """
    from meshnode.trust.audit import parse_line, verify_log
    from meshnode.trust.audit_report import report_page

    lines, head = _read(home, None)
    if html is not None:
        page = report_page(verify_log(lines, head, _own_id(home)), filter(None, map(parse_line, lines)))
        html.write_text(page, encoding="utf-8")
    elif out is not None:
        out.write_bytes(b"\n".join([*lines, head or b"", b""]))
    else:
        for line in (*lines, *filter(None, (head,))):
            say(line.decode("ascii", "backslashreplace"))
        return
    emit({"file": str(html or out), "entries": len(lines)}, as_json, f"{html or out}: {len(lines)} entries")
