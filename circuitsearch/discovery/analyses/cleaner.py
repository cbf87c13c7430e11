"""What the last feed-forward is for (Donut-MINT, arXiv 2509.26235, Figure 5, Proposition 2).

Figure 5 follows the first token of each answer through runs in which the feed-forward, or all that
stood in the stream in front of the cross-attention, is left out (`measures.cleaner`).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from circuitsearch.core.findings import Cell, Chart, Finding, Series, Table, Verdict
from circuitsearch.teacher.metrics import perplexity

from .material import Material
from .measures.cleaner import ALONE, CLEAN, HEADS, SETS, SKIPPED, Part, measured_sets
from .shared import (
    Interval,
    cannot,
    judged,
    judged_within,
    landmarks,
    mean_interval,
    perplexities,
    poor_note,
    share_interval,
    told,
)

__all__ = ["cleaner_analysis"]

_DIFFERENCES = ((ALONE, CLEAN), (SKIPPED, CLEAN), (SKIPPED, ALONE), (HEADS, CLEAN))
_THRESHOLDS = tuple(float(t) for t in np.logspace(0, 4, 33))
_CLOSE = 0.05
"""Nats up to which two mean losses count as nearly the same: 5 % of perplexity."""

_ASKS = (
    "The last cross-attention is said to fetch the answer from the page; it adds it to a running "
    "vector that still holds all that earlier sub-layers left there, and a feed-forward follows. "
    "Does that feed-forward work something out, or does it only sweep the leftovers away? If it "
    "sweeps, a student can leave it out and let the cross-attention's write replace the vector."
)
_METHOD = (
    "The first token of each answer, under the right question and page, in four runs: as the model "
    "is (clean); without the feed-forward; with the cross-attention's write alone, so that what "
    "stood there before is removed and the feed-forward skipped; and with that write as it is in "
    "front of the output projection. The source does not say which side of the projection it "
    "takes; only behind it does the write lie in the vector's space, which is the default and "
    "judged. The final norm is applied in all runs. Perplexity is that of the token, per question; "
    "the curves tell how many questions stay below each threshold. Done on two sets of documents. "
    "Intervals: 95 %, bootstrap over documents, for shares widened to Wilson's."
)
_SAYS = {
    ALONE: "The last cross-attention's write alone answers as well as the whole model.",
    SKIPPED: "Without the feed-forward behind it, the model answers worse.",
}
_PAPER = {
    ALONE: "the curves of the clean run and of the write alone nearly coincide",
    SKIPPED: "the curve without the feed-forward lies lower; one sentence reads as if it did not",
}
_RULES = {
    ALONE: (
        "mean loss of the first answer token with the write alone minus clean: shown if its whole "
        f"interval lies within {_CLOSE} nats of 0, not shown if it lies wholly outside, open "
        "otherwise"
    ),
    SKIPPED: (
        "mean loss of the first answer token without the feed-forward minus clean: shown if its "
        "whole interval is above 0, not shown if it is at or below 0, open otherwise"
    ),
}


def cleaner_analysis(material: Material) -> Finding:
    """Ask whether the feed-forward behind the last cross-attention only clears the stream.

    Args:
        material: teacher and pages; `pages` and `others` are measured apart.

    Returns:
        Losses (nats) and perplexities of the first answer token under each run, paired
        differences, and the shares of questions below perplexity thresholds, with verdicts on both
        sets (arXiv 2509.26235, Figure 5 and Proposition 2). `values["alone_as_good"]` is whether
        the write alone does as well as the whole, or better, on every set; None where that is open.
    """
    marks = landmarks(material.view.sublayers)
    parts = measured_sets(material, marks)
    notes = (
        f"Here the cross-attention is {marks.last_cross} and the feed-forward {marks.feed_behind}.",
        "Where the write alone does worse than the clean run, what earlier sub-layers left in the "
        "vector is still used for the answer.",
        *poor_note(max((float(p.losses[CLEAN].mean()) for p in parts.values()), default=0.0)),
    )
    return Finding(
        analysis="cleaner",
        title="The last feed-forward as a cleaner",
        asks=_ASKS,
        method=_METHOD,
        examples=sum(len(part.documents) for part in parts.values()),
        tables=tuple(table for part in parts.values() for table in _tables(part)),
        charts=tuple(_chart(part) for part in parts.values()),
        verdicts=tuple(verdict for name in SETS for verdict in _verdicts(name, parts.get(name))),
        notes=notes if parts else (),
        values={
            "alone_as_good": _as_good(parts.values()),
            "losses": {
                part.name: {run: float(values.mean()) for run, values in part.losses.items()}
                for part in parts.values()
            },
        },
    )


def _tables(part: Part) -> tuple[Table, Table]:
    """Return losses by run, and paired differences with what the feed-forward removes."""
    rows: list[tuple[Cell, ...]] = []
    for run, values in part.losses.items():
        mean = mean_interval(values, part.documents, part.seed)
        median = perplexity(float(np.median(values)))
        rows.append((run, *mean, *perplexities(mean), median if np.isfinite(median) else None))
    head = ("run", "loss", "low", "high", "perplexity", "low", "high", "median perplexity")
    losses = Table(
        f"First answer token, {part.name}: loss (nats) and its perplexity; {part.count}",
        head,
        tuple(rows),
    )
    differences: list[tuple[Cell, ...]] = [
        (f"{run} - {other}", *part.difference(run, other))
        for run, other in _DIFFERENCES
        if run in part.losses
    ]
    removed = mean_interval(part.removed, part.documents, part.seed)
    differences.append(("share of the earlier vector that the feed-forward removes", *removed))
    caption = f"Paired differences of losses (nats), {part.name}, and a share; {part.count}"
    return losses, Table(caption, ("quantity", "mean", "low", "high"), tuple(differences))


def _chart(part: Part) -> Chart:
    """Return the share of questions below each perplexity threshold, by run."""
    series = []
    for run, values in part.losses.items():
        shares = [
            share_interval(values <= np.log(threshold), part.documents, part.seed)
            for threshold in _THRESHOLDS
        ]
        y, low, high = zip(*shares, strict=True)
        known = None not in low
        series.append(Series(run, y, low if known else (), high if known else ()))
    return Chart(
        f"First answer token, {part.name}",
        "lines",
        _THRESHOLDS,
        "perplexity threshold",
        "share of questions at or below it",
        tuple(series),
        log_x=True,
    )


def _as_good(parts: Collection[Part]) -> bool | None:
    """Return whether the write alone costs less than `_CLOSE` nats on every set."""
    answers = [judged(*p.difference(ALONE, CLEAN)[1:], _CLOSE, above=False) for p in parts]
    if "not shown" in answers:
        return False
    return True if answers and set(answers) == {"shown"} else None


def _verdicts(name: str, part: Part | None) -> tuple[Verdict, Verdict]:
    """Judge both claims on one set of documents."""
    claim = f"Proposition 2 ({name})"
    if part is None:
        why = (
            f"the {name} has no question, or the decoder no cross-attention with a feed-forward "
            "behind it"
        )
        first, second = (
            cannot(claim, _SAYS[run], _PAPER[run], why, _RULES[run]) for run in (ALONE, SKIPPED)
        )
        return first, second
    alone, skipped = part.difference(ALONE, CLEAN), part.difference(SKIPPED, CLEAN)
    first, second = (
        Verdict(claim, _SAYS[run], _PAPER[run], _here(part, run, gap), answer, _RULES[run])
        for run, gap, answer in (
            (ALONE, alone, judged_within(*alone[1:], _CLOSE)),
            (SKIPPED, skipped, judged(*skipped[1:], 0.0)),
        )
    )
    return first, second


def _here(part: Part, run: str, gap: Interval) -> str:
    """Say what one run costs."""
    clean, other = (float(part.losses[name].mean()) for name in (CLEAN, run))
    return (
        f"{run} {other:.2f} nats, clean {clean:.2f}, difference {told(*gap, unit='nats')}; "
        f"{part.count}"
    )
