"""Samplers: which plan to evaluate next. They propose feasible plans that were never tried, only.

One file per idea; a new one is a subclass of `FeasibleSampler` and a row in `REGISTRY`, and passes
`tests/conformance/test_samplers.py`. Which is the default, and what each is worth on students that
were really trained, is measured by `tests/benchmarks/samplers` (`results/search/samplers-*.md`).
"""

from __future__ import annotations

from collections.abc import Callable

from circuitsearch.search.space import Space

from .base import FeasibleSampler, Goal, SpaceExhaustedError
from .baselines import PriorSampler, RandomSampler, random_plan
from .evolution import EvolutionSampler, swapped
from .history import FAILURE, History, trial_bits
from .prior import Prior
from .ranked import RankedSampler
from .thompson import CircuitSampler, posterior
from .wrapped import NSGA2Sampler, RepairedSampler, TPERepairedSampler

__all__ = [
    "FAILURE",
    "REGISTRY",
    "CircuitSampler",
    "EvolutionSampler",
    "FeasibleSampler",
    "Goal",
    "History",
    "NSGA2Sampler",
    "Prior",
    "PriorSampler",
    "RandomSampler",
    "RankedSampler",
    "RepairedSampler",
    "SpaceExhaustedError",
    "TPERepairedSampler",
    "posterior",
    "random_plan",
    "swapped",
    "trial_bits",
]

REGISTRY: dict[str, Callable[[Space, Prior | None, int, Goal], FeasibleSampler]] = {
    "elastic": RankedSampler,
    "circuit": CircuitSampler,
    "tpe": TPERepairedSampler,
    "nsga2": NSGA2Sampler,
    "evolution": EvolutionSampler,
    "random": RandomSampler,
    "prior": PriorSampler,
}
"""Samplers by the name that a config gives them."""
