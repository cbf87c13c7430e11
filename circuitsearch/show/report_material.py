"""Everything that a report is made of, read from the folder of a search and from its study.

Only the result table must be there. What else is missing, because a version that did not keep it
ran the search or because only a part of the folder was copied, is left out of the page, which says
so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuitsearch.core.errors import DataError
from circuitsearch.core.files import read_json
from circuitsearch.core.scores import Scores
from circuitsearch.core.speed import Speed
from circuitsearch.show.report_found import Found
from circuitsearch.show.report_record import Record
from circuitsearch.show.rows import ResultRow, trial_rows

__all__ = ["Material", "teacher_of"]


@dataclass(frozen=True)
class Material:
    """What a report shows.

    Attributes:
        rows: the final comparison.
        facts: what the numbers are about, see `write_result`.
        found: what the study holds; None without the study.
        scores: scores and effects of the teacher's components; None when the file is missing.
        speeds: measured speed by row name; empty when it was not measured.
        record: command, environment and answers; None when the file is missing.
        curves: what was predicted of every tenth of the budget; empty when the file is missing.
    """

    rows: tuple[ResultRow, ...]
    facts: Mapping[str, Any]
    found: Found | None = None
    scores: Scores | None = None
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    record: Record | None = None
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        folder: str | os.PathLike[str],
        rows: Sequence[ResultRow],
        facts: Mapping[str, Any],
        found: Found | None,
    ) -> Material:
        """Read what lies beside the result table of a search.

        Args:
            folder: of the search.
            rows: the table's rows.
            facts: its facts.
            found: what the study holds.

        Raises:
            DataError: a file is malformed.
        """
        scores, speed = Path(folder) / "scores.json", Path(folder) / "speed.json"
        curves = Path(folder) / "predicted.json"
        return cls(
            rows=tuple(rows),
            facts=facts,
            found=found,
            scores=Scores.from_json(read_json(scores)) if scores.exists() else None,
            speeds=_speeds(speed) if speed.exists() else {},
            record=Record.read(folder),
            curves=_curves(curves) if curves.exists() else {},
        )

    @property
    def trials(self) -> tuple[ResultRow, ...]:
        """The students that the search trained, as rows."""
        if self.found is None:
            return ()
        trained = (*self.found.measurements, *self.found.promoted)
        return trial_rows(trained, teacher_of(self.rows))


def teacher_of(rows: Sequence[ResultRow]) -> ResultRow:
    """Return the teacher's row.

    Raises:
        DataError: there is none.
    """
    for row in rows:
        if row.phase == "teacher":
            return row
    raise DataError("Report: the result table has no row of the teacher, which shares refer to")


def _curves(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read predicted curves: rows of percent, plan and worth or loss."""
    data = read_json(path)
    wanted = {"curve": ("worth", True), "ranked": ("loss", False)}
    found: dict[str, list[dict[str, Any]]] = {}
    for name, (value, needed) in wanted.items():
        rows = data.get(name, None if needed else []) if isinstance(data, dict) else None
        if not isinstance(rows, list) or not all(_is_point(row, value) for row in rows):
            raise DataError(
                f"{str(path)!r}: {name!r} is no list of points with percent, plan and {value}; "
                "remove the file, or write it again with `circuitsearch search`"
            )
        found[name] = rows
    return found


def _is_point(row: Any, value: str) -> bool:
    kinds: dict[str, Any] = {"percent": int, "plan": str, value: (int, float)}
    return isinstance(row, dict) and all(
        isinstance(row.get(name), kind) for name, kind in kinds.items()
    )


def _speeds(path: Path) -> dict[str, Speed]:
    """Read measured speeds by row name."""
    data = read_json(path)
    if not isinstance(data, dict):
        raise DataError(f"{str(path)!r}: expected a JSON object, got {type(data).__name__}")
    return {name: Speed.from_json(one) for name, one in data.items()}
