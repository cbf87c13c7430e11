"""The report's sections about results: the table, quality against cost, the search, the plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from circuitsearch.core.amounts import shown
from circuitsearch.core.budget import Limit
from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.cost import ACCOUNTINGS, Accounting, Quantity
from circuitsearch.core.plan import Plan
from circuitsearch.show.plots import pareto_front, quality_svg
from circuitsearch.show.report_figures import incumbent_svg
from circuitsearch.show.report_found import (
    Found,
    best_tenth,
    head_selection,
    incumbents,
    selection,
)
from circuitsearch.show.report_markup import Markup, details, element, joined, table
from circuitsearch.show.report_material import Material, teacher_of
from circuitsearch.show.rows import ResultRow, recounted
from circuitsearch.show.tables import result_cells, table_notes
from circuitsearch.show.text import DASH, count

__all__ = ["cost_section", "figure", "kept_section", "missing", "result_section", "search_section"]

_CODE = {"Plan": "plan", "Kept": "kept"}  # columns in a fixed pitch, and their classes
_NO_STUDY = "The study's database is not in the folder, so the search's own trials are not shown."


def figure(svg: str, caption: str) -> Markup:
    """Return a figure and what to know about it."""
    drawn = element("div", Markup(svg), kind="drawing")
    return element("figure", drawn, element("figcaption", caption))


def missing(words: str) -> Markup:
    """Return a note about what cannot be shown."""
    return element("p", words, kind="note")


def result_section(material: Material) -> Markup:
    """Return the result table with latency beside it, and how to read it."""
    head, cells, numbers = result_cells(material.rows)
    place = head.index("Search cost")
    timed = bool(material.speeds)
    rows = []
    for row, line in zip(material.rows, cells, strict=True):
        made: list[str] = [
            element("code", cell, kind=_CODE[name])
            if name in _CODE
            else element("strong", cell)
            if name == "Student" and row.rank == 1
            else joined(cell.split("\n"), Markup("<br>"))
            for name, cell in zip(head, line, strict=True)
        ]
        if timed:
            speed = material.speeds.get(row.name)
            made.insert(place, DASH if speed is None else shown("latency", speed.decoding))
        rows.append(made)
    if timed:
        head.insert(place, "Latency")
        numbers = [n if n < place else n + 1 for n in numbers] + [place]
    notes = table_notes(material.rows)
    if timed:
        notes.append("Latency: decoding one answer on this machine; see measured speed below.")
    return joined(
        (
            table(
                "Students of the final comparison", head, rows, numbers=numbers, lead=_lead(head)
            ),
            element("ul", *(element("li", note) for note in notes), kind="notes"),
        )
    )


def _lead(head: Sequence[str]) -> int:
    return head.index("Student")


def cost_section(material: Material) -> Markup:
    """Return quality against parameters and against MACs, and every point as a table."""
    trials, limits = material.trials, material.found.limits if material.found else ()
    teacher = teacher_of(material.rows)
    views: list[tuple[Quantity, Accounting]] = [("parameters", teacher.accounting)]
    views += [
        ("macs", name)
        for name in ACCOUNTINGS
        if name == teacher.accounting
        or any(one.quantity == "macs" and one.accounting == name for one in limits)
    ]
    parts: list[Markup] = []
    for place, (quantity, accounting) in enumerate(views):
        rows = _counted(material.rows, teacher, accounting)
        if not any(row.quality is not None for row in rows):
            continue
        words = "parameters" if quantity == "parameters" else f"MACs ({accounting})"
        lines = [one for one in limits if one.name == f"{teacher.scope} {quantity} ({accounting})"]
        svg = quality_svg(
            rows,
            f"cost{place}",
            f"Scatter plot of ANLS against {words}; the table below holds its numbers",
            limits=lines,
            trials=_counted(trials, teacher, accounting),
            quantity=quantity,
        )
        parts += [element("h3", f"Against {words}"), figure(svg, _caption(material, lines))]
    if not parts:
        return missing("No student was asked any question, so there is no quality to show.")
    parts.append(details("All points as a table", _points(material.rows, trials)))
    if material.found is None:
        parts.append(missing(_NO_STUDY))
    return joined(parts)


def _caption(material: Material, limits: Sequence[Limit]) -> str:
    """Say how to read a figure of quality against cost."""
    told = "; ".join(f"the budget allows {count(one.maximum)}" for one in limits)
    parts = [
        "Students, teacher and baselines of the final comparison by name, every trial of the "
        "search by who proposed it. No student lies above and left of the Pareto line.",
        f"Dashed: {told}." if told else "",
        "Error bars are 95 % intervals. Trials were trained for the search's own number of steps "
        "and answered its selection pages, named students the final pages.",
    ]
    if material.found is not None and material.found.promoted:
        parts.append(
            "Plans that the search distilled again in full are marks of their own, phase full in "
            "the table."
        )
    return " ".join(part for part in parts if part)


def _counted(
    rows: Sequence[ResultRow], teacher: ResultRow, accounting: Accounting
) -> list[ResultRow]:
    """Return rows with MACs under an accounting; those that do not know them are left out."""
    if accounting == teacher.accounting:
        return list(rows)
    found = (recounted(row, teacher, accounting) for row in rows)
    return [row for row in found if row is not None]


def _points(rows: Sequence[ResultRow], trials: Sequence[ResultRow]) -> Markup:
    """Return the table of all points of the two figures."""
    known = [row for row in (*rows, *trials) if row.quality is not None]
    quantities: tuple[Quantity, ...] = ("parameters", "macs")
    fronts = {name: set(pareto_front(known, name, "quality")) for name in quantities}
    names = list(dict.fromkeys(name for row in known for name in row.macs_in))
    lines = [
        [
            row.name,
            element("code", row.plan or "(empty)"),
            row.source,
            row.phase,
            count(row.parameters),
            *(count(row.macs_in[name]) if name in row.macs_in else DASH for name in names),
            f"{row.quality:.3f}",
            "yes" if (row.parameters, row.quality) in fronts["parameters"] else "no",
            "yes" if (row.macs, row.quality) in fronts["macs"] else "no",
        ]
        for row in known
    ]
    head = ["Student", "Plan", "Source", "Phase", "Parameters"]
    head += [f"MACs ({name})" for name in names]
    head += ["ANLS", "Pareto, parameters", "Pareto, MACs"]
    return table("All points", head, lines, numbers=range(4, 6 + len(names)))


def search_section(material: Material) -> Markup:
    """Return the course of the search: the best quality by number of trainings."""
    found = material.found
    if found is None:
        return missing(_NO_STUDY)
    steps = incumbents(found.measurements)
    if not any(step.quality is not None for step in steps):
        return missing("The search trained no student that answered questions.")
    best = max(step.quality for step in steps if step.quality is not None)
    first = next(step for step in steps if step.quality == best)
    failed = f", {found.failed} failed" if found.failed else ""
    lead = (
        f"{len(steps)} students were trained{failed}. The best one, ANLS {best:.3f}, came with "
        f"training {first.trainings}, from {first.source}. Sampler after the warm start: "
        f"{found.sampler}; seed {found.seed}."
    )
    teacher = teacher_of(material.rows).quality
    svg = incumbent_svg(
        steps,
        teacher,
        "course",
        "Line plot of the best ANLS against the number of trainings; the table below holds it",
    )
    caption = (
        "ANLS on the search's selection pages. The line is the best student so far, each mark one "
        "training, by who proposed the plan."
        + ("" if teacher is None else " Dashed: the teacher, on the final pages.")
    )
    lines = [
        [
            str(step.trainings),
            element("code", step.plan or "(empty)"),
            step.source,
            DASH if step.quality is None else f"{step.quality:.3f}",
            DASH if step.best is None else f"{step.best:.3f}",
        ]
        for step in steps
    ]
    head = ["Training", "Plan", "Source", "ANLS", "Best so far"]
    shown_as = table("All trainings", head, lines, numbers=(0, 3, 4))
    return joined(
        (element("p", lead), figure(svg, caption), details("All trainings as a table", shown_as))
    )


def kept_section(material: Material) -> Markup:
    """Return how often the best plans keep each component."""
    found = material.found
    if found is None:
        return missing(_NO_STUDY)
    if not found.measurements:
        return missing("The search trained no student.")
    chosen = best_tenth(found.measurements)
    plans = [Plan.parse(one.plan) for one in chosen]
    told = "the best plan" if len(plans) == 1 else f"the {len(plans)} best plans"
    lead = (
        f"Share of {told} that keep a component, in whole or in part: the best tenth of "
        f"{len(found.measurements)} trained. Where a few plans are all there is, a share says "
        "little."
    )
    parts = [element("p", lead), _sublayer_map(selection(plans, found.decoder))]
    if found.heads:
        parts += [
            element("h3", "Heads"),
            _head_map(head_selection(plans, found.decoder), found),
        ]
    return joined(parts)


def _sublayer_map(shares: Mapping[SubLayer, float]) -> Markup:
    """Return layers x (S, C, M)."""
    kinds = [kind for kind in Kind if any(one.kind is kind for one in shares)]
    layers = sorted({one.layer for one in shares}, reverse=True)
    head = ["Layer", *(kind.value for kind in kinds)]
    lines = [(str(layer), [shares[SubLayer.at(layer, kind)] for kind in kinds]) for layer in layers]
    return _heat("Sub-layers kept by the best plans, in per cent; layer 0 below", head, lines)


def _head_map(shares: Mapping[SubLayer, Sequence[float]], found: Found) -> Markup:
    """Return attentions x heads."""
    head = ["Attention", *map(str, range(found.decoder.heads))]
    lines = [(str(one), list(shares[one])) for one in reversed(list(shares))]
    return _heat("Heads kept by the best plans, in per cent; first attention below", head, lines)


def _heat(
    caption: str, head: Sequence[str], lines: Sequence[tuple[str, Sequence[float]]]
) -> Markup:
    """Return a table whose cells are shaded by their share; the number stands in each."""
    rows = [
        element(
            "tr",
            element("th", name, scope="row"),
            *(
                element("td", f"{100 * one:.0f}", kind=f"f{min(10, int(10 * one + 1e-9))}")
                for one in shares
            ),
        )
        for name, shares in lines
    ]
    made = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *(element("th", name, scope="col") for name in head))),
        element("tbody", *rows),
        kind="heat",
    )
    return element(
        "div", made, kind="scroll", role="region", aria_label=f"Table: {caption}", tabindex="0"
    )
