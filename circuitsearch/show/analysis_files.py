"""The files of the analyses: findings for programs, charts, one Markdown file, one page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitsearch.core.errors import DataError
from circuitsearch.core.files import read_json, write_bytes, write_json, write_text
from circuitsearch.core.findings import Finding
from circuitsearch.show.analysis_charts import charts_of
from circuitsearch.show.analysis_page import analyses_html
from circuitsearch.show.analysis_text import findings_markdown

__all__ = ["PAGE_FILE", "write_findings"]

PAGE_FILE = "analyses.html"
"""Name of the page in the folder of the analyses."""

_INDEX = "analyses.json"
_FORMAT = 1  # raised when the meaning of a field changes


def write_findings(
    folder: str | os.PathLike[str], findings: Mapping[str, Finding], facts: Mapping[str, Any]
) -> Path:
    """Write everything into `folder`, each file atomically, and return the page's path.

    `NAME.json`, `NAME-1.png` and `NAME-1.svg` per analysis and chart; `analyses.json`,
    `analyses.md` and `analyses.html` of all. What an earlier call wrote and this one does not is
    removed.

    Args:
        folder: created when missing.
        findings: by the name of their analysis, in the order to show them.
        facts: what they are about, plain JSON values; `title` is the heading.

    Raises:
        DataError: a finding or a fact is not plain JSON.
        StorageError: a file cannot be written.
    """
    place = Path(folder)
    told = {name: finding.to_json() for name, finding in findings.items()}
    charts = charts_of(findings)
    for name, drawn in charts.items():
        write_json(place / f"{name}.json", told[name])
        for number, files in enumerate(drawn, 1):
            for kind, data in files.items():
                write_bytes(place / f"{name}-{number}.{kind}", data)
    _tidy(place, told)
    every = {"facts": dict(facts), "findings": told, "format": _FORMAT, "order": [*findings]}
    write_json(place / _INDEX, every)
    write_text(place / "analyses.md", findings_markdown(findings, facts))
    page = place / PAGE_FILE
    write_text(page, analyses_html(findings, facts, charts))
    return page


def _tidy(folder: Path, told: Mapping[str, Any]) -> None:
    """Remove what the earlier call wrote for findings and charts that are no longer there."""
    try:
        earlier = read_json(folder / _INDEX)["findings"]
        stale = _names(earlier) - _names(told)
    except (DataError, AttributeError, KeyError, TypeError):
        return  # no earlier call, or a file that is not ours
    for path in folder.iterdir():
        if path.name in stale:
            path.unlink()


def _names(told: Mapping[str, Any]) -> set[str]:
    """Return the names of the files of findings in their JSON form."""
    names = {f"{name}.json" for name in told}
    for name, finding in told.items():
        numbers = range(1, len(finding["charts"]) + 1)
        names |= {f"{name}-{number}.{kind}" for number in numbers for kind in ("png", "svg")}
    return names
