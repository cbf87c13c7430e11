"""What the analyses share: intervals drawn by document, their wording, and the verdict's rule.

Questions about one document are not independent, so every interval draws documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.files import content_hash
from circuitsearch.core.findings import Answer, Verdict
from circuitsearch.teacher.intervals import bootstrap_interval, wilson_interval
from circuitsearch.teacher.metrics import perplexity

if TYPE_CHECKING:
    from circuitsearch.discovery.sample import Sample

__all__ = [
    "Averages",
    "Interval",
    "Landmarks",
    "cannot",
    "counted",
    "judged",
    "judged_within",
    "landmarks",
    "mean_interval",
    "perplexities",
    "poor_note",
    "share_interval",
    "told",
    "without_end",
]

Values = Sequence[float] | NDArray[np.generic]

_POOR = 10
"""Perplexity of the right answer above which a teacher counts as not able to read the pages."""

Interval = tuple[float, float | None, float | None]
"""Mean, and low and high end of its 95 % interval; the ends are None with a single document."""


def mean_interval(values: Values, documents: Sequence[str], seed: int) -> Interval:
    """Return (mean, low, high), a 95 % bootstrap interval that draws documents.

    Args:
        values: [n] one number per example.
        documents: [n] document of each example.
        seed: of the draws; equal seeds and documents draw alike, so differences stay paired.

    Returns:
        low and high are None with a single document, which says nothing about others.

    Raises:
        DataError: there is no value, or one is not finite.
    """
    numbers = [float(value) for value in values]
    ends = bootstrap_interval(numbers, documents, seed)
    low, high = (None, None) if ends is None else ends
    return math.fsum(numbers) / len(numbers), low, high


def share_interval(hits: Values, documents: Sequence[str], seed: int) -> Interval:
    """Return (share, low, high) of yes-or-no values, safe at shares of 0 and 1.

    The ends are the outer ones of Wilson's interval and of the bootstrap by document: Wilson takes
    questions of one page as independent, and the bootstrap has no width where all values agree.

    Args:
        hits: [n] of bool, or 0 and 1.
        documents: [n] document of each.
        seed: of the draws.

    Raises:
        DataError: there is no value.
    """
    share, low, high = mean_interval(hits, documents, seed)
    if low is None or high is None:
        return share, low, high
    wilson = wilson_interval(round(share * len(hits)), len(hits))
    return share, min(low, wilson[0]), max(high, wilson[1])


@dataclass(frozen=True)
class Averages:
    """The two means that a published perplexity may stand for, over the questions of a sample.

    Attributes:
        documents: [n] document of each question.
        tokens: [n] answer tokens of each question, closing tags included.
        seed: of the bootstrap's draws, the same for all means, so that differences stay paired.
    """

    documents: tuple[str, ...]
    tokens: tuple[int, ...]
    seed: int

    @classmethod
    def of(cls, sample: Sample, seed: int) -> Averages:
        """Return the averages of a sample's questions."""
        tokens = tuple(len(row.ids) - row.prompt for row in sample.rows)
        return cls(sample.documents, tokens, seed)

    @property
    def count(self) -> str:
        """How many questions and documents, in words."""
        return counted(len(self.documents), "questions", self.documents)

    def over_tokens(self, values: Values) -> Interval:
        """Return (mean, low, high) with every answer token weighing the same.

        Args:
            values: [n] mean over the answer tokens of each question.
        """
        # a value repeated once per token: the mean of a draw is then the ratio of its sums
        repeated = np.repeat(values, self.tokens)
        return mean_interval(repeated, np.repeat(self.documents, self.tokens).tolist(), self.seed)

    def over_answers(self, values: Values) -> Interval:
        """Return (mean, low, high) with every question weighing the same."""
        return mean_interval(values, self.documents, self.seed)


def perplexities(interval: Interval) -> tuple[float | None, float | None, float | None]:
    """Return exp of a mean loss and of its ends; None where a float cannot hold it."""
    found = [None if end is None else perplexity(end) for end in interval]
    mean, low, high = (v if v is None or math.isfinite(v) else None for v in found)
    return mean, low, high


