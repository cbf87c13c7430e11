"""The report of a search as one HTML file.

* *Nothing is fetched and nothing runs.* The page has no script and no external address; its content
  security policy allows style in the page and images that are in the page, nothing else.
* *Foreign text stays text.* Everything goes through `report_markup`.
* *The same folder gives the same bytes*: no date, figures without one (`report_canvas`).
"""

from __future__ import annotations

from circuitsearch.show.report_evidence import (
    answers_section,
    redo_section,
    scores_section,
    speed_section,
)
from circuitsearch.show.report_frame import framed
from circuitsearch.show.report_material import Material, teacher_of
from circuitsearch.show.report_results import (
    cost_section,
    kept_section,
    result_section,
    search_section,
)
from circuitsearch.show.text import count

__all__ = ["report_html"]


def report_html(material: Material, *, links: bool = False) -> str:
    """Return the report as the text of an HTML file.

    Args:
        material: what it shows.
        links: whether the page will lie in the search's folder, beside the files it names.

    Raises:
        DataError: the rows cannot be compared, or no row is the teacher's.
    """
    sections = {
        "result": ("Result", result_section(material)),
        "cost": ("Quality against cost", cost_section(material)),
        "search": ("Course of the search", search_section(material)),
        "kept": ("What the best plans keep", kept_section(material)),
        "scores": ("Scores and effects", scores_section(material)),
        "answers": ("Answers side by side", answers_section(material)),
        "speed": ("Measured speed", speed_section(material)),
        "redo": ("How to do it again", redo_section(material, links=links)),
    }
    return framed(
        str(material.facts.get("title", "Result")),
        _lead(material),
        sections,
        kind="report of a search",
        skip="Skip to the result",
        made="files of the search",
    )


def _lead(material: Material) -> str:
    """Return the result in a sentence or two."""
    teacher = teacher_of(material.rows)
    best = next((row for row in material.rows if row.name == "best"), None)
    if best is None or best.quality is None:
        return f"Teacher: {teacher.name}, {count(teacher.parameters)} parameters."
    text = (
        f"The search's best student keeps {100 * best.parameters_share:.1f} % of the "
        f"{teacher.scope}'s parameters and {100 * best.macs_share:.1f} % of its MACs "
        f"({teacher.accounting}). It reaches ANLS {best.quality:.3f}"
    )
    if best.quality_low is not None and best.quality_high is not None:
        text += f" [{best.quality_low:.3f}, {best.quality_high:.3f}]"
    if teacher.quality is not None:
        text += f"; the teacher reaches {teacher.quality:.3f}"
    others = [row for row in material.rows if row.rank is not None and row.name != "best"]
    rivals = [row for row in others if row.quality is not None]
    if rivals:
        rival = max(rivals, key=lambda row: row.quality or 0.0)
        text += f", the best baseline, {rival.name}, {rival.quality:.3f}"
    return text + "."
