"""Paths from a keyword to the query that reads the page (Donut-MINT, arXiv 2509.26235, Prop. 4).

Between the keyword's embedding and the query of the last cross-attention every sub-layer is passed
by or passed through, which makes 2^k chains that no page enters; `discovery.paths.keyword` builds
and measures them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from circuitsearch.core.findings import Cell, Chart, Finding, Series, Table, Verdict

from .material import Material
from .measures.keyword_questions import NO_KEYWORDS, keyword_questions
from .measures.paths import ENOUGH, MOST, MeasuredPaths, Path, measured_paths
from .measures.query_losses import DEAR_RULE, judged_query
from .shared import cannot, judged, told

__all__ = ["paths_analysis"]

_SHOWN = 10
"""Paths in a table."""

_ASKS = (
    "Asked for the date, the model has to carry the word 'date' from its place in the question to "
    "the last token of the prompt, where the last cross-attention makes the query that searches "
    "the page. Which chain of sub-layers does that? Every sub-layer on the way is either passed by "
    "or passed through. If one short chain does it alone, a student needs no other sub-layer for "
    "it."
)
_METHOD = (
    "Every path starts from a keyword token's embedding and applies, one after the other, what its "
    "sub-layers do to a single vector: a self-attention its value and output projections, as if "
    "the last prompt token attended to the keyword alone, a feed-forward its two linear maps "
    "without the activation; norms divide by the clean run's deviation. The query made of the "
    "result is compared with the clean query: effectiveness is their cosine, averaged over heads "
    "and keyword tokens. Since queries are alike whatever is asked, the cosine with the clean "
    "query of another question stands beside it. Loss is that of the first answer token when the "
    "last cross-attention reads the path's vector in place of the stream. The source names two "
    "sets of sub-layers: the five in front of the query (default, judged) and, in its text, the "
    "first five; all of them together are tabulated too. The rival of the published path is "
    "chosen on other pages than those it is measured on. Intervals: 95 %, bootstrap over documents."
)
_BEST = "Of all paths the last self-attention alone makes the query that is most like the clean one"
_SAME = "The last self-attention alone turns the keyword into a query that does as well"
_PAPER = "the most effective of 2^5 paths is the final self-attention alone (no number given)"
_BEST_RULE = (
    "effectiveness of the last self-attention alone minus that of its strongest rival among the "
    "five sub-layers' paths (chosen on other pages): shown if the whole interval is above 0, not "
    "shown if it is at or below 0, open otherwise"
)
_SAME_RULE = (
    "rise of the first answer token's loss when the last cross-attention reads that path's vector: "
    f"{DEAR_RULE}"
)


def paths_analysis(material: Material) -> Finding:
    """Tabulate every path from a keyword to the query of the last cross-attention.

    Args:
        material: teacher and pages; paths are measured on `pages`, rivals chosen on `others`.

    Returns:
        The strongest paths per set of sub-layers, and whether the last self-attention alone is
        enough (Proposition 4). `values["minimal"]` names the sub-layers of the shortest path that
        reaches 95 % of the strongest one's effectiveness.
    """
    asked = keyword_questions(material.teacher, material.sample)
    found = None if asked is None else measured_paths(material, asked)
    if found is None:
        why = NO_KEYWORDS if asked is None else "no self-attention precedes a cross-attention"
        verdicts = (
            cannot("Proposition 4, paths", _BEST, _PAPER, why, _BEST_RULE),
            cannot("Proposition 4, circuit", _SAME, _PAPER, why, _SAME_RULE),
        )
        return _finding(0, verdicts=verdicts)
    return _finding(
        len(found.asked.documents),
        tables=(_sets(found), *(_strongest(found, name) for name in found.sets)),
        charts=(_chart(found),),
        verdicts=(_best(found), _same(found)),
        notes=_notes(found),
        values=_values(found),
    )


def _finding(examples: int, **parts: Any) -> Finding:
    """Return the finding with its words filled in."""
    return Finding("paths", "Paths from a keyword to the query", _ASKS, _METHOD, examples, **parts)


def _sets(found: MeasuredPaths) -> Table:
    """Return the best and the minimal path of every set, beside the published one."""
    rows: list[tuple[Cell, ...]] = []
    for name in found.sets:
        paths = found.of(name)
        best, minimal = found.best(paths), found.minimal(paths)
        place = sorted(paths, key=lambda path: -found.means[path])
        alone = place.index((found.last,)) + 1 if (found.last,) in place else None
        score = found.interval(found.at(found.rows.effectiveness, best))
        rows.append((name, len(paths), _named(best), *score, _named(minimal), alone))
    head = ("sub-layers", "paths", "strongest", "effectiveness", "low", "high", "minimal")
    caption = (
        "Strongest path per set of sub-layers (cosine, 1 = the clean query's direction), the "
        f"shortest one that reaches {ENOUGH:.0%} of it, and the rank of {found.last} alone; "
        f"{found.count}"
    )
    return Table(caption, (*head, f"rank of {found.last}"), tuple(rows))


def _strongest(found: MeasuredPaths, name: str) -> Table:
    """Return the strongest paths of a set, and those that are always of interest."""
    paths = found.of(name)
    ranked = sorted(paths, key=lambda path: (-found.means[path], len(path)))
    listed = ranked[:_SHOWN]
    listed += [path for path in ((found.last,), ()) if path in paths and path not in listed]
    rows: list[tuple[Cell, ...]] = []
    for path in listed:
        effective = found.at(found.rows.effectiveness, path)
        above = effective - found.at(found.rows.controls, path)
        cells: list[Cell] = [_named(path), *found.interval(effective)]
        cells += found.interval(above) if np.isfinite(above).any() else (None,) * 3
        cells += found.interval(found.at(found.rows.overlaps, path))
        losses = found.rows.losses
        cells += (None,) * 3 if losses is None else found.interval(found.at(losses, path))
        rows.append(tuple(cells))
    clean = found.interval(found.rows.clean_losses)
    rows.append(("the clean query", 1.0, *(None,) * 5, 1.0, None, None, *clean))
    even = found.interval(found.rows.clean_losses + found.worth)
    rows.append(("no query: every place alike", *(None,) * 9, *even))
    columns = ("effectiveness", "above another question's", "overlap of maps", "loss")
    head = ("path", *(title for column in columns for title in (column, "low", "high")))
    caption = (
        f"Paths to the query of {found.target}, sub-layers: {name}: cosine, the same minus the "
        "cosine with another question's query, agreement of the attention maps (1 = equal), loss "
        f"of the first answer token (nats); the first {min(_SHOWN, len(paths))} of {len(paths)}, "
        f"then {found.last} alone and the residual path; {found.count}"
    )
    return Table(caption, head, tuple(rows))


def _chart(found: MeasuredPaths) -> Chart:
    """Return the strongest paths of the judged set as bars, own question beside another."""
    ranked = sorted(found.judged, key=lambda path: (-found.means[path], len(path)))[:_SHOWN]
    if (found.last,) not in ranked:
        ranked.append((found.last,))
    series = []
    for title, table in (
        ("own question", found.rows.effectiveness),
        ("another question", found.rows.controls),
    ):
        columns = [found.at(table, path) for path in ranked]
        if not all(np.isfinite(column).any() for column in columns):
            continue
        y, low, high = zip(*(found.interval(column) for column in columns), strict=True)
        ends = () if None in low else low, () if None in high else high
        series.append(Series(title, y, *ends))
    return Chart(
        f"Strongest paths to the query of {found.target}",
        "bars",
        tuple(_named(path) for path in ranked),
        "path",
        "cosine with the clean query",
        tuple(series),
    )


def _best(found: MeasuredPaths) -> Verdict:
    """Judge whether the last self-attention alone is the strongest path."""
    alone = (found.last,)
    rivals = tuple(path for path in found.judged if path != alone)
    if found.elsewhere is None:
        rival = found.best(rivals)
    else:
        means = dict(
            zip(found.elsewhere.paths, found.elsewhere.effectiveness.mean(axis=1), strict=True)
        )
        rival = max(rivals, key=lambda path: (means[path], -len(path)))
    mine, theirs = (found.at(found.rows.effectiveness, path) for path in (alone, rival))
    difference = found.interval(mine - theirs)
    here = (
        f"{found.last} alone {told(*found.interval(mine))}, its rival {_named(rival)} "
        f"{told(*found.interval(theirs))}; difference {told(*difference)}; {found.count}"
    )
    answer = judged(*difference[1:], 0.0)
    return Verdict("Proposition 4, paths", _BEST, _PAPER, here, answer, _BEST_RULE)


def _same(found: MeasuredPaths) -> Verdict:
    """Judge whether its query does as well as the clean one."""
    claim = "Proposition 4, circuit"
    if found.rows.losses is None:
        why = f"a self-attention follows {found.target}, so one position does not decide the answer"
        return cannot(claim, _SAME, _PAPER, why, _SAME_RULE)
    losses = found.at(found.rows.losses, (found.last,))
    rise, worth = found.interval(losses - found.rows.clean_losses), found.interval(found.worth)
    here = (
        f"loss {told(*found.interval(losses), unit='nats')} with the query of {found.last} alone, "
        f"{told(*found.interval(found.rows.clean_losses), unit='nats')} with the clean one; rise "
        f"{told(*rise, unit='nats')}, with no query {told(*worth, unit='nats')}; {found.count}"
    )
    return Verdict(claim, _SAME, _PAPER, here, judged_query(rise, worth), _SAME_RULE)


def _notes(found: MeasuredPaths) -> tuple[str, ...]:
    """Return what a reader has to know to judge the numbers."""
    best = found.best(found.judged)
    notes = [
        f"The strongest path, {_named(best)}, restores {found.means[best]:.2f} of the clean "
        "query's direction; the minimal path is the shortest that does nearly as well, which says "
        "little where that is little.",
        "A path whose cosine with another question's query is as large as with its own carries "
        "what all queries have in common, not the keyword.",
        f"Linear check: the sum of all paths and the composition of (1 + sub-layer) differ by "
        f"{found.rows.gap:.1e} of their size, which is rounding.",
    ]
    if found.asked.tokens > 2:
        notes.append(
            f"This tokenizer cuts the keywords of a question into {found.asked.tokens:.1f} tokens "
            "on average. A path starts from one of them, so no single path can know the whole word."
        )
    if found.elsewhere is None:
        notes.append("The other pages ask no keyword question: the rival was chosen on these.")
    if len(found.rows.sublayers) == MOST:
        notes.append(f"Of a deeper decoder only the last {MOST} sub-layers are enumerated.")
    return tuple(notes)


def _values(found: MeasuredPaths) -> dict[str, Any]:
    """Return the minimal circuit and the means behind it."""
    paths = found.judged
    return {
        "target": found.target,
        "minimal": list(found.minimal(paths)),
        "best": list(found.best(paths)),
        "effectiveness": {_named(path): found.means[path] for path in paths},
    }


def _named(path: Path) -> str:
    return " ".join(path) or "residual"
