"""What a person sees while a search runs: bars on a terminal, timestamped lines elsewhere.

Everything for people goes to standard error; standard output carries data only. The stages know
the `Reporter` protocol and nothing of terminals.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

__all__ = ["LineReporter", "QuietReporter", "Reporter", "TerminalReporter", "Work", "reporter"]

_LINE_SECONDS = 10.0  # pause between two progress lines of one stage


class Work(Protocol):
    """One running stage."""

    def __call__(self, done: int, total: int, detail: str = "") -> None:
        """Report that `done` of `total` units are finished."""
        ...


class Reporter(Protocol):
    """Where stages report to."""

    @contextmanager
    def stage(self, title: str) -> Iterator[Work]:
        """Announce a stage and yield what reports its progress."""
        ...

    @contextmanager
    def budget(self, title: str) -> Iterator[Work]:
        """Announce what many stages are run for; yield what reports how much of it is spent.

        The first report says what was spent before; details tell the best found so far.
        """
        ...

    def note(self, text: str) -> None:
        """Say one line."""
        ...


def reporter(*, quiet: bool = False) -> Reporter:
    """Return the reporter that fits standard error: bars, lines, or nothing when quiet.

    Bars need a terminal that can redraw; FORCE_COLOR does not make one of a pipe.
    """
    if quiet:
        return QuietReporter()
    console = Console(stderr=True, highlight=False)
    drawn = sys.stderr.isatty() and not console.is_dumb_terminal
    return TerminalReporter(console) if drawn else LineReporter(console)


class QuietReporter:
    """Says nothing."""

    @contextmanager
    def stage(self, title: str) -> Iterator[Work]:
        """Announce nothing."""
        yield lambda done, total, detail="": None

    @contextmanager
    def budget(self, title: str) -> Iterator[Work]:
        """Announce nothing."""
        yield lambda done, total, detail="": None

    def note(self, text: str) -> None:
        """Say nothing."""


class LineReporter:
    """Timestamped lines, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def stage(self, title: str) -> Iterator[Work]:
        """Print a line at the start, at most every ten seconds, and at the end with the time."""
        started = last = time.monotonic()
        pace = _Pace()
        self.note(title)

        def work(done: int, total: int, detail: str = "") -> None:
            nonlocal last
            now = time.monotonic()
            told = [f"{done}/{total}{detail and ' ' + detail}", pace.left(now, done, total)]
            if now - last >= _LINE_SECONDS:
                last = now
                self.note(f"  {title}: {', '.join(filter(None, told))}")

        yield work
        spent = time.monotonic() - started
        if spent >= 1:
            self.note(f"  {title}: done in {spent:.0f} s")

    @contextmanager
    def budget(self, title: str) -> Iterator[Work]:
        """Print a line where it begins; what is spent is said by a note per result."""
        begun = False

        def work(done: int, total: int, detail: str = "") -> None:
            nonlocal begun
            if not begun:
                self.note(f"{title}: {done} of {total} done{detail and ', ' + detail}")
            begun = True

        yield work

    def note(self, text: str) -> None:
        """Print a timestamped line."""
        stamp = time.strftime("%H:%M:%S")
        self._console.print(f"{stamp} {escape(text)}", soft_wrap=True)


class TerminalReporter:
    """A bar per running stage, below that of the budget they are run for."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None

    @contextmanager
    def stage(self, title: str) -> Iterator[Work]:
        """Show a bar while the stage runs and leave one line behind."""
        started = time.monotonic()
        with self._bar(title, "default") as work:
            yield work
        spent = time.monotonic() - started
        if spent >= 1:
            self._console.print(f"[green]✓[/] {escape(title)} [dim]{spent:.0f} s[/]")

    @contextmanager
    def budget(self, title: str) -> Iterator[Work]:
        """Show a bar that stays, with the best found so far, while stages come and go."""
        with self._bar(title, "bold") as work:
            yield work

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(escape(text), soft_wrap=True)

    @contextmanager
    def _bar(self, title: str, style: str) -> Iterator[Work]:
        """Show one more bar."""
        pace = _Pace()
        with self._drawn() as bars:
            task = bars.add_task(f"[{style}]{escape(title)}[/]", total=None, detail="", left="")

            def work(done: int, total: int, detail: str = "") -> None:
                left = pace.left(time.monotonic(), done, total)
                bars.update(task, completed=done, total=total, detail=escape(detail), left=left)

            try:
                yield work
            finally:
                bars.refresh()  # a short stage is seen at least once
                bars.remove_task(task)

    @contextmanager
    def _drawn(self) -> Iterator[Progress]:
        """Yield the bars: a terminal has room for one live display only."""
        if self._bars is not None:
            yield self._bars
            return
        columns = (
            TextColumn("{task.description}", table_column=_cut(3)),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[detail]}", table_column=_cut(2)),
        )
        with Progress(
            *columns, console=self._console, transient=True, expand=True, refresh_per_second=4
        ) as self._bars:
            try:
                yield self._bars
            finally:
                self._bars = None


def _cut(ratio: int) -> Column:
    """Return a column that shares what width is left and shortens what does not fit."""
    return Column(ratio=ratio, no_wrap=True, overflow="ellipsis")


class _Pace:
    """How long the rest takes at the pace since the first report: work goes on where it stopped."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def left(self, now: float, done: int, total: int) -> str:
        """Return the time left in words; empty while it is unknown."""
        if self._first is None:
            self._first = now, done
        since, begun = self._first
        if done <= begun:
            return ""
        seconds = (now - since) / (done - begun) * (total - done)
        return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"
