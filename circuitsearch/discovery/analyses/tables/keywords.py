"""Tables and charts of what was measured on keyword questions; see `keywords`."""

from __future__ import annotations

import numpy as np

from circuitsearch.core.findings import Cell, Chart, Series, Table

from ..measures.keywords import KeywordStudy
from ..shared import Interval, counted

__all__ = ["keyword_charts", "keyword_tables"]

_INTERVAL = ("low", "high")
_ORIGINS = {
    "clean": "its own query",
    "page": "the same question's on another page",
    "question": "another question's on the same page",
    "even": "none: every place alike",
}


def keyword_tables(study: KeywordStudy) -> tuple[Table, ...]:
    """Return attention, flow, cuts, losses, variances and looks as tables."""
    tables = [_attention(study), _flow(study), _cuts(study), _losses(study)]
    if not isinstance(study.queries, str):
        tables.append(_variances(study))
    if not isinstance(study.looks, str):
        tables.append(_looks(study))
    return tuple(tables)


def keyword_charts(study: KeywordStudy) -> tuple[Chart, ...]:
    """Return attention to the keyword, and what cutting it costs, as bars."""
    flow = study.flow
    layers = range(len(flow.sublayers))
    shares = [study.interval(flow.shares[:, i].mean(axis=1)) for i in layers]
    flows = [study.interval(flow.flows[:, i]) for i in layers]
    even = float(flow.even.mean())
    rises = [study.interval(flow.rises[name]) for name in flow.sublayers]
    attention = (
        _bars("attention of this one, mean over heads", shares),
        _bars("flow up to this one", flows),
        Series("even attention", tuple(even for _ in layers)),
    )
    return (
        Chart(
            "From the last prompt token to the keyword",
            "bars",
            flow.sublayers,
            "self-attention",
            "share of attention on the keyword",
            attention,
        ),
        Chart(
            "Hiding the keyword from all later positions in one self-attention",
            "bars",
            flow.sublayers,
            "self-attention in which it is hidden",
            "rise of the first answer token's loss, nats",
            (_bars("rise", rises),),
        ),
    )


def _bars(name: str, intervals: list[Interval]) -> Series:
    y, low, high = zip(*intervals, strict=True)
    return Series(name, y, () if None in low else low, () if None in high else high)


def _attention(study: KeywordStudy) -> Table:
    flow = study.flow
    rows: list[tuple[Cell, ...]] = []
    even = float(flow.even.mean())
    for i, name in enumerate(flow.sublayers):
        heads = flow.shares[:, i]
        columns = [(name, heads.mean(axis=1))]
        columns += [(f"{name}.H{h}", heads[:, h]) for h in range(heads.shape[1])]
        for title, values in columns:
            rows.append((title, *study.interval(values), even, float(values.mean()) / even))
    caption = (
        "Share of attention from the last prompt token on the keyword's tokens, per "
        f"self-attention (mean over heads) and head; {study.count}"
    )
    head = ("self-attention", "share", *_INTERVAL, "even attention", "times even")
    return Table(caption, head, tuple(rows))


def _flow(study: KeywordStudy) -> Table:
    flow = study.flow
    rows = tuple(
        (name, *study.interval(flow.flows[:, i]), float(flow.even_flows[:, i].mean()))
        for i, name in enumerate(flow.sublayers)
    )
    caption = (
        "Flow from the keyword to the last prompt token through all self-attentions up to one "
        f"(share of the flow that begins at the keyword); {study.count}"
    )
    return Table(caption, ("up to", "flow", *_INTERVAL, "even attention"), rows)


def _cuts(study: KeywordStudy) -> Table:
    rows = tuple((name, *study.interval(values)) for name, values in study.flow.rises.items())
    caption = (
        "Rise of the first answer token's loss (nats) when the keyword is hidden from all later "
        "positions in one self-attention, from the last prompt token only, in all, or in all but "
        f"one; {study.count}"
    )
    return Table(caption, ("hidden in", "rise", *_INTERVAL), rows)


def _losses(study: KeywordStudy) -> Table:
    clean = study.losses["clean"]
    rows: list[tuple[Cell, ...]] = []
    for name, title in _ORIGINS.items():
        values = study.losses.get(name)
        known = 0 if values is None else int(np.isfinite(values).sum())
        if values is None or not known:
            continue
        rows.append((title, *study.interval(values), *study.interval(values - clean), known))
    caption = (
        f"Loss of the first answer token (nats) when {study.target} asks the page, at the last "
        f"prompt token, with another query; {study.count}"
    )
    head = ("query", "loss", *_INTERVAL, "rise", *_INTERVAL, "questions")
    return Table(caption, head, tuple(rows))


def _variances(study: KeywordStudy) -> Table:
    assert not isinstance(study.queries, str)
    table = study.queries
    heads = table.values.shape[2]
    rows: list[tuple[Cell, ...]] = []
    for head in (None, *range(heads)):
        found = table.variances(head, study.seed)
        title = str(study.target) if head is None else f"{study.target}.H{head}"
        rows.append((title, found.pages, found.questions, *found.share))
    pages = counted(len(table.documents), "pages", table.documents)
    caption = (
        "Variance of the query at the last prompt token (squared distance) over pages for one "
        "question, over questions for one page, and the first's share in both; "
        f"{len(table.questions)} questions put to {pages}"
    )
    head_row = ("of", "over pages", "over questions", "share of pages", *_INTERVAL)
    return Table(caption, head_row, tuple(rows))


def _looks(study: KeywordStudy) -> Table:
    assert not isinstance(study.looks, str)
    looks = study.looks
    even = float(looks.even.mean())
    columns = [(str(study.target), looks.shares.mean(axis=1))]
    columns += [(f"{study.target}.H{h}", looks.shares[:, h]) for h in range(looks.shares.shape[1])]
    rows = tuple(
        (title, *study.look(values), even, *study.look(values - looks.even))
        for title, values in columns
    )
    caption = (
        f"Share of {study.target}'s attention on the patches that hold the answer, from the last "
        f"prompt token; {counted(len(looks.even), 'questions', looks.documents)}"
    )
    head = ("of", "share", *_INTERVAL, "even attention", "above even", *_INTERVAL)
    return Table(caption, head, rows)
