"""Samplers that learn nothing: what every other one has to beat."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from circuitsearch.core.errors import ConfigError
from circuitsearch.search.knapsack import greedy, take
from circuitsearch.search.space import Bits, Space

from .base import FeasibleSampler, Goal
from .history import Array, History
from .prior import Prior

__all__ = ["PriorSampler", "RandomSampler", "random_plan"]


def random_plan(space: Space, rng: np.random.Generator) -> Bits | None:
    """Return a plan filled up in random order until nothing more fits; None when none is."""
    order = rng.permutation(len(space.units)).tolist()
    stand_ins = [unit for unit in order if space.units[unit].alone]
    # These cost little or nothing and would be in every plan: each is offered half of the time.
    left = {unit for unit in stand_ins if rng.random() < 0.5}
    found = take([unit for unit in order if unit not in left], space)
    return take(order, space) if found is None else found


class RandomSampler(FeasibleSampler):
    """Random feasible fill, the honest baseline: units in random order, as long as they fit."""

    def candidates(
        self, history: History, rng: np.random.Generator, space: Space
    ) -> Iterator[Bits | None]:
        """Yield plans filled up in random order."""
        while True:
            yield random_plan(space, rng)

    def worths(self, history: History, rng: np.random.Generator) -> Array:
        """Return random worths of both signs, so that plans which leave room are reached too."""
        return rng.standard_normal(len(self.space.units))


class PriorSampler(FeasibleSampler):
    """The scores and nothing learnt: greedy knapsacks of scores with Gumbel noise.

    The baseline for "keep what scores best"; the first plan is the scores' own knapsack.
    """

    def __init__(
        self,
        space: Space,
        prior: Prior | None = None,
        seed: int = 0,
        goal: Goal = "single",
    ) -> None:
        """Prepare the sampler; see `FeasibleSampler`.

        Raises:
            ConfigError: there are no scores, or they do not cover the units.
            InfeasibleError: no legal student fits the budget.
        """
        super().__init__(space, prior, seed, goal)
        if self.scores is None:
            raise ConfigError(
                "search.sampler: 'prior' needs scores, but none were given; run the discovery "
                "stage first, or choose 'random'"
            )
        self._worths: Array = self.scores

    def candidates(
        self, history: History, rng: np.random.Generator, space: Space
    ) -> Iterator[Bits | None]:
        """Yield greedy knapsacks, the first without noise, then with ever more."""
        yield greedy(self._worths, space)
        width = 0.5 * (float(self._worths.std()) or 1.0)
        while True:
            noise = rng.gumbel(size=len(self._worths))
            yield greedy(self._worths + width * noise, space)
            width *= 1.1

    def worths(self, history: History, rng: np.random.Generator) -> Array:
        """Return the scores."""
        return self._worths
