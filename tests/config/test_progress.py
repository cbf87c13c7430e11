"""Progress: lines for pipes, bars for terminals, markup of untrusted text never interpreted."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from circuitsearch.progress import LineReporter, QuietReporter, TerminalReporter


def _lines(monkeypatch, seconds):
    """Return a line reporter whose clock moves on by `seconds` at every look."""
    clock = iter(range(0, 10_000, seconds))
    monkeypatch.setattr("circuitsearch.progress.time.monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    return LineReporter(Console(file=stream, width=200)), stream


def test_lines_are_rare_and_tell_what_is_left(monkeypatch):
    reporter, stream = _lines(monkeypatch, 4)
    with reporter.stage("encoding") as work:
        for done in range(1, 7):
            work(done, 6, "loss 0.5")
    shown = stream.getvalue().splitlines()
    assert shown[0].endswith(" encoding")
    # one look per call, 4 s apart, a line every 10 s: after calls 3 and 6
    assert [line.split("encoding: ")[1][:3] for line in shown[1:-1]] == ["3/6", "6/6"]
    assert "loss 0.5, 12 s left" in shown[1]
    assert "done in" in shown[-1]


@pytest.mark.parametrize("kind", [LineReporter, TerminalReporter])
def test_time_left_goes_by_the_pace_since_work_went_on(monkeypatch, kind):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("circuitsearch.progress.time.monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    options = {"force_terminal": True} if kind is TerminalReporter else {}
    reporter = kind(Console(file=stream, width=200, highlight=False, **options))
    with reporter.stage("distilling") as work:
        work(1000, 1200)  # resumed: nothing is known of the pace yet
        work(1010, 1200)
    shown = stream.getvalue()
    assert "1000/1200\n" in shown or kind is TerminalReporter
    assert "3 min left" in shown  # 190 steps at one a second
    assert " s left" not in shown


def test_markup_in_texts_is_shown_not_interpreted():
    stream = io.StringIO()
    reporter = LineReporter(Console(file=stream, width=200))
    reporter.note("[red]S3[0-8][/red]")
    assert "[red]S3[0-8][/red]" in stream.getvalue()


def test_bars_leave_one_line_per_long_stage(monkeypatch):
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr("circuitsearch.progress.time.monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    reporter = TerminalReporter(
        Console(file=stream, force_terminal=True, width=120, highlight=False)
    )
    with reporter.stage("distilling [S3]") as work:
        work(1, 2, "loss [b]")
    reporter.note("trial 1")
    shown = stream.getvalue()
    assert "loss [b]" in shown
    assert "\N{CHECK MARK}" in shown
    assert shown.count("distilling [S3]") >= 2  # the bar, and the line that stays
    assert "trial 1" in shown


def test_quiet_says_nothing(capsys):
    with QuietReporter().stage("anything") as work:
        work(1, 2)
    QuietReporter().note("anything")
    assert capsys.readouterr() == ("", "")


def test_a_budget_in_lines_says_where_it_begins(monkeypatch):
    reporter, stream = _lines(monkeypatch, 4)
    with reporter.budget("search a") as spent:
        spent(3, 10, "best 0.512 C3")
        spent(4, 10, "best 0.512 C3")
    assert [line.split(" ", 1)[1] for line in stream.getvalue().splitlines()] == [
        "search a: 3 of 10 done, best 0.512 C3"
    ]


SCRIPT = """
import time
from circuitsearch.progress import reporter
say = reporter()
with say.budget("search [a]") as spent:
    spent(2, 10, "best 0.512 M0 C2")
    with say.stage("distilling C3[0-3]") as work:
        for step in range(1, 5):
            time.sleep(0.3)
            work(step, 40, "loss 0.5")
    say.note("trial 3 of 10: C3[0-3]")
    spent(3, 10, "best 0.733 C3[0-3]")
    time.sleep(0.6)
"""


def _run(terminal, **variables):
    """Run the script with standard error on a pseudo-terminal or a pipe; return both streams."""
    environment = {**os.environ, "COLUMNS": "120", "LINES": "30", "PYTHONPATH": str(Path.cwd())}
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        environment.pop(name, None)
    environment |= {"TERM": "xterm-256color", **variables}
    ours, theirs = pty.openpty() if terminal else os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux's way of saying that the terminal was closed
                break
            if not part:
                break
            seen += part
        out = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0, seen
    return seen.decode(), out


def test_a_terminal_sees_budget_running_training_and_best():
    seen, out = _run(terminal=True)
    assert out == b""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert "\x1b[" in seen
    together = [part for part in plain.split("search [a]") if "distilling C3[0-3]" in part]
    assert together, plain  # both bars are on the screen at once
    for words in ("2/10", "best 0.512 M0 C2", "3/40", "loss 0.5", "11 s left", "best 0.733"):
        assert words in plain, words
    assert "\N{CHECK MARK} distilling C3[0-3] 1 s" in plain
    assert "trial 3 of 10: C3[0-3]" in plain


def test_colours_can_be_switched_off_on_a_terminal():
    seen, _ = _run(terminal=True, NO_COLOR="1")
    assert "best 0.733" in seen
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", seen)  # bold may stay; no colour


@pytest.mark.parametrize(
    ("terminal", "variables"),
    [(False, {}), (False, {"FORCE_COLOR": "1"}), (True, {"TERM": "dumb"})],
)
def test_everything_else_gets_timestamped_lines(terminal, variables):
    seen, out = _run(terminal, **variables)
    assert out == b""
    lines = seen.replace("\r", "").splitlines()
    assert all(re.match(r"(\x1b\[\S*)?\d\d:\d\d:\d\d ", line) for line in lines), seen
    assert [line.split(" ", 1)[1] for line in lines] == [
        "search [a]: 2 of 10 done, best 0.512 M0 C2",
        "distilling C3[0-3]",
        "  distilling C3[0-3]: done in 1 s",
        "trial 3 of 10: C3[0-3]",
    ]
