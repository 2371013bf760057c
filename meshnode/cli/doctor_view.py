"""Findings of the doctor as lines for people."""

from __future__ import annotations

import click

from meshnode.cli.output import say
from meshnode.diagnosis.finding import Finding, Level

MARKS = {Level.OK: "ok", Level.NOTE: "note", Level.PROBLEM: "PROBLEM"}
COLOURS = {Level.OK: "green", Level.NOTE: None, Level.PROBLEM: "red"}
DETAILS = ("tried", "known", "history")  # topics whose findings stand below the one before


def show(findings: list[Finding]) -> None:
    """Print one line a finding: level, topic, sentence; what to do next below it."""
    width = max((len(finding.topic) for finding in findings), default=0)
    before = ""
    for finding in findings:
        mark = click.style(f"{MARKS[finding.level]:7}", fg=COLOURS[finding.level], bold=finding.level is Level.PROBLEM)
        quiet = finding.topic in DETAILS and finding.topic == before
        topic = "" if quiet else finding.topic
        say(f"  {topic:{width}}  {finding.text}", mark=mark)
        if finding.hint:
            arrow = "do" if finding.level is Level.PROBLEM else "hint"
            say(f"{'':7}  {'':{width}}  {arrow}: {finding.hint}")
        before = finding.topic
