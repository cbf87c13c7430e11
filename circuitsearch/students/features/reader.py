"""Reading cached features: many small batches, gathered from memory-mapped shards.

States of a page and logits of an example are contiguous in their shard, so a batch is a handful of
copies; the operating system keeps what is read often in memory. `features` writes the shards.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from circuitsearch.core.files import content_hash, seed_from
from circuitsearch.discovery.sample import Sample
from circuitsearch.students.features.shards import open_shard
from circuitsearch.students.features.targets import TeacherRows
from circuitsearch.teacher.documents.collate import Batch, Example, collate
from circuitsearch.teacher.documents.records import Page

__all__ = ["FeatureBatch", "Features"]

_BATCH = 16


@dataclass(frozen=True)
class FeatureBatch:
    """Examples with all that a training or evaluation step needs.

    Attributes:
        batch: padded tokens; `batch.pages` indexes the list of all pages.
        states: [P, N, E] float32 encoder states of the batch's distinct pages.
        rows: [B] place in `states` of the page that each row asks about.
        teacher: teacher logits of the batch's answer tokens, example by example.
    """

    batch: Batch
    states: Tensor
    rows: Tensor
    teacher: TeacherRows


class Features:
    """Cached encoder states and teacher logits of a data set.

    Attributes:
        key: hash of everything that decides the numbers.
        pages: the pages.
        examples: one per question, in page order.
        pad_id: padding token for batches.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        pages: Sequence[Page],
        rows: Sequence[Example],
        pad_id: int,
        cuts: Sequence[tuple[int, int]],
        temperatures: tuple[float, ...],
    ) -> None:
        """Open prepared shards; use `prepare_features`."""
        self.key = key
        self.pages = tuple(pages)
        self.examples = tuple(rows)
        self.pad_id = pad_id
        self._temperatures = temperatures
        self._shards = [open_shard(folder, index) for index in range(len(cuts))]
        self._page_shard = [i for i, (first, last) in enumerate(cuts) for _ in range(first, last)]
        self._first_page = [first for first, _ in cuts]
        self._spans = _spans(self.examples, self._page_shard)

    @property
    def tokens(self) -> int:
        """Encoder tokens per page."""
        return int(self._shards[0]["states"].shape[1])

    @property
    def page_bytes(self) -> int:
        """Bytes of a page's states once they are read."""
        tokens, width = self._shards[0]["states"].shape[1:]
        return int(4 * tokens * width)

    def states(self, page_indices: Sequence[int] | Tensor) -> Tensor:
        """Return encoder states [P, N, E] in float32 of some pages."""
        found = []
        for page in map(int, page_indices):
            shard = self._page_shard[page]
            found.append(self._shards[shard]["states"][page - self._first_page[shard]])
        return torch.stack(found).float()

    def teacher_logits(self, example_indices: Sequence[int] | Tensor) -> TeacherRows:
        """Return the teacher's logits at the answer tokens of some examples, in their order."""
        found: dict[str, list[Tensor]] = {"logits": [], "ids": [], "tails": []}
        for example in map(int, example_indices):
            shard, first, last = self._spans[example]
            for name, pieces in found.items():
                if name in self._shards[shard]:
                    pieces.append(self._shards[shard][name][first:last])
        logits = torch.cat(found["logits"]).float()
        if not found["ids"]:
            return TeacherRows(logits)
        ids = torch.cat(found["ids"]).long()
        return TeacherRows(logits, ids, torch.cat(found["tails"]), self._temperatures)

    def read(self, example_indices: Sequence[int] | Tensor) -> FeatureBatch:
        """Return a batch of some examples with the states of their pages and their logits."""
        chosen = [int(index) for index in example_indices]
        batch = collate([self.examples[index] for index in chosen], self.pad_id)
        pages, rows = torch.unique(batch.pages, return_inverse=True)
        return FeatureBatch(batch, self.states(pages), rows, self.teacher_logits(chosen))

    def drawn(self, most: int, purpose: str, *seeds: int) -> list[int]:
        """Return indices of `most` examples at random, or of all, in the order of the draw."""
        chooser = random.Random(seed_from(purpose, self.key, *seeds))
        return chooser.sample(range(len(self.examples)), min(len(self.examples), most))

    def sample(self, example_indices: Sequence[int], device: torch.device) -> Sample:
        """Return some examples, in page order, as the sample that discovery runs on."""
        asked = sorted(example_indices)
        rows = [self.examples[index] for index in asked]
        pages = sorted({row.page for row in rows})
        place = {page: index for index, page in enumerate(pages)}
        return Sample(
            rows=tuple(replace(row, page=place[row.page]) for row in rows),
            states=self.states(pages).to(device),
            documents=tuple(self.pages[row.page].document for row in rows),
            batch_size=_BATCH,
            pad_id=self.pad_id,
            fingerprint=content_hash([self.key, asked]),
        )


def _spans(rows: Sequence[Example], page_shard: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (shard, first row, last row + 1) of the answer tokens of each example."""
    filled: dict[int, int] = {}
    spans = []
    for row in rows:
        shard = page_shard[row.page]
        first = filled.get(shard, 0)
        filled[shard] = first + len(row.ids) - row.prompt
        spans.append((shard, first, filled[shard]))
    return spans
