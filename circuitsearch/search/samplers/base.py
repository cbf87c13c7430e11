"""What all samplers share: every proposal is feasible, new, and a function of the history.

All are Optuna samplers over one categorical {0, 1} per unit, named after the unit, and all are
*stateless*: a proposal depends on the study's history alone, and the generator is keyed by the
study's seed and the number of plans taken so far. A study that is stopped, killed and resumed
therefore proposes what the uninterrupted one would have proposed, without any state file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from functools import cached_property
from typing import Any, Literal

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from circuitsearch.core.errors import CircuitSearchError, ConfigError
from circuitsearch.core.files import seed_from
from circuitsearch.search.knapsack import solve, tie_broken
from circuitsearch.search.space import Bits, Space

from .history import Array, History
from .prior import Prior

__all__ = ["FeasibleSampler", "Goal", "SpaceExhaustedError"]

Goal = Literal["single", "pareto"]
_DRAWS = 20  # draws before the best untried plan is worked out
_LISTED = 4096
"""Spaces of so many plans are listed; of larger ones the integer program finds the best plan."""


class SpaceExhaustedError(CircuitSearchError):
    """Every feasible plan has been tried: a normal end of a search."""

    exit_code = 0


class FeasibleSampler(BaseSampler, ABC):
    """Base of the samplers: the part that keeps every proposal feasible and new.

    A subclass gives an endless stream of candidate plans and the worths by which the integer
    program chooses when the stream only repeats what was tried.
    """

    def __init__(
        self,
        space: Space,
        prior: Prior | None = None,
        seed: int = 0,
        goal: Goal = "single",
    ) -> None:
        """Prepare a sampler; it keeps no state that a proposal depends on.

        Args:
            space: the feasible plans.
            prior: what is known beforehand.
            seed: the study's seed.
            goal: `single` looks for the best plan within the budget; `pareto` for the best
                at every cost below it: each proposal draws a share of the budget to stay within.

        Raises:
            ConfigError: the prior does not cover the units.
            InfeasibleError: no legal student fits the budget.
        """
        space.check()
        self.space = space
        self.prior = prior or Prior()
        self.scores = self.prior.array(space)
        self.seed = seed
        self.goal = goal

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return one categorical {0, 1} per unit."""
        return {name: CategoricalDistribution((0, 1)) for name in self.space.names}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the next plan's parameters.

        Raises:
            SpaceExhaustedError: every feasible plan has been tried.
            ConfigError: the study does not maximise one number.
        """
        if study.directions != [StudyDirection.MAXIMIZE]:
            raise ConfigError("These samplers maximise one quality: direction must be 'maximize'")
        trials = study.get_trials(deepcopy=False)
        history = History.read(trials, self.space.names, trial.number)
        return dict(zip(self.space.names, self.propose(history), strict=True))

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Refuse: a bit chosen alone could break the budget.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"Parameter {param_name!r} is not a unit of the search space; allowed are "
            f"{', '.join(self.space.names)}"
        )

    def propose(self, history: History) -> Bits:
        """Return a feasible plan that was never tried.

        Raises:
            SpaceExhaustedError: there is none left.
        """
        rng = np.random.default_rng(seed_from("sampler", self.seed, len(history.taken)))
        space = self._within_reach(rng) if self.goal == "pareto" else self.space
        candidates = self.candidates(history, rng, space)
        for _ in range(_DRAWS):
            bits = next(candidates, None)
            if bits is not None and bits not in history.taken:
                return bits
        best = self._best_untried(self.worths(history, rng), history.taken)
        if best is None:
            raise SpaceExhaustedError(
                f"All {self.space.count()} feasible plans have been tried; the search is complete"
            )
        return best

    def _best_untried(self, worths: Array, taken: Collection[Bits]) -> Bits | None:
        """Return the untried plan of largest worth; None when every feasible plan was tried.

        A space that is small enough is listed once: a program with a cut per tried plan takes a
        quarter of a second when a few hundred are tried.
        """
        listed = self._listed
        if listed is None:
            return solve(worths, self.space, sorted(taken))
        order = np.argsort(-(listed @ tie_broken(worths)), kind="stable")
        plans = (tuple(map(int, listed[row])) for row in order)
        return next((bits for bits in plans if bits not in taken), None)

    @cached_property
    def _listed(self) -> Array | None:
        """Every feasible plan, [plans, units]; None when they are too many to list."""
        if self.space.exceeds(_LISTED):
            return None
        rows = [self.space.bits(plan) for plan in self.space.enumerate()]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.space.units))

    def _within_reach(self, rng: np.random.Generator) -> Space:
        """Return the space under a random share of its budget that some legal student meets."""
        least = next(p for p in range(1, 101) if self.space.within(p).possible())
        return self.space.within(int(rng.integers(least, 101)))

    @abstractmethod
    def candidates(
        self, history: History, rng: np.random.Generator, space: Space
    ) -> Iterator[Bits | None]:
        """Yield plans that are feasible in `space`, tried or not; later ones may stray further.

        Args:
            history: what is known of the study.
            rng: the proposal's own generator.
            space: the sampler's space, or the same under a part of its budget.
        """

    @abstractmethod
    def worths(self, history: History, rng: np.random.Generator) -> Array:
        """Return the worths by which the best untried plan is chosen; shape [units]."""
