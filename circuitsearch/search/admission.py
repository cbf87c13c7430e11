"""Admission: what a plan needs of measured limits is measured before it may become a trial.

The prediction in the space decides what is proposed, the measurement what is trained. The function
that measures is handed in, because the search knows no torch; what it found is kept with the study
(`storage.speeds`), so every plan is measured once, however many workers ask.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

from circuitsearch.core.errors import ConfigError
from circuitsearch.core.plan import Plan
from circuitsearch.search.space import Bits, Space
from circuitsearch.search.storage.speeds import Speeds, Verdict
from circuitsearch.search.storage.workers import heartbeat, patiently

__all__ = ["Admission", "Admit", "measurer"]

Admit = Callable[[Plan], Mapping[str, int]]
"""Measures a plan's student; returns at least one figure per measured limit, by `Limit.name`."""


class Admission:
    """One worker's view of which plans are within the measured limits."""

    def __init__(
        self, space: Space, speeds: Speeds, admit: Admit | None, worker: str, lease: float
    ) -> None:
        """Prepare to measure.

        Args:
            space: the plans and limits; without measured ones every plan is admitted.
            speeds: the study's figures.
            admit: measures a plan.
            worker: who measures.
            lease: seconds for which a claim holds without a sign of life.

        Raises:
            ConfigError: the space has measured limits, and nothing measures them.
        """
        self._measure = measurer(space, admit)
        self._space = space
        self._speeds = speeds
        self._worker = worker
        self._lease = lease
        self._known: dict[str, Bits] = {}

    def problems(self, plan: Plan) -> list[str]:
        """Describe, with numbers, the measured limits that a plan exceeds; measure it if needed.

        Waits while another worker measures the plan.

        Raises:
            ConfigError: the function that was handed in left out a limit.
            StorageError: the database fails.
        """
        if self._measure is None:
            return []
        pause = 0.02
        while True:
            step = partial(self._speeds.claim, plan, self._worker, self._lease)
            known = patiently(step, self._lease)
            if isinstance(known, Verdict):
                return self._space.budget.exceeded(known.amounts)
            if known:
                return self._space.budget.exceeded(self._measured(plan, self._measure).amounts)
            time.sleep(pause)
            pause = min(2 * pause, 2.0, self._lease / 4)

    def refused(self) -> frozenset[Bits]:
        """Return the plans that are never to be proposed again.

        Raises:
            StorageError: the database fails.
        """
        if self._measure is None:
            return frozenset()
        for text in patiently(self._speeds.refused, self._lease):
            if text not in self._known:
                self._known[text] = self._space.bits(Plan.parse(text))
        return frozenset(self._known.values())

    def _measured(self, plan: Plan, measure: Callable[[Plan], Verdict]) -> Verdict:
        """Measure a plan that this worker has claimed, and keep the figures."""
        extend = partial(self._speeds.extend, plan.hash, self._worker, self._lease)
        try:
            with heartbeat(extend, self._lease):
                verdict = measure(plan)
        except BaseException:
            self._speeds.release(self._worker)  # for whoever comes next
            raise
        return patiently(partial(self._speeds.record, verdict, self._worker), self._lease)


def measurer(space: Space, admit: Admit | None) -> Callable[[Plan], Verdict] | None:
    """Return what measures a plan and judges it; None without measured limits.

    Raises:
        ConfigError: the space has measured limits, and nothing measures them.
    """
    if not space.budget.measured:
        return None
    if admit is None:
        names = ", ".join(limit.name for limit in space.budget.measured)
        raise ConfigError(
            f"The budget limits {names}, which must be measured before a plan becomes a trial; "
            "pass admit, a function that measures a plan's student"
        )
    where = next(iter(space.predictions.values())).where

    def measure(plan: Plan) -> Verdict:
        amounts = dict(admit(plan))
        refused = bool(space.budget.exceeded(amounts))
        return Verdict(str(plan), plan.hash, refused, amounts, where)

    return measure
