"""What is known of plans before any is trained: worths of units, and a ranking under a judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm, rankdata

from circuitsearch.core.errors import ConfigError, raise_together
from circuitsearch.core.files import record_fields
from circuitsearch.core.plan import Plan
from circuitsearch.search.space import Space

from .history import Array

__all__ = ["Prior", "ranked_bits"]


@dataclass(frozen=True)
class Prior:
    """Knowledge that a sampler starts from.

    Attributes:
        worths: worth per unit name, positive = helps (circuit scores or effects); other names are
            ignored. None when there are none.
        ranking: plans by what they are predicted to reach, best first, each with that loss in nats.
    """

    worths: Mapping[str, float] | None = None
    ranking: tuple[tuple[Plan, float], ...] = ()

    def array(self, space: Space) -> Array | None:
        """Return the worths of the units in their order; None when there are none.

        Raises:
            ConfigError: a unit has no worth, or one that is not finite; all faults together.
        """
        if self.worths is None:
            return None
        worths = self.worths
        problems = [
            f"{name} has no worth" if name not in worths else f"{name}: got {worths[name]}"
            for name in space.names
            if name not in worths or not np.isfinite(worths[name])
        ]
        raise_together(problems, ConfigError, "Prior scores (one finite number per unit)")
        return np.array([worths[name] for name in space.names], dtype=np.float64)

    def fitted(self, space: Space) -> Array | None:
        """Return the worths of units that explain the ranking best; None without a ranking.

        Ridge regression of the plans' normal scores (see `ranked_bits`) on their bits, with a
        penalty of one plan's worth of evidence per unit.
        """
        if not self.ranking:
            return None
        bits, scores = ranked_bits(space, self)
        centred = bits - bits.mean(axis=0)
        gram = centred.T @ centred + np.eye(bits.shape[1])
        solved: Array = np.linalg.solve(gram, centred.T @ scores)
        return solved

    def to_json(self) -> dict[str, Any]:
        """Return the prior as plain JSON; `from_json` reads it back equal."""
        return {
            "worths": None if self.worths is None else dict(self.worths),
            "ranking": [[str(plan), loss] for plan, loss in self.ranking],
        }

    @classmethod
    def from_json(cls, data: Any) -> Prior:
        """Read what `to_json` wrote.

        Raises:
            DataError: a field is missing or unknown.
            PlanError: a plan cannot be read.
        """
        values = record_fields(cls, data)
        ranking = tuple((Plan.parse(text), float(loss)) for text, loss in values["ranking"])
        return cls(values["worths"], ranking)


def ranked_bits(space: Space, prior: Prior) -> tuple[Array, Array]:
    """Return the ranked plans as bits and their normal scores, larger = better.

    A normal score is the quantile of the standard normal at the plan's rank: a loss has a long
    tail that says nothing about the plans worth training.

    Returns:
        Bits, shape [plans, units], and scores, shape [plans], mean 0.

    Raises:
        PlanError: a plan does not belong to the space.
    """
    bits = np.array([space.bits(plan) for plan, _ in prior.ranking], dtype=np.float64)
    ranks = rankdata([-loss for _, loss in prior.ranking])
    scores: Array = norm.ppf((ranks - 0.5) / len(ranks))
    return bits, scores
