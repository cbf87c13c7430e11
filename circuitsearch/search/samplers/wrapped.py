"""Optuna's own samplers with repair: TPE and NSGA-II, which know no budget.

Their wish, one bit per unit, is repaired before it becomes a trial: wanted units are taken in order
of score per cost (Gumbel noise decides without scores) as long as they fit, then the others. What
they learn from is the repaired plan, so their model never sees one that was not evaluated.

They run on a private study in memory that replays the history, so that a proposal stays a function
of the history: the generator is keyed anew for every proposal. What they would find out by going
through all trials at every proposal, which parameters there are and what they were, they are told.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import optuna
import scipy.special
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import NSGAIISampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from circuitsearch.search.knapsack import take
from circuitsearch.search.space import Bits, Space

from .base import FeasibleSampler, Goal
from .history import Array, History
from .prior import Prior

__all__ = ["NSGA2Sampler", "RepairedSampler", "TPERepairedSampler"]

_PRIVATE = "private"
_GENERATION = 10


class RepairedSampler(FeasibleSampler):
    """Base: replays the history into a private study, asks Optuna's sampler, repairs its wish."""

    def __init__(
        self,
        space: Space,
        prior: Prior | None = None,
        seed: int = 0,
        goal: Goal = "single",
    ) -> None:
        """Prepare the private study; see `FeasibleSampler`."""
        super().__init__(space, prior, seed, goal)
        self._bits: dict[str, BaseDistribution] = {
            name: CategoricalDistribution((0, 1)) for name in sorted(space.names)
        }
        self._replayed: Array = np.empty((0, len(space.names)))
        self._private = self._fresh()

    @abstractmethod
    def add(self, plan: Mapping[str, int], value: float) -> None:
        """Add a finished plan to the private study."""

    @abstractmethod
    def wish(self, seed: int) -> Mapping[str, int]:
        """Return what Optuna's sampler asks for next, its generator keyed by `seed` (below 2^32).

        It is not evaluated yet: it must not count for the next wish.
        """

    def candidates(
        self, history: History, rng: np.random.Generator, space: Space
    ) -> Iterator[Bits | None]:
        """Yield repaired wishes."""
        self.replay(history)
        while True:
            wish = self.wish(int(rng.integers(2**32)))
            yield self._repaired(np.array([wish[name] for name in self.space.names]), rng, space)

    def worths(self, history: History, rng: np.random.Generator) -> Array:
        """Return random worths of both signs."""
        return rng.standard_normal(len(self.space.units))

    def _repaired(self, wish: np.ndarray, rng: np.random.Generator, space: Space) -> Bits | None:
        """Return the feasible plan nearest to a wish, by order of taking."""
        scores = self.scores if self.scores is not None else np.zeros(len(wish))
        spread = float(scores.std()) or 1.0
        noisy = scores / spread + rng.gumbel(size=len(wish))
        order = np.lexsort((-noisy, -wish)).tolist()
        # a stand-in costs little or nothing: unless it is wished for, it is left out
        found = take([u for u in order if wish[u] or not space.units[u].alone], space)
        return take(order, space) if found is None else found

    def replay(self, history: History) -> None:
        """Bring the private study up to the history."""
        done = len(self._replayed)
        if not np.array_equal(history.plans[:done], self._replayed):
            # Another history than before: only tests and simulations do this.
            self._private, done = self._fresh(), 0
        for plan, value in zip(history.plans[done:], history.values[done:], strict=True):
            self.add(dict(zip(self.space.names, map(int, plan), strict=True)), float(value))
        self._replayed = history.plans

    def _fresh(self) -> optuna.Study:
        """Return an empty study in memory."""
        self._memory = InMemoryStorage()
        return optuna.create_study(study_name=_PRIVATE, storage=self._memory, direction="maximize")


