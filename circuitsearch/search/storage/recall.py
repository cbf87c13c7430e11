"""What a worker must know of a study while it runs, read from the ledger piece by piece.

A trial's plan and a result never change, so each is read and parsed once. Of the other trials only
the state can change; they are read again from the first unfinished one on, which is near the end
of the order. At 1,000 trials of 140 units this takes a few milliseconds per proposal.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from circuitsearch.core.errors import PlanError
from circuitsearch.core.measurement import Measurement, merit
from circuitsearch.core.plan import Plan
from circuitsearch.search.samplers import History
from circuitsearch.search.space import Bits, Space
from circuitsearch.search.storage.ledger import Ledger
from circuitsearch.search.storage.rows import Row

__all__ = ["Recall"]


class Recall:
    """The history of one ledger, kept between proposals.

    Attributes:
        waiting: number of trials, when it was last brought up to date, that a worker has to take
            before it proposes: queued ones, and those of dead or silent workers.
        running: number of trials that others evaluated then.
        measured: number of measured plans then.
        best: the best of their measurements (`merit`), None without any.
    """

    def __init__(self, ledger: Ledger, space: Space) -> None:
        """Start without any knowledge."""
        self.waiting = self.running = self.measured = 0
        self.best: Measurement | None = None
        self._ledger = ledger
        self._space = space
        self._start = 0  # the first trial that was not finished
        self._bits: dict[str, Bits | None] = {}
        self._taken: set[Bits] = set()
        self._counted: set[int] = set()  # trials whose results are in
        self._done: dict[int, tuple[NDArray[np.float64], float]] = {}

    def history(self) -> History:
        """Bring it up to date and return what a sampler is to know.

        Raises:
            StorageError: the database fails.
        """
        self.update()
        done = [self._done[number] for number in sorted(self._done)]
        plans = np.array([plan for plan, _ in done]).reshape(len(done), len(self._space.names))
        values = np.array([value for _, value in done], dtype=np.float64)
        return History(plans, values, frozenset(self._taken))

    def update(self) -> None:
        """Bring it up to date.

        Raises:
            StorageError: the database fails.
        """
        rows = self._ledger.rows(self._start)
        open_rows = []
        for row in rows:
            if row.plan_hash not in self._bits:
                self._learn(row.plan_hash, row.plan)
            if row.outcome is None:
                open_rows.append(row)
            elif row.outcome.measurement is not None and row.number not in self._counted:
                self._count(row, row.outcome.measurement)
        self.waiting = sum(row.state == "queued" or row.stale for row in open_rows)
        self.running = len(open_rows) - self.waiting
        self._start = min(
            (row.number for row in open_rows),
            default=rows[-1].number + 1 if rows else self._start,
        )

    def _count(self, row: Row, measurement: Measurement) -> None:
        """Add a result that was not there before."""
        self._counted.add(row.number)
        self.measured += 1
        self.best = min(filter(None, (self.best, measurement)), key=merit)
        bits = self._bits[row.plan_hash]
        if bits is not None:
            quality = measurement.quality or 0.0
            self._done[row.number] = (np.array(bits, dtype=np.float64), quality)

    def _learn(self, plan_hash: str, plan: str) -> None:
        """Remember a plan; one from outside the space is not among those to be proposed."""
        try:
            bits = self._space.bits(Plan.parse(plan))
        except PlanError:
            self._bits[plan_hash] = None
            return
        self._bits[plan_hash] = bits
        self._taken.add(bits)
