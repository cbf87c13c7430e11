"""Rank agreement of a statistic with measured effects, with all the ways it may be chance.

Spearman's correlation over heads has two samples behind it: the heads, few and given, and the
questions on which effects were measured. Fisher's interval with the variance 1.06 / (n - 3) of
Fieller, Hartley and Pearson (Biometrika 44, 1957) speaks about the first, a bootstrap of the
effects by document about the second; the interval here has the outer ends of both. The p-value is
that of a permutation of heads. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ...tables import draw_weights

__all__ = ["Agreement", "centred_ranks", "rank_agreement"]

_DRAWS, _PERMUTATIONS = 1000, 9999

_LEAST = 3
"""Heads below which an order says nothing."""


@dataclass(frozen=True)
class Agreement:
    """Spearman's correlation of a statistic with effects.

    Attributes:
        rho: the correlation.
        low: lower end of its 95 % interval; None with three heads or one document.
        high: upper end.
        p: two-sided p-value of a permutation of heads.
        n: number of heads.
    """

    rho: float
    low: float | None
    high: float | None
    p: float
    n: int


def rank_agreement(
    statistic: Sequence[float], effects: np.ndarray, documents: Sequence[str], seed: int
) -> Agreement | None:
    """Compare an order of heads with that of their effects.

    Args:
        statistic: [n] one number per head, larger for those that are thought to matter more.
        effects: [examples, n] effect of each head on each example.
        documents: [examples] document of each example.
        seed: of draws and permutations.

    Returns:
        None where no order is to be compared: fewer than three heads, or all alike.
    """
    ours, theirs = (
        centred_ranks(np.asarray(statistic)[None])[0],
        centred_ranks(effects.mean(axis=0)[None]),
    )
    n = len(ours)
    if n < _LEAST or not ours.any() or not theirs.any():
        return None
    rho = float(_correlations(ours, theirs)[0])
    shuffled = np.random.default_rng(seed).permuted(np.tile(theirs, (_PERMUTATIONS, 1)), axis=1)
    # ties with the correlation itself may differ in the last digit
    beyond = np.abs(_correlations(ours, shuffled)) >= abs(rho) - 1e-12
    p = (1 + int(beyond.sum())) / (1 + _PERMUTATIONS)
    low = high = None
    if n > _LEAST and len(set(documents)) > 1:
        weights = draw_weights(documents, _DRAWS, seed)
        drawn = _correlations(ours, centred_ranks(weights @ effects))
        ends = np.quantile(drawn, (0.025, 0.975))
        fisher = _fisher(rho, n)
        low, high = min(rho, fisher[0], float(ends[0])), max(rho, fisher[1], float(ends[1]))
    return Agreement(rho, low, high, p, n)


def centred_ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks along the last axis, centred; all zero where the values are alike."""
    ranks: np.ndarray = stats.rankdata(values, axis=-1)
    ranks -= ranks.mean(axis=-1, keepdims=True)
    return ranks


def _correlations(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return [k] correlations of centred ranks [n] with centred ranks [k, n]; 0 where alike."""
    norms = np.sqrt((ours**2).sum() * (theirs**2).sum(axis=1))
    found: np.ndarray = np.divide(theirs @ ours, norms, out=np.zeros(len(norms)), where=norms > 0)
    return found


def _fisher(rho: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval over heads; a perfect order counts as the one next to it."""
    most = 1 - 12 / (n * (n * n - 1))
    centre = math.atanh(min(max(rho, -most), most))
    half = float(stats.norm.ppf(0.975)) * math.sqrt(1.06 / (n - 3))
    return math.tanh(centre - half), math.tanh(centre + half)
