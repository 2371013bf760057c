"""Lines of ``peers`` and ``ping``: aligned, short, ids and detours in words."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from meshnode.base.path_reason import in_words
from meshnode.diagnosis.finding import change_in_words, ms, seconds, short
from meshnode.foreign_text import visible

Json = dict[str, Any]
LATE_MS = 2_000  # from which on an echo is late


def way(entry: Json) -> str:
    """Return the path in one word; a WebSocket says so."""
    return "websocket" if entry.get("tunnel") else str(entry.get("path"))


def _where(entry: Json) -> str:
    """Return where to, as a word beside the path's: a relay's short id, a WebSocket's host."""
    if not entry.get("endpoint"):
        return "-"
    said = short(entry["endpoint"])
    return said.removeprefix("relay ").removeprefix("WebSocket to ").replace("its WebSocket", "from there")


def table(peers: list[Json], *, history: bool) -> Iterator[str]:
    """Yield lines for ``peers``: the ids in full, for they are copied from here.

    Names where any peer has one.
    """
    names = [visible(str(peer.get("name") or "")) for peer in peers]
    rows = [(way(peer), _where(peer), ms(peer["rtt_ms"]) if peer["rtt_ms"] is not None else "-") for peer in peers]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    wide = max(map(len, names), default=0)
    for peer, name, (path, at, rtt) in zip(peers, names, rows, strict=True):
        state = "" if peer["state"] == "connected" else f"  {peer['state']}"
        last = peer["history"][-1] if peer["history"] and not history else None
        change = f"  {in_words(last['why'])} {seconds(last['ago_s'])} ago" if last else ""
        called = f"  {name:{wide}}" if wide else ""
        line = f"{peer['id']}{called}  {path:{widths[0]}}  {at:{widths[1]}}  {rtt:>{widths[2]}}{state}{change}"
        yield line.rstrip()
        if history:
            yield from _details(peer)


def _details(peer: Json) -> Iterator[str]:
    candidates = [candidate for candidate in peer.get("candidates", ()) if not candidate["in_use"]]
    wide = max((len(_where(candidate)) for candidate in candidates), default=0)
    far = max((len(_change(change)) for change in peer["history"]), default=0)
    for candidate in candidates:
        rtt = f", {ms(candidate['rtt_ms'])}" if candidate["rtt_ms"] is not None else ""
        tries = f"{candidate['answers']} of {candidate['probes']} probes answered{rtt}"
        yield f"    or   {_where(candidate):{wide}}  {way(candidate):9}  {candidate['state']}: {tries}"
    for change in peer["history"]:
        yield f"    {seconds(change['ago_s']):>7} ago  {_change(change):{far}}  {change_in_words(change)}"


def _change(change: Json) -> str:
    return short(change["endpoint"]) if change.get("endpoint") else "-"


class PingView:
    """Output of ``ping``: one line an echo, another when the path has changed, and a last one."""

    def __init__(self) -> None:
        self.sent = 0
        self._rtts: list[float] = []
        self._last: tuple[str, str] | None = None

    @property
    def answered(self) -> int:
        """The number of echoes that came back."""
        return len(self._rtts)

    def lines(self, echo: Json) -> Iterator[str]:
        """Yield the lines of one echo."""
        self.sent += 1
        now = (way(echo), _where(echo))
        if self._last is not None and now != self._last and echo.get("endpoint"):
            why = echo.get("change", {}).get("why")
            because = f" ({in_words(why)})" if why else ""
            yield f"      path: {' '.join(self._last)} -> {' '.join(now)}{because}"
        if echo.get("endpoint"):
            self._last = now
        if echo["rtt_ms"] is None:
            yield f"{echo['seq']:4}  {'lost':>9}"
        else:
            self._rtts.append(echo["rtt_ms"])
            late = "  late" if echo["rtt_ms"] > LATE_MS else ""
            yield f"{echo['seq']:4}  {echo['rtt_ms']:6.2f} ms  {now[0]}  {now[1]}{late}"

    def summary(self) -> str:
        """Return the line at the end."""
        text = f"{self.sent} sent, {self.answered} answered"
        if not self._rtts:
            return text
        best, middle, worst = min(self._rtts), median(self._rtts), max(self._rtts)
        return f"{text}; round trip {best:.2f} / {middle:.2f} / {worst:.2f} ms (best, median, worst)"