def without_end(sample: Sample, end: Sequence[int]) -> Sample | None:
    """Return the sample with answers that stop in front of the closing tags.

    A published perplexity may count the tags or not. Answers that are empty without them are left
    out; None when an answer ends otherwise, or when none is left.

    Args:
        sample: the questions.
        end: tokens that close every answer.
    """
    closing = tuple(end)
    if not closing or any(row.ids[-len(closing) :] != closing for row in sample.rows):
        return None
    cut = [replace(row, ids=row.ids[: -len(closing)]) for row in sample.rows]
    left = [i for i, row in enumerate(cut) if len(row.ids) > row.prompt]
    if not left:
        return None
    return replace(
        sample,
        rows=tuple(cut[i] for i in left),
        documents=tuple(sample.documents[i] for i in left),
        fingerprint=content_hash([sample.fingerprint, "without closing tags"]),
    )


def told(
    mean: float | None, low: float | None, high: float | None, digits: int = 2, unit: str = ""
) -> str:
    """Return a number with its interval as words, e.g. `0.12 (0.08 to 0.15) nats`."""
    if mean is None:
        return "beyond what can be written"
    ends = "" if low is None or high is None else f" ({low:z.{digits}f} to {high:z.{digits}f})"
    return f"{mean:z.{digits}f}{ends}{unit and f' {unit}'}{'' if ends else ', without an interval'}"


def counted(n: int, what: str, documents: Sequence[str] = ()) -> str:
    """Return how many, e.g. `n = 118 questions about 40 documents`."""
    pages = len(set(documents))
    about = f" about {pages} document{'' if pages == 1 else 's'}" if documents else ""
    return f"n = {n} {what}{about}"


def judged(low: float | None, high: float | None, bound: float, above: bool = True) -> Answer:
    """Return whether a number is above (or below) a bound: `shown`, `not shown` or `open`.

    Shown if the whole interval is strictly on the claimed side, not shown if none of it is, open
    otherwise and without an interval.
    """
    if low is None or high is None:
        return "open"
    if not above:
        low, high, bound = -high, -low, -bound
    if low > bound:
        return "shown"
    return "not shown" if high <= bound else "open"


def judged_within(low: float | None, high: float | None, bound: float) -> Answer:
    """Return whether a number lies between -bound and bound, by the rule of `judged`."""
    if low is None or high is None:
        return "open"
    if -bound < low and high < bound:
        return "shown"
    return "not shown" if low >= bound or high <= -bound else "open"


def poor_note(loss: float) -> tuple[str, ...]:
    """Return a note on pages that the teacher can hardly read, for a clean loss in nats per token.

    Where right answers are no likelier than others, what a sub-layer does for them shows little.
    """
    if loss <= math.log(_POOR):
        return ()
    return (
        f"The teacher predicts the right answers poorly here (perplexity {math.exp(loss):.0f}, "
        f"above {_POOR}): effects and verdicts say little about how it answers pages that it can "
        "read.",
    )


@dataclass(frozen=True)
class Landmarks:
    """The sub-layers that the published claims are about, None where the decoder lacks one.

    Attributes:
        first_feed: first feed-forward, M0.
        last_cross: last cross-attention, C3 in Donut.
        feed_behind: first feed-forward behind it, M3 in Donut.
    """

    first_feed: SubLayer | None
    last_cross: SubLayer | None
    feed_behind: SubLayer | None


def landmarks(sublayers: Sequence[SubLayer]) -> Landmarks:
    """Find them among the sub-layers that are present, given in execution order."""
    feeds = [s for s in sublayers if s.kind is Kind.FEED]
    crosses = [s for s in sublayers if s.kind is Kind.CROSS]
    last = crosses[-1] if crosses else None
    behind = [s for s in feeds if last is not None and s > last]
    return Landmarks(feeds[0] if feeds else None, last, behind[0] if behind else None)


def cannot(claim: str, says: str, paper: str, why: str, rule: str) -> Verdict:
    """Return the verdict on a claim that this teacher or these pages give no way to ask."""
    return Verdict(claim, says, paper, why, "cannot be asked", rule)
