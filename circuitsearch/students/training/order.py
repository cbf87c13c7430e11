"""The order in which training meets the examples: a pure function of seed and step.

Every student of a comparison gets the same seed, hence the same batches at the same steps, so that
students differ by their plans and not by their luck; and a resumed run needs no record of where it
was. An epoch is one shuffle of groups: the questions of a page, or single questions. Within 16
batches' worth of them, groups are sorted by length before they are cut into batches, which spares
most of the padding, and the batches are shuffled again, so that length says nothing about time.
What does not fill a batch is left out of that epoch; the next one draws anew.

Keeping a page's questions together lets them share its cross-attention keys and values, which for
long pages are most of a training step (donut-base: 4,800 encoder tokens against 50 decoder tokens).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from circuitsearch.core.errors import DataError
from circuitsearch.core.files import seed_from

__all__ = ["DataOrder"]

_BATCHES_PER_BUCKET = 16


class DataOrder:
    """Batches of example indices by step.

    Args:
        lengths: tokens of each example.
        groups: group of each example, e.g. its page; a group is cut only where a batch is full.
        batch: examples per batch; fewer when there are not so many.
        seed: seed of the order.

    Raises:
        DataError: if there are no examples.
    """

    def __init__(
        self, lengths: Sequence[int], groups: Sequence[int], batch: int, seed: int
    ) -> None:
        if not lengths:
            raise DataError("Data order: there are no examples; give pages with questions")
        _, self._groups = np.unique(np.asarray(groups), return_inverse=True)
        self._longest = np.zeros(self._groups.max() + 1, dtype=np.int64)
        np.maximum.at(self._longest, self._groups, lengths)
        self._batch = min(batch, len(lengths))
        self._seed = seed
        self._epoch, self._drawn = -1, np.empty(0, dtype=np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in one pass over the examples."""
        return len(self._groups) // self._batch

    def indices(self, step: int) -> list[int]:
        """Return the examples of a step (from 0)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._drawn = epoch, self._draw(epoch)
        chosen: list[int] = self._drawn[place].tolist()
        return chosen

    def _draw(self, epoch: int) -> np.ndarray:
        """Return the epoch's batches, [steps per epoch, batch]."""
        rng = np.random.default_rng(seed_from("data order", self._seed, epoch))
        turn = rng.permutation(len(self._longest))[self._groups]  # of each example's group
        shuffled = np.argsort(turn, kind="stable")[: self.steps_per_epoch * self._batch]
        bucket = _BATCHES_PER_BUCKET * self._batch
        for first in range(0, len(shuffled), bucket):
            part = shuffled[first : first + bucket]
            # by the group's longest example; groups of one length stay apart by their turn
            by_length = np.lexsort((turn[part], self._longest[self._groups[part]]))
            shuffled[first : first + bucket] = part[by_length]
        return rng.permutation(shuffled.reshape(-1, self._batch))
