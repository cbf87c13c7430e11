"""Thompson sampling over plans that a cheap judge has ranked (the elastic teacher).

The judge's normal score z(x) of a plan (`prior.ranked_bits`) carries most of what is known before
any training; what it gets wrong is a worth per unit, learnt from the trainings:

    y = a + b z(x) + x' theta + noise,   b ~ N(b0, b0^2),  theta ~ N(0, tau^2 I)

with b0 and tau chosen by marginal likelihood on a small grid once there are five results, and an
uninformative a. A proposal draws (a, b, theta) from the posterior, narrowed as in `thompson`, and
takes the best untried plan of the ranking. Plans outside the ranking follow when it is used up, by
the integer program over theta and the ranking's own fit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from circuitsearch.core.errors import ConfigError
from circuitsearch.search.space import Bits, Space

from .base import FeasibleSampler, Goal
from .history import Array, History
from .prior import Prior, ranked_bits

__all__ = ["RankedSampler", "regression"]

_SLOPES = (0.02, 0.05, 0.1, 0.2)  # quality per standard deviation of the judge's normal score
_SPREADS = (0.01, 0.03, 0.1)  # standard deviation of what a unit adds to that, in quality
_NOISE = 0.02  # of a measured quality: another seed of the training, other pages
_ENOUGH = 5  # results from which slope and spread are chosen by what explains them best


class RankedSampler(FeasibleSampler):
    """The ranking first, corrected by what the trainings say (module docstring)."""

    def __init__(
        self,
        space: Space,
        prior: Prior | None = None,
        seed: int = 0,
        goal: Goal = "single",
    ) -> None:
        """Prepare the sampler; see `FeasibleSampler`.

        Raises:
            ConfigError: there is no ranking.
            InfeasibleError: no legal student fits the budget.
        """
        super().__init__(space, prior, seed, goal)
        if not self.prior.ranking:
            raise ConfigError(
                "search.sampler: 'elastic' needs the ranking of plans under the elastic teacher; "
                "set elastic.steps above 0, or choose another sampler"
            )
        bits, scores = ranked_bits(space, self.prior)
        self._plans: list[Bits] = [tuple(row) for row in bits.astype(int).tolist()]
        self._place = {bits: at for at, bits in enumerate(self._plans)}
        self._features = np.column_stack([np.ones(len(bits)), scores, bits - bits.mean(axis=0)])

    def candidates(
        self, history: History, rng: np.random.Generator, space: Space
    ) -> Iterator[Bits | None]:
        """Yield the ranking's best untried plan under each draw, ever wider."""
        free = np.array([bits not in history.taken for bits in self._plans])
        if space is not self.space:
            free &= np.array([min(space.remaining(b), default=0) >= 0 for b in self._plans])
        if not free.any():
            return
        mean, covariance = self._posterior(history)
        root = np.linalg.cholesky(covariance)
        for step in itertools.count():
            width = 0.0 if step == 0 and not len(history.values) else 0.35 + 0.2 * step
            drawn = self._features @ (mean + width * (root @ rng.standard_normal(len(mean))))
            yield self._plans[int(np.argmax(np.where(free, drawn, -np.inf)))]

    def worths(self, history: History, rng: np.random.Generator) -> Array:
        """Return what units add by the ranking's fit and by the trainings."""
        mean, _ = self._posterior(history)
        fit = self.prior.fitted(self.space)
        worths: Array = mean[2:] + (0.0 if fit is None else mean[1] * fit)
        return worths

    def _posterior(self, history: History) -> tuple[Array, Array]:
        """Return mean and covariance of (a, b, theta), the prior chosen by what explains most."""
        places = [self._place.get(bits) for bits in map(tuple, history.plans.astype(int).tolist())]
        known = np.array([place is not None for place in places], dtype=bool)
        rows = self._features[[place for place in places if place is not None]]
        values = history.values[known]
        options = [(slope, spread) for slope in _SLOPES for spread in _SPREADS]
        if len(values) < _ENOUGH:
            options = [(0.1, 0.03)]
        gram, moments = rows.T @ rows, rows.T @ values
        fits = [regression(gram, moments, slope, spread) for slope, spread in options]
        _, mean, covariance = max(fits, key=lambda fit: fit[0])
        return mean, covariance


def regression(
    gram: Array, moments: Array, slope: float, spread: float
) -> tuple[float, Array, Array]:
    """Return log marginal likelihood, up to what the data alone give, posterior mean, covariance.

    The parameters are w = (a, b, theta), the data X w + noise = y. It costs units^3, however many
    plans were measured: the matrix determinant lemma turns the likelihood's [m, m] covariance into
    the parameters' precision. Left out of the likelihood is what no prior changes,
    -(y'y / noise^2 + m log(2 pi noise^2)) / 2.

    Args:
        gram: X'X, shape [2 + units, 2 + units].
        moments: X'y, shape [2 + units].
        slope: mean and standard deviation of b.
        spread: standard deviation of each theta.
    """
    expected = np.zeros(len(moments))
    expected[0], expected[1] = 0.5, slope
    variance = np.full(len(moments), spread**2)
    variance[0], variance[1] = 1.0, slope**2
    left = (moments - gram @ expected) / _NOISE**2  # X'r / noise^2 of the residuals r
    misfit = expected @ (gram @ expected - 2 * moments) / _NOISE**2
    precision = np.diag(1 / variance) + gram / _NOISE**2
    covariance = np.linalg.inv(precision)
    covariance = 0.5 * (covariance + covariance.T)
    _, size = np.linalg.slogdet(precision)
    likelihood = -0.5 * float(misfit - left @ covariance @ left + size + np.log(variance).sum())
    return likelihood, expected + covariance @ left, covariance
