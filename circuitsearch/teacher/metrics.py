"""Scores of answers and document parses.

**ANLS** (Biten et al., arXiv 1905.13648; the metric of DocVQA): one minus the edit distance over
the longer length, 0 below a threshold, the best over the gold answers, averaged over questions.
The paper drops a similarity of exactly one half; the Robust Reading Competition's (RRC) script
keeps it. RRC parity is the default, `strict=True` gives the paper's form.

**nTED accuracy** and **field F1** score JSON parses; they live in `parses` and are named here too.

**Perplexity** is exp of a mean loss per token; `corpus_perplexity` says which mean.

**Intervals** live in `intervals` and are named here too.

Scores lie in [0, 1], never in percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from rapidfuzz.distance import Levenshtein

from circuitsearch.core.errors import ConfigError, DataError, raise_together

from .intervals import bootstrap_interval, paired_bootstrap, wilson_interval
from .parses import field_f1, nted_accuracy

__all__ = [
    "anls",
    "anls_by_id",
    "bootstrap_interval",
    "corpus_perplexity",
    "exact_match",
    "field_f1",
    "mean_anls",
    "normalised",
    "nted_accuracy",
    "paired_bootstrap",
    "perplexity",
    "wilson_interval",
]

Lengths = Literal["normalised", "raw"]


def normalised(text: str) -> str:
    """Return the text lower-cased, stripped, each run of white space one blank (RRC)."""
    return " ".join(text.lower().split())


def anls(
    prediction: str,
    golds: Sequence[str],
    tau: float = 0.5,
    strict: bool = False,
    lengths: Lengths = "normalised",
) -> float:
    """Return the average normalised Levenshtein similarity of one question.

    Args:
        prediction: The answer given.
        golds: The accepted answers; the best match counts.
        tau: Least similarity that keeps its value. (The paper's threshold on the *distance* is
            1 - tau; both are one half by default.)
        strict: Whether a similarity of exactly `tau` scores 0, as in the paper.
        lengths: What the distance is divided by: the lengths of the compared texts, or, as the
            RRC script has it, of the texts before white space is collapsed.

    Returns:
        A number in [0, 1]; 1 when both texts are empty.

    Raises:
        DataError: If there is no gold answer: such a question must be left out, not scored.
        ConfigError: If `tau` is not in [0, 1].
    """
    if not 0 <= tau <= 1:
        raise ConfigError(f"tau: got {tau!r}, allowed 0 to 1")
    if isinstance(golds, str):
        raise DataError(f"gold answers: got the text {golds!r}, allowed a list of texts")
    if not golds:
        raise DataError("gold answers: got none; leave the question out of the mean")
    best = max(_similarity(prediction, gold, lengths) for gold in golds)
    kept = best > tau if strict else best >= tau
    return best if kept else 0.0


def _similarity(prediction: str, gold: str, lengths: Lengths) -> float:
    ours, theirs = normalised(prediction), normalised(gold)
    distance = Levenshtein.distance(ours, theirs)
    if lengths == "raw":
        longest = max(len(prediction.upper()), len(gold.upper()))
    else:
        longest = max(len(ours), len(theirs))
    # lower-casing can lengthen a text beyond its raw length ("İ"), hence the lower bound
    return max(0.0, (longest - distance) / longest) if longest else 1.0


def mean_anls(
    predictions: Sequence[str],
    golds: Sequence[Sequence[str]],
    tau: float = 0.5,
    strict: bool = False,
    lengths: Lengths = "normalised",
) -> float:
    """Return the mean ANLS over questions; those without a gold answer are left out.

    Raises:
        DataError: If the lists differ in length, or no question has a gold answer.
    """
    if len(predictions) != len(golds):
        raise DataError(
            f"mean ANLS: got {len(predictions)} predictions for {len(golds)} questions; "
            "give one prediction per question, in the same order"
        )
    scores = [
        anls(prediction, accepted, tau, strict, lengths)
        for prediction, accepted in zip(predictions, golds, strict=True)
        if accepted
    ]
    if not scores:
        raise DataError("mean ANLS: no question has a gold answer; score a split with answers")
    return math.fsum(scores) / len(scores)


def anls_by_id(
    predictions: Mapping[str, str],
    golds: Mapping[str, Sequence[str]],
    tau: float = 0.5,
    strict: bool = False,
    lengths: Lengths = "normalised",
) -> dict[str, float]:
    """Return the ANLS of every question that has a gold answer, by question id.

    Raises:
        DataError: If the ids of predictions and questions differ; all of them together, before
            anything is scored.
    """
    problems = [f"no prediction for question {name!r}" for name in golds if name not in predictions]
    problems += [
        f"prediction for unknown question {name!r}" for name in predictions if name not in golds
    ]
    raise_together(problems, DataError, "ANLS")
    return {
        name: anls(predictions[name], accepted, tau, strict, lengths)
        for name, accepted in golds.items()
        if accepted
    }


def exact_match(prediction: str, golds: Sequence[str]) -> bool:
    """Say whether the answer equals a gold answer, case and white space aside.

    Raises:
        DataError: If there is no gold answer.
    """
    if isinstance(golds, str) or not golds:
        raise DataError(f"gold answers: got {golds!r}, allowed a list with at least one text")
    return normalised(prediction) in {normalised(gold) for gold in golds}


def perplexity(mean_nll: float) -> float:
    """Return exp of a mean negative log-likelihood per token in nats; inf when it overflows."""
    try:
        return math.exp(mean_nll)
    except OverflowError:
        return math.inf


def corpus_perplexity(losses: Sequence[float], tokens: Sequence[int]) -> float:
    """Return the perplexity over the answer tokens of a corpus: exp(sum of nll / sum of tokens).

    Every token weighs the same, so long answers weigh more than short ones (the default reading of
    Donut-MINT's perplexity, arXiv 2509.26235). exp of the mean of `losses` is the other reading:
    every question weighs the same.

    Args:
        losses: Mean loss of each answer, in nats per token.
        tokens: Number of tokens of each answer.

    Raises:
        DataError: If the lists differ in length, or there is no token.
    """
    if len(losses) != len(tokens) or sum(tokens) < 1:
        raise DataError(
            f"perplexity: got {len(losses)} losses and {len(tokens)} token counts with "
            f"{sum(tokens)} tokens together; give one count per loss, one token at least"
        )
    total = math.fsum(loss * count for loss, count in zip(losses, tokens, strict=True))
    return perplexity(total / sum(tokens))
