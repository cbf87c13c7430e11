"""Paired differences in tables: sign, interval, where unknown, and foreign names kept harmless."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from circuitsearch.core.difference import Difference
from circuitsearch.core.errors import DataError
from circuitsearch.show.compared import print_comparison
from circuitsearch.show.rows import ResultRow, result_rows
from circuitsearch.show.tables import markdown_table, print_rows, table_notes
from tests.show.results import named


def difference(mean: float, *, known: bool = True) -> Difference:
    return Difference(
        first=0.5 + mean,
        second=0.5,
        mean=mean,
        low=mean - 0.0625 if known else None,
        high=mean + 0.0625 if known else None,
        wins=0.125 if known else None,
        questions=1234,
        documents=40 if known else 1,
    )


FOUND = {
    "teacher": difference(0.15625),
    "T1": difference(-0.25),
    "T2": difference(-0.25, known=False),
}
ROWS = result_rows(named(), differences=FOUND, difference_to="best")


def test_rows_carry_their_difference_and_travel_as_json() -> None:
    rows = {row.name: row for row in ROWS}
    assert rows["T1"].difference == FOUND["T1"]
    assert rows["T1"].difference_to == "best"
    assert (rows["best"].difference, rows["best"].difference_to) == (None, None)
    for row in ROWS:
        assert ResultRow.from_json(row.to_json()) == row
    older = rows["best"].to_json()
    del older["difference"], older["difference_to"]  # files of earlier versions have neither
    assert ResultRow.from_json(older) == rows["best"]


def test_a_difference_of_no_row_is_refused() -> None:
    with pytest.raises(DataError, match="difference of 'T9': no such row"):
        result_rows(named(), differences={"T9": difference(0.0)}, difference_to="best")


def test_the_column_is_there_only_when_something_was_compared() -> None:
    table = markdown_table(ROWS)
    assert "| Difference |" in table
    assert "| +0.156 [+0.094, +0.219] |" in table
    assert "| \N{MINUS SIGN}0.250 [\N{MINUS SIGN}0.312, \N{MINUS SIGN}0.188] |" in table
    assert "| \N{MINUS SIGN}0.250 |" in table  # one document: no interval
    assert any("minus that of best" in note for note in table_notes(ROWS))
    plain = result_rows(named())
    assert "Difference" not in markdown_table(plain)
    assert not any("Difference" in note for note in table_notes(plain))
    stream = io.StringIO()
    print_rows(ROWS, Console(file=stream, width=200))
    assert "Difference" in stream.getvalue()


def test_a_comparison_is_printed_by_family() -> None:
    stream = io.StringIO()
    evil = "[red]a\x1b[31m\nb"
    print_comparison(
        {"all": difference(0.25), evil: difference(-0.0001, known=False)},
        ("one.jsonl", evil),
        Console(file=stream, width=60),
    )
    text = stream.getvalue()
    assert "1,234" in text
    assert "0.750" in text
    assert "+0.250" in text
    assert "[+0.188, +0.312]" in text
    assert "12.5 %" in text
    assert "\x1b" not in text
    assert "[red]a" in text  # shown, not obeyed
    row = next(line for line in text.splitlines() if "[red]a" in line and "1,234" in line)
    assert "\N{EN DASH}" in row
    assert "0.000" not in row.replace("0.500", "")  # no signed zero
