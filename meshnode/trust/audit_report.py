"""The audit log as one page of HTML that needs nothing else: for an auditor. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, tzinfo
from html import escape

from meshnode.foreign_text import visible
from meshnode.trust.audit import Kind, Line, Report

MAX_ROWS = 5_000  # of the newest entries; the export has all
COLUMNS = [
    "seq",
    "time",
    "kind",
    "peer",
    "act",
    "service",
    "policy",
    "version",
    "rule",
    "grant",
    "side",
    "session",
    "why",
]
OWN = (Kind.SEGMENT.value, Kind.CHECKPOINT.value)
STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em}table{border-collapse:collapse}td,th{border-bottom:1px solid #ddd;"
    "padding:2px 8px;text-align:left;font-size:12px}.refused,.cut,.failed,.damaged,.lost{background:#fee}"
    "code{font-size:12px}h2{margin-top:2em}"
)


def _cell(text: object) -> str:
    return escape(visible(str(text), 200))


def when(fields: Line, zone: tzinfo | None = UTC) -> str:
    """Return an entry's time for people, by default in UTC; "" where it has none."""
    found = fields.get("time")
    try:
        at = datetime.fromtimestamp(found / 1000, UTC) if isinstance(found, int) else None
    except (ValueError, OverflowError, OSError):
        at = None
    return at.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S") if at is not None else ""


def _shown(fields: Line, column: str) -> str:
    if column == "time":
        return when(fields)
    found = fields.get(column)
    return "" if found is None else str(found)


def report_page(report: Report, lines: Iterable[Line]) -> str:
    """Return the page: whether the log holds, how much of each kind, and the newest entries."""
    entries = [fields for fields in lines if fields["kind"] not in OWN]
    counts = Counter(str(fields["kind"]) for fields in entries)
    verdict = "The log holds: nothing is missing and nothing was changed." if report.ok else f"NOT OK: {report.problem}"
    rows = [
        f'<tr class="{_cell(fields["kind"])}">'
        + "".join(f"<td>{_cell(_shown(fields, column))}</td>" for column in COLUMNS)
        + "</tr>"
        for fields in reversed(entries[-MAX_ROWS:])
    ]
    summary = "".join(f"<tr><td>{_cell(kind)}</td><td>{count}</td></tr>" for kind, count in sorted(counts.items()))
    head = "".join(f"<th>{column}</th>" for column in COLUMNS)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Audit log</title>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<style>{STYLE}</style></head><body>\n<h1>Audit log of <code>{_cell(report.node)}</code></h1>\n"
        f"<p>{_cell(verdict)}</p>\n<p>Lines {report.first} to {report.last}, {report.entries} verified, "
        f"{report.unsealed} behind the signed head. Times are UTC, by this node's clock.</p>\n"
        f"<h2>Kinds</h2>\n<table>{summary}</table>\n<h2>The newest {len(rows)} entries</h2>\n"
        f"<table><tr>{head}</tr>\n" + "\n".join(rows) + "</table>\n</body></html>\n"
    )
