"""Linear Thompson sampling with the circuit scores as prior mean and a knapsack as the argmax.

A plan's quality is modelled as the sum of the worths of its units, y = x' theta + noise, and with m
evaluated plans as rows of X and the scores p:

    g = X p,   s = y'g / g'g                      scale from score to quality
    m0 = s p,  tau = s sd(p)                      prior theta ~ N(m0, tau^2 I)
    sigma = max(0.05 max|y|, sd(y - X m0) / 2 / max(1, sqrt(m / 20)), tau / 1000)
    Sigma = (I / tau^2 + X'X / sigma^2)^-1,  mu = Sigma (m0 / tau^2 + X'y / sigma^2)

A proposal draws theta from N(mu, 0.35^2 Sigma) and takes the greedy knapsack of theta that fills
the budget, wider draws follow when that plan was tried before. After 20 collisions the integer
program gives the best untried plan by mu, so the sampler visits the whole space before it stops.

*Trust region*: units do not simply add up, and a sum that fits all plans is best where plans are
alike. From the fifth result on theta is drawn towards the best plan x* so far,

    theta + 2 mean|mu| (x* - mean(x*)),

which wider draws loosen. Over free subsets of heads this is what finds more than the scores alone
(`results/search/free-heads.md`).

*Alternating hedge*: every second proposal uses a flat prior on the same data, an insurance against
misleading scores. The model has no intercept: quality must be a number whose zero means "nothing
works", such as ANLS. Sources: A Tutorial on Thompson Sampling (arXiv 1707.02038); BOCS (arXiv
1806.08838) for a Bayesian linear model, a draw and a combinatorial argmax in this form; TuRBO
(arXiv 1910.01739) for Thompson sampling inside a trust region.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from circuitsearch.search.knapsack import greedy
from circuitsearch.search.space import Bits, Space

from .base import FeasibleSampler
from .history import Array, History

__all__ = ["CircuitSampler", "posterior"]

_WIDTH = 0.35  # of the first draw, in standard deviations of the posterior
_WIDER = 0.2  # what every further draw adds
_PULL = 2.0  # towards the best plan, in mean sizes of a worth; 1 to 4 do about as well
_LOOSER = 0.9  # what a further draw leaves of the pull
_ENOUGH = 5  # results from which there is a best plan worth staying near


def posterior(plans: Array, values: Array, prior: Array, spread: float) -> tuple[Array, Array]:
    """Return mean and covariance of the units' worths given evaluated plans.

    Args:
        plans: bits, shape [m, units]; m may be 0.
        values: qualities, shape [m], larger is better, 0 = nothing works.
        prior: worths expected beforehand up to a common positive scale; shape [units].
        spread: standard deviation of the worths around `prior`, in its unit; above 0.

    Returns:
        Mean, shape [units], and covariance, shape [units, units].
    """
    units = len(prior)
    if len(values) == 0:
        return prior, (0.5 * spread) ** 2 * np.eye(units)
    scale = _scale(plans, values, prior)
    if scale <= 0:
        # The scores contradict the measurements in sign: no scale fits, so they say nothing.
        prior = np.full(units, np.abs(prior).mean() or 1.0)
        # Where nothing works at all (every value 0) any small scale will do.
        scale = max(_scale(plans, values, prior), 1e-6)
    tau = scale * spread
    residual = values - plans @ (scale * prior)
    shrink = max(1.0, np.sqrt(len(values) / 20))
    sigma = max(0.05 * np.abs(values).max(), 0.5 * residual.std() / shrink, 1e-3 * tau)
    covariance = np.linalg.inv(np.eye(units) / tau**2 + plans.T @ plans / sigma**2)
    mean = covariance @ (scale * prior / tau**2 + plans.T @ values / sigma**2)
    return mean, covariance


def _scale(plans: Array, values: Array, prior: Array) -> float:
    """Return the factor that fits predicted to measured qualities best."""
    predicted = plans @ prior
    size = float(predicted @ predicted)
    return float(values @ predicted) / size if size > 0 else 0.0


class CircuitSampler(FeasibleSampler):
    """Linear Thompson sampling with the circuit scores as prior mean (module docstring)."""

    def candidates(
        self, history: History, rng: np.random.Generator, space: Space
    ) -> Iterator[Bits | None]:
        """Yield greedy knapsacks of draws from the posterior, ever wider and less near the best."""
        mean, covariance = self._posterior(history)
        root = np.linalg.cholesky(covariance)
        if len(history.values) == 0:
            yield greedy(mean, space)
        near = np.zeros(len(mean))
        if len(history.values) >= _ENOUGH:
            best = history.plans[int(np.argmax(history.values))]
            near = _PULL * np.abs(mean).mean() * (best - best.mean())
        width = _WIDTH
        while True:
            yield greedy(mean + near + width * (root @ rng.standard_normal(len(mean))), space)
            width += _WIDER
            near = _LOOSER * near

    def worths(self, history: History, rng: np.random.Generator) -> Array:
        """Return the posterior mean."""
        return self._posterior(history)[0]

    def _posterior(self, history: History) -> tuple[Array, Array]:
        """Return the posterior under the scores, or under the flat prior at every other plan."""
        units = len(self.space.units)
        scores = np.ones(units) if self.scores is None else self.scores
        # In units of the mean size; a floor on the spread lets equal scores be corrected too.
        scores = scores / (np.abs(scores).mean() or 1.0)
        spread = max(float(scores.std()), 0.5)
        if len(history.taken) % 2 == 1 or not scores.any():
            scores = np.full(units, np.abs(scores).mean() or 1.0)
        return posterior(history.plans, history.values, scores, spread)
