"""Output of the demo: plain lines, or a live table with rich on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

ENDS = ("dialler", "listener", "both")
REFRESHES_S = 8  # of the live table; each costs the demo's own process about 2 ms
LOG_LINES = 6


@dataclass(frozen=True, slots=True)
class Move:
    """One move: the end that moved, the longest silence of the connection, and how many numbers were lost."""

    end: str
    gap_ms: float
    lost: int


class Show:
    """Plain lines with the seconds since the start; ``err`` sends them to standard error."""

    def __init__(self, *, err: bool = False) -> None:
        self._started = time.perf_counter()
        self._err = err

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    def say(self, text: str) -> None:
        """Print a line."""
        click.echo(f"{self.seconds:5.1f} s  {text}", err=self._err)

    def counting(self, numbers: Callable[[], tuple[int, float]] | None) -> None:
        """Take the source of the running count; None ends the count.

        ``numbers()`` returns how many numbers came back, and the seconds since the last one.
        """

    def moving(self, end: str) -> None:
        """Show that a move begins."""

    def moved(self, move: Move) -> None:
        """Show a move that is over."""
        self.say(f"{move.end} moved: longest silence {move.gap_ms} ms, {move.lost} lost")

    def result(self, moves: list[Move]) -> None:
        """Print the table at the end."""
        lines = ["", "  end          runs   gap median    worst   lost"]
        for end in ENDS:
            if row := summary(moves, end):
                lines.append(f"  {end:10} {row[0]:6} {row[1]:9.1f} ms {row[2]:6.1f} ms {row[3]:5}")
        click.echo("\n".join(lines))


class LiveShow(Show):
    """A live table with rich: the last lines, the running count and each kind of move as it happens."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        super().__init__()
        self._console = Console()
        self._lines: list[str] = []
        self._moves: list[Move] = []
        self._moving: str | None = None
        self._numbers: Callable[[], tuple[int, float]] | None = None
        self._spinner = Spinner("dots")
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=REFRESHES_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Scroll a line in above the table."""
        self._lines = [*self._lines, f"{self.seconds:5.1f} s  {text}"][-LOG_LINES:]

    def counting(self, numbers: Callable[[], tuple[int, float]] | None) -> None:
        """Show the running count."""
        self._numbers = numbers

    def moving(self, end: str) -> None:
        """Mark the row."""
        self._moving = end

    def moved(self, move: Move) -> None:
        """Fill the row."""
        self._moving = None
        self._moves.append(move)

    def result(self, moves: list[Move]) -> None:
        """Print the table that stays."""
        self._live.stop()
        self._moving = None
        self._moves = list(moves)
        self._console.print(self._table())

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        parts: list[Any] = [Text(line, style="dim") for line in self._lines]
        if self._numbers is not None:
            count, silence = self._numbers()
            parts += [self._table(), Text(f"{count:,} numbers back, silent for {silence * 1000:.0f} ms")]
        elif self._moves:
            parts.append(self._table())
        self._spinner.update(text=f"{self._moving} moves" if self._moving else f"{self.seconds:.0f} s")
        return Group(*parts, self._spinner)

    def _table(self) -> RenderableType:
        from rich.table import Table

        table = Table(title="One TCP connection, both ends moving")
        for name in ("end that moved", "runs", "last gap", "gap, median", "gap, worst", "lost"):
            table.add_column(name, justify="left" if name == "end that moved" else "right")
        for end in ENDS:
            style = "bold yellow" if end == self._moving else ""
            row = summary(self._moves, end)
            if row is None:
                table.add_row(end, "0", "", "", "", "", style=style)
                continue
            last = next(move.gap_ms for move in reversed(self._moves) if move.end == end)
            gaps = (f"{ms:.1f} ms" for ms in (last, row[1], row[2]))
            table.add_row(end, str(row[0]), *gaps, str(row[3]), style=style)
        return table


def summary(moves: list[Move], end: str) -> tuple[int, float, float, int] | None:
    """Return runs, median gap, worst gap (ms) and lost numbers of one kind of move; None when there was none."""
    gaps = sorted(move.gap_ms for move in moves if move.end == end)
    if not gaps:
        return None
    return len(gaps), gaps[len(gaps) // 2], gaps[-1], sum(move.lost for move in moves if move.end == end)


def make_show(*, as_json: bool) -> Show:
    """Return the show for this output: a live one on a terminal where rich is installed.

    Else it is plain lines, on standard error when the output is JSON.
    """
    if not as_json and sys.stdout.isatty():
        try:
            return LiveShow()
        except ImportError:
            pass  # rich is optional
    return Show(err=as_json)
