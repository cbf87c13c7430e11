"""Result files: the table of a search, for people (`result.md`) and for programs (`result.json`).

Both are functions of the rows and the facts, without a date or a duration, so a rerun of the same
search writes the same bytes. Floats are rounded to six significant digits, counts stay exact.

`report.html` shows the table with all the evidence; it is made from these files and their
neighbours (`report_material`), so it can be made again without running anything.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitsearch.core.errors import DataError
from circuitsearch.core.files import plain, read_json, write_json, write_text
from circuitsearch.show.report_found import Found
from circuitsearch.show.report_material import Material
from circuitsearch.show.report_page import report_html
from circuitsearch.show.rows import ResultRow, SearchCost, by_plan, result_rows
from circuitsearch.show.tables import markdown_table, print_rows, table_notes
from circuitsearch.show.text import escape_markdown, flat, rounded_json

if TYPE_CHECKING:
    from circuitsearch.search.storage.view import StudyView

__all__ = [
    "REPORT_FILE",
    "ResultRow",
    "SearchCost",
    "by_plan",
    "has_result",
    "markdown_table",
    "print_rows",
    "read_result",
    "result_rows",
    "write_report",
    "write_result",
]

REPORT_FILE = "report.html"
"""Name of the report in a search's folder."""

_MARKDOWN, _JSON = "result.md", "result.json"
_FORMAT = 1  # raised when the meaning of a field changes


def write_result(
    folder: str | os.PathLike[str], rows: Sequence[ResultRow], facts: Mapping[str, Any]
) -> tuple[Path, Path]:
    """Write `result.md` and `result.json` into `folder`, each atomically, and return their paths.

    Args:
        folder: created when missing.
        rows: the rows, see `result_rows`.
        facts: what the numbers are about (teacher, dataset, budget, seeds, command ...), plain
            JSON values; `title` is the heading. Leave out dates and durations: they would make two
            equal results differ.

    Raises:
        DataError: the rows cannot be compared, or a fact is not plain JSON.
        StorageError: a file cannot be written.
    """
    markdown, data = Path(folder) / _MARKDOWN, Path(folder) / _JSON
    text = _document(rows, facts)
    entries = [rounded_json(row.to_json()) for row in rows]
    # The JSON goes first: it refuses facts that are not plain before anything is on the disk.
    told = rounded_json(plain(dict(facts)))
    write_json(data, {"facts": told, "format": _FORMAT, "rows": entries})
    write_text(markdown, text)
    return markdown, data


def has_result(folder: str | os.PathLike[str]) -> bool:
    """Whether `write_result` has written into `folder`."""
    return (Path(folder) / _JSON).exists()


def read_result(folder: str | os.PathLike[str]) -> tuple[tuple[ResultRow, ...], dict[str, Any]]:
    """Read the rows and the facts that `write_result` wrote.

    Raises:
        DataError: `result.json` is missing or malformed.
    """
    path = Path(folder) / _JSON
    data = read_json(path)
    rows = data.get("rows") if isinstance(data, dict) else None
    facts = data.get("facts") if isinstance(data, dict) else None
    if not isinstance(rows, list) or not isinstance(facts, dict) or data.get("format") != _FORMAT:
        raise DataError(
            f"{str(path)!r} is no result of format {_FORMAT}: expected an object with "
            "'facts', 'format' and 'rows'; write it again with `circuitsearch report`"
        )
    return tuple(ResultRow.from_json(row) for row in rows), facts


def write_report(
    folder: str | os.PathLike[str],
    study: StudyView | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    further: Sequence[StudyView] = (),
) -> Path:
    """Write `report.html` from what lies in a search's folder, atomically; return its path.

    Args:
        folder: of the search; `result.json` must be there, what else is missing is left out.
        study: the search's study; None where its database is not at hand.
        out: where to write; `report.html` in the folder when None.
        further: the study's further phases, in which plans were distilled in full.

    Raises:
        DataError: `result.json` is missing, or a file is malformed.
        StorageError: the study cannot be read or the file cannot be written.
    """
    path = Path(folder) / REPORT_FILE if out is None else Path(out)
    rows, facts = read_result(folder)
    found = None if study is None else Found.read(study, further)
    material = Material.read(folder, rows, facts, found)
    beside = path.absolute().parent == Path(folder).absolute()
    write_text(path, report_html(material, links=beside))
    return path


def _document(rows: Sequence[ResultRow], facts: Mapping[str, Any]) -> str:
    """Return the Markdown file: heading, table, how to read it, facts."""
    title = escape_markdown(str(facts.get("title", "Result")))
    notes = "".join(f"- {escape_markdown(note)}\n" for note in table_notes(rows))
    told = "".join(
        f"- **{escape_markdown(name)}**: {escape_markdown(value)}\n"
        for name, value in flat(facts)
        if name != "title"
    )
    parts = [f"# {title}\n", markdown_table(rows), notes]
    if told:
        parts.append(f"## What was run\n\n{told}")
    return "\n".join(part for part in parts if part)
