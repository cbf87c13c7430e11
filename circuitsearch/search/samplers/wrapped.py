"""Optuna's own samplers with repair: TPE and NSGA-II, which know no budget.

Their wish, one bit per unit, is repaired before it becomes a trial: wanted units are taken in order
of score per cost (Gumbel noise decides without scores) as long as they fit, then the others. What
they learn from is the repaired plan, so their model never sees one that was not evaluated.

They run on a private study in memory that replays the history, so that a proposal stays a function
of the history: the generator is keyed anew for every proposal.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler

from circuitsearch.core.files import seed_from
from circuitsearch.search.knapsack import take
from circuitsearch.search.space import Bits, Space

from .base import FeasibleSampler, Objective
from .history import Array, History
from .prior import Prior

__all__ = ["NSGA2Sampler", "RepairedSampler", "TPERepairedSampler"]


class RepairedSampler(FeasibleSampler):
    """Base: replays the history into Optuna's sampler, asks it, repairs what it wants."""

    def __init__(
        self,
        space: Space,
        prior: Prior | None = None,
        seed: int = 0,
        objective: Objective = "single",
    ) -> None:
        """Prepare the private study; see `FeasibleSampler`."""
        super().__init__(space, prior, seed, objective)
        self._replayed: list[Bits] = []
        self._private = self._fresh()

    @abstractmethod
    def sampler(self, seed: int) -> BaseSampler:
        """Return Optuna's sampler with its generator keyed by `seed` (below 2^32)."""

    def candidates(
        self, history: History, rng: np.random.Generator, space: Space
    ) -> Iterator[Bits | None]:
        """Yield repaired wishes."""
        self._replay(history)
        while True:
            self._private.sampler = self.sampler(int(rng.integers(2**32)))
            trial = self._private.ask()
            wish = [trial.suggest_categorical(name, (0, 1)) for name in self.space.names]
            # Not evaluated yet: it must not count for the next wish, nor stay running.
            self._private.tell(trial, state=optuna.trial.TrialState.FAIL)
            yield self._repaired(np.array(wish), rng, space)

    def worths(self, history: History, rng: np.random.Generator) -> Array:
        """Return random worths of both signs."""
        return rng.standard_normal(len(self.space.units))

    def _repaired(self, wish: np.ndarray, rng: np.random.Generator, space: Space) -> Bits | None:
        """Return the feasible plan nearest to a wish, by order of taking."""
        scores = self.scores if self.scores is not None else np.zeros(len(wish))
        spread = float(scores.std()) or 1.0
        noisy = scores / spread + rng.gumbel(size=len(wish))
        order = np.lexsort((-noisy, -wish))
        return take(order.tolist(), space)

    def _replay(self, history: History) -> None:
        """Bring the private study up to the history."""
        known = [tuple(int(bit) for bit in plan) for plan in history.plans]
        if known[: len(self._replayed)] != self._replayed:
            # Another history than before: only tests and simulations do this.
            self._private, self._replayed = self._fresh(), []
        for place in range(len(self._replayed), len(known)):
            self._private.sampler = self.sampler(seed_from("replay", self.seed, place) % 2**32)
            self._private.enqueue_trial(dict(zip(self.space.names, known[place], strict=True)))
            trial = self._private.ask(
                {name: CategoricalDistribution((0, 1)) for name in self.space.names}
            )
            self._private.tell(trial, float(history.values[place]))
            self._replayed.append(known[place])

    def _fresh(self) -> optuna.Study:
        """Return an empty study in memory."""
        return optuna.create_study(direction="maximize", sampler=self.sampler(0))


class TPERepairedSampler(RepairedSampler):
    """Tree-structured Parzen estimator over the joint bits."""

    def sampler(self, seed: int) -> BaseSampler:
        """Return a TPE that models all bits jointly."""
        return TPESampler(seed=seed, n_startup_trials=5, multivariate=True)


class NSGA2Sampler(RepairedSampler):
    """NSGA-II, which with one objective is a genetic algorithm with elites."""

    def sampler(self, seed: int) -> BaseSampler:
        """Return an NSGA-II with generations of ten, for budgets of tens of trainings."""
        return NSGAIISampler(seed=seed, population_size=10)
