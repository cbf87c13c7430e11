"""Keyword questions: what carries the keyword, and what its query depends on (Proposition 4).

Donut-MINT (arXiv 2509.26235) says that self-attentions carry the keyword to the last prompt token,
that the query of the last cross-attention made there does not depend on the page, and that it leads
to the asked concept. `paths` has the rest of the proposition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from circuitsearch.core.components import Kind
from circuitsearch.core.findings import Answer, Finding, Verdict

from .material import Material
from .measures.keyword_questions import NO_KEYWORDS, keyword_questions
from .measures.keywords import KeywordStudy, keyword_study
from .measures.query_losses import DEAR_RULE, judged_query
from .shared import cannot, counted, judged, landmarks, told
from .tables.keywords import keyword_charts, keyword_tables

__all__ = ["keywords_analysis"]

_CARRIES, _INDEPENDENT = 0.05, 0.1
"""Nats that a self-attention must be worth to carry the keyword, and the pages' share of the
variance below which a query ignores them."""

_ASKS = (
    "A keyword question names a kind of thing, like 'the date', that the page need not print. So "
    "the word has to become a search: which self-attentions bring it to the last token of the "
    "prompt, is the query made there the same whatever the page says, and does it lead to the "
    "answer? A query that does not depend on the page could be made by a much smaller model."
)
_METHOD = (
    "Attention from the last prompt token to the keyword's tokens, per head, against attention "
    "spread evenly over all earlier tokens; flow multiplies it up over self-attentions, half of "
    "each step staying in place. Since attention alone does not show use, the keyword is also "
    "hidden: later positions no longer see it in one self-attention, the other weights growing to "
    "sum to one, and the loss of the first answer token is measured. The query of the last "
    "cross-attention is compared over pages and questions by putting every question to every page, "
    "and replaced by another page's, another question's, or none, which looks everywhere alike. On "
    "rendered pages the share of its attention on the patches with the answer is set against their "
    "share of the page. The source gives no numbers here. Intervals: 95 %, bootstrap over "
    "documents."
)
_SAYS: Mapping[str, str] = {
    "flow": "Each self-attention but the last carries the keyword towards the last prompt token",
    "query": "The last cross-attention's query depends on the question, not on the page",
    "page": "The query that the question makes on another page does as well",
    "place": "The query leads to where the asked concept stands on the page",
}
_PAPER: Mapping[str, str] = {
    "flow": "S0, S1 and S2 carry the keyword to the last prompt token (no number given)",
    "query": "the query appears to be independent of the page (no number given)",
    "page": "the query appears to be independent of the page (no number given)",
    "place": "C3 looks at regions with dates when asked for the date (no number given)",
}
_RULES: Mapping[str, str] = {
    "flow": (
        "rise of the first answer token's loss when the keyword is hidden in one self-attention: "
        f"shown if the whole interval is above {_CARRIES} nats for each but the last, partly if "
        "for some, not shown if for each it is at or below, open otherwise"
    ),
    "query": (
        "the pages' share of the query's variance over pages and questions, all heads together: "
        f"shown if the whole interval is below {_INDEPENDENT}, not shown if it is at or above, "
        "open otherwise"
    ),
    "page": f"rise of the first answer token's loss with another page's query: {DEAR_RULE}",
    "place": (
        "share of attention on the answer's patches, mean over heads, minus these patches' share "
        "of the page: shown if the whole interval is above 0, not shown if it is at or below 0, "
        "open otherwise"
    ),
}


def keywords_analysis(material: Material) -> Finding:
    """Measure how a keyword becomes a query, and what that query depends on.

    Args:
        material: teacher and pages; `pages` are measured.

    Returns:
        Attention, flow, cuts, variances and losses, and four verdicts on Proposition 4.
    """
    asked = keyword_questions(material.teacher, material.sample)
    sublayers = material.view.sublayers
    target = landmarks(sublayers).last_cross
    leading = target and any(s.kind is Kind.SELF and s < target for s in sublayers)
    if asked is None or target is None or not leading:
        why = NO_KEYWORDS if asked is None else "no self-attention precedes a cross-attention"
        return _finding(0, tuple(_cannot(claim, why) for claim in _SAYS))
    study = keyword_study(material, asked, target)
    finding = _finding(
        len(asked.documents),
        (_flow(study), _query(study), _page(study), _place(study)),
        _notes(study),
    )
    return replace(
        finding,
        tables=keyword_tables(study),
        charts=keyword_charts(study),
        values={
            "target": target.name,
            "rises": {name: study.interval(v)[0] for name, v in study.flow.rises.items()},
        },
    )


def _finding(examples: int, verdicts: tuple[Verdict, ...], notes: tuple[str, ...] = ()) -> Finding:
    """Return the finding with its words filled in."""
    title = "What carries a keyword, and what its query depends on"
    return Finding("keywords", title, _ASKS, _METHOD, examples, verdicts=verdicts, notes=notes)


def _cannot(claim: str, why: str) -> Verdict:
    """Return a verdict that cannot be reached."""
    return cannot(f"Proposition 4, {claim}", _SAYS[claim], _PAPER[claim], why, _RULES[claim])


def _verdict(claim: str, here: str, answer: Answer) -> Verdict:
    name = f"Proposition 4, {claim}"
    return Verdict(name, _SAYS[claim], _PAPER[claim], here, answer, _RULES[claim])


def _flow(study: KeywordStudy) -> Verdict:
    """Judge whether each self-attention but the last carries the keyword."""
    names = study.flow.sublayers[:-1]
    if not names:
        return _cannot("flow", f"one self-attention alone precedes {study.target}")
    rises = {name: study.interval(study.flow.rises[name]) for name in names}
    answers = [judged(*rise[1:], _CARRIES) for rise in rises.values()]
    mixed: Answer = "partly" if "shown" in answers else "open"
    answer = answers[0] if len(set(answers)) == 1 else mixed
    each = ", ".join(f"{name} {told(*rise, unit='nats')}" for name, rise in rises.items())
    last = study.flow.sublayers[-1]
    here = (
        f"{each}; the last one, {last}, {told(*study.interval(study.flow.rises[last]))}; hidden "
        f"in all {told(*study.interval(study.flow.rises['all']))}; {study.count}"
    )
    return _verdict("flow", here, answer)


def _query(study: KeywordStudy) -> Verdict:
    """Judge whether the query ignores the page."""
    if isinstance(study.queries, str):
        return _cannot("query", study.queries)
    table = study.queries
    share = table.variances(None, study.seed).share
    here = (
        f"{told(*share)} of the variance is the pages'; {len(table.questions)} questions put to "
        f"{counted(len(table.documents), 'pages', table.documents)}"
    )
    return _verdict("query", here, judged(*share[1:], _INDEPENDENT, above=False))


def _page(study: KeywordStudy) -> Verdict:
    """Judge whether another page's query does as well."""
    if "page" not in study.losses:
        return _cannot("page", "there is one page only, and another is needed")
    rises = {
        name: study.interval(study.losses[name] - study.losses["clean"])
        for name in ("page", "even")
    }
    here = (
        f"rise {told(*rises['page'], unit='nats')} with another page's query, "
        f"{told(*rises['even'], unit='nats')} with none; {study.count}"
    )
    return _verdict("page", here, judged_query(rises["page"], rises["even"]))


def _place(study: KeywordStudy) -> Verdict:
    """Judge whether attention is on the answer's place."""
    if isinstance(study.looks, str):
        return _cannot("place", study.looks)
    looks = study.looks
    shares = looks.shares.mean(axis=1)
    # even attention in float32 is off by rounding, which must not count as above or below
    above = study.look((shares - looks.even).round(6))
    here = (
        f"{told(*study.look(shares))} of the attention on {looks.even.mean():.2f} of the page, "
        f"above even {told(*above)}; {counted(len(looks.even), 'questions', looks.documents)}"
    )
    return _verdict("place", here, judged(*above[1:], 0.0))


def _notes(study: KeywordStudy) -> tuple[str, ...]:
    """Return what a reader has to know to judge the numbers."""
    notes = [
        "Where several self-attentions can stand in for each other, hiding the keyword in one of "
        "them costs little; the rows 'all' and 'all but' show that.",
        "Variances are distances in the space of queries, where not every direction moves "
        "attention; the losses with other queries show what it means for the answer.",
    ]
    if study.asked.tokens > 2:
        notes.append(
            f"This tokenizer cuts the keywords of a question into {study.asked.tokens:.1f} tokens "
            "on average; together they are the keyword here."
        )
    return tuple(notes)
