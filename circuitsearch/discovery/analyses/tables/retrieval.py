"""Tables and the chart of retrieval; see `retrieval`."""

from __future__ import annotations

from circuitsearch.core.findings import Cell, Chart, Series, Table

from ..measures.retrieval import HYPOTHESES, RUNS, RetrievalStudy, shares
from ..shared import counted

__all__ = ["DEFAULT", "retrieval_chart", "retrieval_tables"]

DEFAULT = "clean>pairs"
"""The run that verdicts judge: the clean page's query on the page with pairs shuffled."""

_INTERVAL = ("low", "high")
_ALL = "all of them"
_TITLES = {
    "clean>pairs": "pairs shuffled, query of the clean page (judged)",
    "pairs>clean": "clean page, query of the page with pairs shuffled",
    "clean>values": "values shuffled, query of the clean page (place and meaning coincide)",
    "pairs": "pairs shuffled, its own query (control)",
    "values": "values shuffled, its own query (control)",
    "even>pairs": "pairs shuffled, no query: every place alike (control)",
}


def retrieval_tables(study: RetrievalStudy) -> tuple[Table, ...]:
    """Return answers by vocabulary, by run, attention, and accuracy without cross-attentions."""
    tables = [_vocabularies(study)]
    if study.usable:
        tables.append(_runs(study))
        if study.looked:
            tables.append(_attention(study))
        tables.append(_skips(study))
    return tuple(tables)


def retrieval_chart(study: RetrievalStudy) -> Chart:
    """Return the four shares per vocabulary as bars, published ones beside those found here."""
    columns: dict[str, tuple[tuple[float | None, ...], ...]] = {}
    for one in study.answered:
        if one.vocabulary.paper:
            published = tuple(share / 100 for share in one.vocabulary.paper)
            columns[f"{one.vocabulary.name} (published)"] = tuple(
                (share, None, None) for share in published
            )
        if one.classes is not None:
            columns[f"{one.vocabulary.name}, n = {len(one.names)}"] = shares(one.classes[DEFAULT])
    series = tuple(
        Series(name, *zip(*(found[i] for found in columns.values()), strict=True))
        for i, name in enumerate(HYPOTHESES)
    )
    return Chart(
        "What the clean page's query finds on the shuffled page",
        "bars",
        tuple(columns),
        "vocabulary of the values",
        "share of answers",
        series,
    )


def _vocabularies(study: RetrievalStudy) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for one in study.answered:
        found: list[Cell] = [None] * (3 * len(HYPOTHESES))
        if one.classes is not None:
            found = [cell for share in shares(one.classes[DEFAULT]) for cell in share]
        paper: list[Cell] = [share / 100 for share in one.vocabulary.paper]
        paper = paper or [None] * len(HYPOTHESES)
        rows.append((one.vocabulary.name, one.drawn, len(one.names), *found, *paper))
    if study.usable:
        pooled = [cell for share in shares(study.classes(DEFAULT)) for cell in share]
        drawn = sum(one.drawn for one in study.usable)
        rows.append((_ALL, drawn, len(study.names), *pooled, *[None] * len(HYPOTHESES)))
    caption = (
        "What is said when the clean page's query asks the page with pairs shuffled, as shares of "
        "the pages answered right; the last four columns are published shares of another teacher"
    )
    head = (
        "values",
        "pages drawn",
        "answered right",
        *(title for name in HYPOTHESES for title in (name, *_INTERVAL)),
        *(f"{name}, published" for name in HYPOTHESES),
    )
    return Table(caption, head, tuple(rows))


def _runs(study: RetrievalStudy) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for run in RUNS:
        groups = [
            (one.vocabulary.name, one.classes[run])
            for one in study.usable
            if one.classes is not None
        ]
        for name, classes in [(_ALL, study.classes(run)), *groups]:
            cells = [cell for share in shares(classes) for cell in share]
            rows.append((f"{_TITLES[run]}: {name}", len(classes), *cells))
    caption = (
        "What is said in every run: shares of answers. Place and memory are told by the page that "
        "the query comes from, in controls by the clean page"
    )
    head = ("run", "pages", *(title for name in HYPOTHESES for title in (name, *_INTERVAL)))
    return Table(caption, head, tuple(rows))


def _attention(study: RetrievalStudy) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for cross in study.crosses:
        cells: list[Cell] = []
        for place in ("key", "value"):
            found, even = study.looks(cross, place)
            cells += [*study.interval(found), float(even.mean())]
        rows.append((cross, *cells))
    caption = (
        "Share of attention from the last prompt token on the patches of the asked key and of its "
        "value on the clean page, mean over heads, and what even attention would give; "
        f"{counted(len(study.names), 'pages')}"
    )
    columns = [
        title
        for place in ("key", "value")
        for title in (f"on the {place}", *_INTERVAL, f"{place}, even")
    ]
    return Table(caption, ("cross-attention", *columns), tuple(rows))


def _skips(study: RetrievalStudy) -> Table:
    rows = tuple((name, *study.interval(study.right(name))) for name in study.skipped)
    caption = (
        "Share of these pages still answered right when cross-attentions are skipped; "
        f"{counted(len(study.names), 'pages')}"
    )
    return Table(caption, ("without", "right", *_INTERVAL), rows)
