"""What a sampler knows of a study: which plans are taken, and what the finished ones are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from circuitsearch.search.space import Bits

__all__ = ["FAILURE", "Array", "History", "trial_bits"]

Array = NDArray[np.float64]

FAILURE = "failure"
"""User attribute of a failed trial whose plan is not to be tried again: why it failed."""


@dataclass(frozen=True)
class History:
    """What a sampler knows: the trials of a study, in their order.

    Attributes:
        plans: finished plans as bits, shape [m, units].
        values: their qualities, larger is better; shape [m].
        taken: every plan that is finished, running, queued, pruned or failed for good.
    """

    plans: Array
    values: Array
    taken: frozenset[Bits]

    @classmethod
    def read(
        cls, trials: Sequence[FrozenTrial], names: Sequence[str], current: int | None = None
    ) -> History:
        """Read the trials of a study.

        Args:
            trials: all trials.
            names: parameter names, one per unit.
            current: number of the trial that asks, which does not count.
        """
        others = sorted((t for t in trials if t.number != current), key=lambda t: t.number)
        done: list[tuple[Bits, float]] = []
        taken: set[Bits] = set()
        for trial in others:
            bits = trial_bits(trial, names)
            # A plain failure (a crash, an interruption) may be tried again.
            retry = trial.state == TrialState.FAIL and FAILURE not in trial.user_attrs
            if bits is None or retry:
                continue
            taken.add(bits)
            if trial.state == TrialState.COMPLETE and trial.value is not None:
                done.append((bits, trial.value))
        plans = np.array([bits for bits, _ in done], dtype=np.float64)
        values = np.array([value for _, value in done], dtype=np.float64)
        return cls(plans.reshape(len(done), len(names)), values, frozenset(taken))


def trial_bits(trial: FrozenTrial, names: Sequence[str]) -> Bits | None:
    """Return the plan of a trial as bits; None when it was not recorded (completely) yet.

    A queued trial keeps its plan in the system attribute `fixed_params` until it is started.
    """
    chosen = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    if any(name not in chosen for name in names):
        return None
    return tuple(int(chosen[name]) for name in names)
