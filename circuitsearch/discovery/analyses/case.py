"""Whether M0 takes the case out of questions (Donut-MINT, arXiv 2509.26235, Proposition 3).

Two tests. The lens reads every word token of a question at every place of the stream: do cased
tokens read as their lowercase form behind the first feed-forward? And questions are put in lower
case beforehand: if lower-casing is what the first feed-forward is for, it can then be skipped.
"""

from __future__ import annotations

from collections.abc import Mapping

from circuitsearch.core.components import SubLayer
from circuitsearch.core.findings import Cell, Chart, Finding, Series, Table, Verdict

from .material import Material
from .measures.case import NORMS, Losses, Read, losses_of, recased, tokens_read
from .shared import cannot, counted, judged, judged_within, landmarks, perplexities, poor_note, told

__all__ = ["case_analysis"]

_CLOSE = 0.05
"""Nats by which losses may differ and still count as the same: 5 % of perplexity."""
_MOST = 0.5
_NO_FEED = "the decoder has no feed-forward"

_ASKS = (
    "People write TOTAL, Total or total and mean the same. A model has to put these together "
    "somewhere. If one early feed-forward does this and nothing else, the tokenizer can do it for "
    "free, by lower-casing the question, and the feed-forward can go."
)
_METHOD = (
    "Questions whose prompt changes with their case, asked as they are cased and in lower case, "
    "with the right answer. First test: at every place of the running vector, each word token of "
    "the questions as they are cased is read as the token with the largest logit. Cased tokens are "
    "those whose lowercase form is another token; tokens without case are the control, since what "
    "happens to them has nothing to do with case. The source does not say whether the final norm "
    "stands in front of the logits: with it is the default and judged. Second test: the loss of "
    "the answer (nats per token; default: every answer token weighs the same, also: every "
    "question), with and without the first feed-forward, under both casings of the same "
    "questions, compared in pairs. Intervals: 95 %, bootstrap over documents, for shares widened "
    "to Wilson's."
)
_PAPER = "M0 maps tokens to their lowercase form (examples, no numbers)"
_CLAIMS = {
    "lens": (
        "Proposition 3 (lens)",
        "The first feed-forward turns cased question tokens into their lowercase form.",
        "share of cased question tokens that read as their lowercase form behind the first "
        f"feed-forward, minus the share in front of it: shown if the whole interval is above "
        f"{_MOST}, not shown if it is at or below, open otherwise",
    ),
    "needed": (
        "Proposition 3 (skipping)",
        "Skipping the first feed-forward costs less when questions are in lower case.",
        "loss without the first feed-forward minus loss with it, questions as they are cased, "
        "minus the same in lower case: shown if the whole interval is above 0, not shown if it is "
        "at or below 0, open otherwise",
    ),
    "replaced": (
        "Proposition 3 (replacing)",
        "Lower-casing the question replaces the first feed-forward.",
        "loss in lower case without the first feed-forward, minus loss of the whole model as the "
        f"questions are cased: shown if the whole interval is below {_CLOSE} nats, not shown if it "
        "is at or above, open otherwise",
    ),
    "neutral": (
        "Proposition 3 (whole model)",
        "The whole model answers questions alike in either case.",
        "loss as the questions are cased minus loss in lower case, whole model: shown if the whole "
        f"interval lies within {_CLOSE} nats of 0, not shown if it lies wholly outside, open "
        "otherwise",
    ),
}
"""Name, claim and rule of each verdict."""


def case_analysis(material: Material) -> Finding:
    """Ask whether the first feed-forward maps question tokens to lower case.

    Args:
        material: teacher and pages; `pages` are measured.

    Returns:
        Shares of question tokens that read as their lowercase form by place of the stream, losses
        (nats) under both casings with and without the first feed-forward, and verdicts (arXiv
        2509.26235, Proposition 3). `values["lowers_case"]` is whether the lens shows it; None where
        that is open or cannot be asked.
    """
    first = landmarks(material.view.sublayers).first_feed
    samples = recased(material)
    read: dict[str, Read] = {}
    losses = None
    if samples is not None:
        read = tokens_read(material, samples[0])
        losses = losses_of(material, *samples, first)
    lowers = material.teacher.tokens.prompt.lowercase_question
    lens = _lens(read, first)
    notes = [f"Here the first feed-forward is {first}."] if first is not None else []
    if lowers:
        notes.append("This teacher's own prompt lowers questions; here it gets them cased as well.")
    if losses is not None:
        notes += poor_note(losses.averages.over_tokens(losses.cased)[0])
    return Finding(
        analysis="case",
        title="Case of questions",
        asks=_ASKS,
        method=_METHOD,
        examples=0 if losses is None else len(losses.cased),
        tables=(
            *(_rates(norm, found) for norm, found in read.items()),
            *(() if losses is None else (_runs(losses), _differences(losses))),
        ),
        charts=_charts(read),
        verdicts=(lens, *_judged_losses(losses)),
        notes=tuple(notes),
        values={"lowers_case": {"shown": True, "not shown": False}.get(lens.answer)},
    )


