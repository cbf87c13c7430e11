"""Intervals for means of scores, and for the difference of two models on the same questions.

Questions on one document are not independent, so the bootstraps draw documents, not questions: a
draw takes as many documents as there are, with replacement, and all questions of each. Its
statistic is the mean over the questions drawn, the interval's ends are percentiles of the draws
(Efron and Tibshirani, An Introduction to the Bootstrap, 1993).

The *paired* bootstrap (Koehn, EMNLP 2004) draws the same documents for both models: with
d_q = a_q - b_q it is the bootstrap of the mean of d. Wilson's interval serves plain shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitsearch.core.difference import Difference
from circuitsearch.core.errors import ConfigError, DataError

__all__ = ["bootstrap_interval", "paired_bootstrap", "wilson_interval"]

_TIE = 1e-12  # rounding of a sum of scores in [0, 1]; real differences of means are far larger


def bootstrap_interval(
    values: Sequence[float],
    clusters: Sequence[str | int],
    seed: int,
    level: float = 0.95,
    draws: int = 1000,
) -> tuple[float, float] | None:
    """Return a percentile interval of a mean by a bootstrap over clusters.

    Each draw takes as many clusters as there are, with replacement, and all values of each; its
    statistic is the mean of the values drawn. The order of the values does not matter.

    Args:
        values: One score per question.
        clusters: The document of each question.
        seed: Seed of the draws.
        level: Coverage, in (0, 1).
        draws: Number of draws.

    Returns:
        (low, high), or None with fewer than two clusters: one document says nothing about how
        documents differ, and an interval of width zero would claim certainty.

    Raises:
        DataError: If there are no values, a value is not finite, or the lengths differ.
        ConfigError: If `level` or `draws` is out of range.
    """
    means = _drawn_means(values, clusters, seed, level, draws)
    return None if means is None else _ends(means, level)


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[str | int],
    seed: int,
    level: float = 0.95,
    draws: int = 10_000,
) -> Difference:
    """Compare two models that answered the same questions.

    Args:
        first: One score in [0, 1] per question, of the first model; where it was trained with
            several seeds, the mean over them.
        second: The same of the second model, question by question.
        clusters: The document of each question.
        seed: Seed of the draws.
        level: Coverage, in (0, 1).
        draws: Number of draws.

    Returns:
        First minus second, with interval and share of draws that the first wins; those are None
        with fewer than two documents.

    Raises:
        DataError: If there are no scores, a score is not finite, or the lengths differ.
        ConfigError: If `level` or `draws` is out of range.
    """
    if len(first) != len(second):
        raise DataError(
            f"paired bootstrap: got {len(first)} and {len(second)} scores; give both models' "
            "scores of the same questions, in the same order"
        )
    paired = [float(a) - float(b) for a, b in zip(first, second, strict=True)]
    means = _drawn_means(paired, clusters, seed, level, draws)
    low, high = (None, None) if means is None else _ends(means, level)
    return Difference(
        first=math.fsum(first) / len(first),
        second=math.fsum(second) / len(second),
        mean=math.fsum(paired) / len(paired),
        low=low,
        high=high,
        wins=None if means is None else float((means > _TIE).mean()),
        questions=len(paired),
        documents=len({str(cluster) for cluster in clusters}),
    )


def _drawn_means(
    values: Sequence[float], clusters: Sequence[str | int], seed: int, level: float, draws: int
) -> NDArray[Any] | None:
    """Return [draws] the means of the draws, None with fewer than two clusters."""
    _check_level(level)
    if draws < 1:
        raise ConfigError(f"draws: got {draws!r}, allowed 1 or more")
    if len(values) != len(clusters) or not len(values):
        raise DataError(
            f"bootstrap: got {len(values)} values in {len(clusters)} clusters' rows; give one "
            "cluster per value, one value at least"
        )
    if not all(math.isfinite(value) for value in values):
        raise DataError(
            "bootstrap: a value is not finite; leave failed questions out or score them 0"
        )
    members: dict[str, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        members.setdefault(str(cluster), []).append(float(value))
    if len(members) < 2:
        return None
    names = sorted(members)
    sums = np.array([math.fsum(members[name]) for name in names])
    counts = np.array([len(members[name]) for name in names])
    count = len(names)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    means: NDArray[Any] = (drawn @ sums) / (drawn @ counts)
    return means


def _ends(means: NDArray[Any], level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a share of independent trials (JASA 22, 1927).

    Raises:
        DataError: If there is no trial, or successes are not between 0 and the trials.
        ConfigError: If `level` is not in (0, 1).
    """
    _check_level(level)
    if trials < 1 or not 0 <= successes <= trials:
        raise DataError(f"Wilson interval: got {successes} of {trials}, allowed 0..n of n >= 1")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    half = spread / (1 + z * z / trials)
    # at the ends centre and half are equal in exact arithmetic, not after rounding
    low = centre - half if successes > 0 else 0.0
    high = centre + half if successes < trials else 1.0
    return low, high


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"level: got {level!r}, allowed above 0 and below 1")