class TPERepairedSampler(RepairedSampler):
    """Tree-structured Parzen estimator over the joint bits."""

    def add(self, plan: Mapping[str, int], value: float) -> None:
        """Add it as a finished trial; its number is its place in the history."""
        params: dict[str, Any] = {name: plan[name] for name in self._bits}
        self._private.add_trial(
            optuna.create_trial(value=value, params=params, distributions=self._bits)
        )

    def wish(self, seed: int) -> Mapping[str, int]:
        """Ask without a trial of the study, which would be one more to go through next time."""
        order = [self.space.names.index(name) for name in self._bits]
        sampler = _JointTPE(self._replayed[:, order], seed)
        # opened anew, because a study remembers its trials from one trial asked for to the next
        study = optuna.load_study(study_name=_PRIVATE, storage=self._memory)
        trial = optuna.create_trial(state=TrialState.RUNNING)
        wished = sampler.sample_relative(study, trial, self._bits)
        return wished or {
            name: sampler.sample_independent(study, trial, name, self._bits[name])
            for name in self.space.names
        }


class _JointTPE(TPESampler):
    """Optuna's TPE over all bits jointly, told that they are bits.

    Left alone it looks up each value among the choices, and each candidate's bits one by one in all
    kernels: most of a proposal's time at a thousand trials.
    """

    def __init__(self, rows: Array, seed: int) -> None:
        # no other trial runs in a private study, so none has to be guarded against
        super().__init__(seed=seed, n_startup_trials=5, multivariate=True, constant_liar=False)
        self._rows = rows

    def _get_internal_repr(
        self,
        trials: list[FrozenTrial],
        search_space: dict[str, BaseDistribution],
        study: optuna.Study,
    ) -> dict[str, np.ndarray]:
        rows = self._rows[[trial.number for trial in trials]]
        return dict(zip(search_space, rows.T, strict=True))

    def _compute_acquisition_func(
        self, samples: dict[str, np.ndarray], mpe_below: Any, mpe_above: Any
    ) -> np.ndarray:
        rows = np.stack(list(samples.values()), axis=1)
        return _log_density(rows, mpe_below) - _log_density(rows, mpe_above)


def _log_density(rows: Array, estimator: Any) -> Array:
    """Return the log density of rows of bits under a mixture of kernels, as matrix products."""
    mixture = estimator._mixture_distribution
    logs = np.log([unit.weights for unit in mixture.distributions])  # units, kernels, 0 or 1
    joint = rows @ logs[..., 1] + (1 - rows) @ logs[..., 0] + np.log(mixture.weights)
    return np.asarray(scipy.special.logsumexp(joint, axis=1))


class NSGA2Sampler(RepairedSampler):
    """NSGA-II, which with one objective is a genetic algorithm with elites.

    Every ten plans of the history are a generation, in their order, whoever proposed them.
    """

    def add(self, plan: Mapping[str, int], value: float) -> None:
        """Add it as a finished trial of its generation, which Optuna counts when it proposes."""
        place = len(self._private.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        self._private.add_trial(
            optuna.create_trial(
                value=value,
                params={name: plan[name] for name in self._bits},
                distributions=self._bits,
                system_attrs={_Genetic.generation_key(): place // _GENERATION},
            )
        )

    def wish(self, seed: int) -> Mapping[str, int]:
        """Ask with a trial that fails at once."""
        self._private.sampler = _Genetic(self._bits, seed)
        trial = self._private.ask()
        wished = {name: trial.suggest_categorical(name, (0, 1)) for name in self.space.names}
        self._private.tell(trial, state=TrialState.FAIL)
        return wished


class _Genetic(NSGAIISampler):
    """Optuna's NSGA-II with small generations, for budgets of tens of trainings."""

    def __init__(self, bits: Mapping[str, BaseDistribution], seed: int) -> None:
        super().__init__(seed=seed, population_size=_GENERATION)
        self._bits = bits

    @classmethod
    def generation_key(cls) -> str:
        """Return the attribute that Optuna keeps a trial's generation in."""
        return cls._get_generation_key()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        known = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return dict(self._bits) if known else {}

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """Return the parents in one order, whether they are chosen now or were before.

        A proposal would depend on how often this process was asked otherwise.
        """
        found = super().get_parent_population(study, generation)
        return sorted(found, key=lambda trial: trial.number)