def _rates(norm: str, found: Read) -> Table:
    """Return what cased and other tokens read as at every place."""
    hits = found.hits
    rows: list[tuple[Cell, ...]] = [
        (
            place,
            *found.share(lowered, hits.cased),
            *found.share(kept, hits.cased),
            *found.share(kept, hits.caseless),
        )
        for place, lowered, kept in zip(hits.places, hits.lowered, hits.kept, strict=True)
    ]
    columns = ("cased: lowercase form", "cased: themselves", "without case: themselves")
    head = ("vectors behind", *(title for column in columns for title in (column, "low", "high")))
    caption = (
        f"What question tokens read as (shares), {norm}; n = {hits.cased.sum()} cased tokens "
        f"and {hits.caseless.sum()} without case, {len(set(found.documents))} documents"
    )
    return Table(caption, head, tuple(rows))


def _runs(losses: Losses) -> Table:
    """Return loss and perplexity of every run."""
    runs = {"as cased, whole model": losses.cased, "lower case, whole model": losses.lower}
    if losses.cased_cost is not None and losses.lower_cost is not None:
        runs["as cased, feed-forward skipped"] = losses.cased + losses.cased_cost
        runs["lower case, feed-forward skipped"] = losses.lower + losses.lower_cost
    rows: list[tuple[Cell, ...]] = []
    for run, values in runs.items():
        by_token = losses.averages.over_tokens(values)
        by_answer = losses.averages.over_answers(values)
        rows.append((run, *by_token, *by_answer, *perplexities(by_token)))
    columns = ("over answer tokens", "over questions", "perplexity")
    head = ("questions", *(title for column in columns for title in (column, "low", "high")))
    caption = f"Loss of the right answer (nats), and perplexity; {losses.averages.count}"
    return Table(caption, head, tuple(rows))


def _differences(losses: Losses) -> Table:
    """Return paired differences of losses."""
    rows = tuple(
        (name, *losses.averages.over_tokens(values), *losses.averages.over_answers(values))
        for name, values in losses.differences().values()
    )
    head = ("difference", "over answer tokens", "low", "high", "over questions", "low", "high")
    caption = f"Paired differences of losses (nats); {losses.averages.count}"
    return Table(caption, head, rows)


def _charts(read: Mapping[str, Read]) -> tuple[Chart, ...]:
    """Return the shares under the default norm at every place, if there are any."""
    series: list[Series] = []
    places: tuple[str, ...] = ()
    for found in list(read.values())[:1]:
        hits, places = found.hits, found.hits.places
        for name, values, chosen in (
            ("cased, as their lowercase form", hits.lowered, hits.cased),
            ("cased, as themselves", hits.kept, hits.cased),
            ("without case, as themselves", hits.kept, hits.caseless),
        ):
            y, low, high = zip(*(found.share(row, chosen) for row in values), strict=True)
            known = None not in low
            if chosen.any():
                series.append(Series(name, y, low if known else (), high if known else ()))
    if not series:
        return ()
    title = f"What question tokens read as ({next(iter(read))})"
    return (Chart(title, "bars", places, "vectors behind", "share of tokens", tuple(series)),)


def _lens(read: Mapping[str, Read], first: SubLayer | None) -> Verdict:
    """Judge what the lens sees of the first feed-forward."""
    claim, says, rule = _CLAIMS["lens"]
    found = read.get(next(iter(NORMS)))
    rise = None if found is None or first is None else found.rise(first)
    if found is None or first is None or rise is None:
        why = "no question has a cased token whose lowercase form is a token too"
        return cannot(claim, says, _PAPER, why if first else _NO_FEED, rule)
    behind = found.hits.places.index(first.name)
    in_front, after = (
        found.share(found.hits.lowered[place], found.hits.cased) for place in (behind - 1, behind)
    )
    here = (
        f"lowercase form in front of {first} {told(*in_front)}, behind it {told(*after)}, rise "
        f"{told(*rise)}; {counted(int(found.hits.cased.sum()), 'cased tokens', found.documents)}"
    )
    return Verdict(claim, says, _PAPER, here, judged(*rise[1:], _MOST), rule)


def _judged_losses(losses: Losses | None) -> tuple[Verdict, ...]:
    """Judge what the losses say."""
    gaps = {} if losses is None else losses.differences()
    verdicts = []
    for key in ("needed", "replaced", "neutral"):
        claim, says, rule = _CLAIMS[key]
        if losses is None or key not in gaps:
            why = _NO_FEED if losses is not None else "no prompt changes with its question's case"
            verdicts.append(cannot(claim, says, _PAPER, why, rule))
            continue
        name, values = gaps[key]
        gap = losses.averages.over_tokens(values)
        answer = {
            "needed": judged(*gap[1:], 0.0),
            "replaced": judged(*gap[1:], _CLOSE, above=False),
            "neutral": judged_within(*gap[1:], _CLOSE),
        }[key]
        here = f"{name}: {told(*gap, unit='nats')}; {losses.averages.count}"
        verdicts.append(Verdict(claim, says, _PAPER, here, answer, rule))
    return tuple(verdicts)
