"""Runs with and without the last feed-forward and what stood before it; see `cleaner`.

With x the stream in front of the last cross-attention C, c its write, M the feed-forward behind it:

    clean          x + c + M(x + c)
    M skipped      x + c
    write alone    c                        the residual x removed, M skipped
    heads alone    c's heads, joined, in front of C's output projection

all read out through the final norm. If M does no more than take x away again, `write alone` answers
as the clean run does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuitsearch.core.components import SubLayer
from circuitsearch.core.files import seed_from
from circuitsearch.discovery.listing import joined
from circuitsearch.discovery.metrics import measure
from circuitsearch.discovery.sample import Sample
from circuitsearch.teacher.decoders import Memory, ResidualDecoder, continue_from, write
from circuitsearch.teacher.documents.collate import IGNORED, Batch

from ..material import Material
from ..shared import Interval, Landmarks, counted, mean_interval

__all__ = ["ALONE", "CLEAN", "HEADS", "SETS", "SKIPPED", "Part", "measured_sets"]

CLEAN, SKIPPED, ALONE, HEADS = (
    "clean",
    "feed-forward skipped",
    "write alone",
    "heads alone",
)
"""The runs, as tables call them."""

SETS = ("first set", "second set")
"""The two sets of documents, `pages` and `others`."""


@dataclass(frozen=True)
class Part:
    """What was measured on one set of documents.

    Attributes:
        name: as tables call it.
        documents: [n] document of each question.
        losses: [n] loss of the first answer token by run, nats.
        removed: [n] how much of the stream in front of the cross-attention the feed-forward takes
            away: 1 all of it, 0 nothing.
        seed: of the bootstrap's draws.
    """

    name: str
    documents: tuple[str, ...]
    losses: Mapping[str, np.ndarray]
    removed: np.ndarray
    seed: int

    @property
    def count(self) -> str:
        """How many questions and documents, in words."""
        return counted(len(self.documents), "questions", self.documents)

    def difference(self, run: str, other: str) -> Interval:
        """Return the mean difference of two runs' losses with its interval."""
        return mean_interval(self.losses[run] - self.losses[other], self.documents, self.seed)


def measured_sets(material: Material, marks: Landmarks) -> dict[str, Part]:
    """Measure the sets that have questions; none where the decoder lacks the sub-layers."""
    if marks.last_cross is None or marks.feed_behind is None:
        return {}
    found = {}
    for name, pages in zip(SETS, (material.pages, material.others), strict=True):
        if any(page.questions for page in pages):
            sample = material.sample if name == SETS[0] else material.other_sample
            found[name] = _part(material, name, sample, marks.last_cross, marks.feed_behind)
    return found


def _part(material: Material, name: str, sample: Sample, cross: SubLayer, feed: SubLayer) -> Part:
    """Run one set of documents."""
    view = material.view
    losses: dict[str, list[Tensor]] = {}
    removed = []
    with torch.no_grad():
        for done, (batch, states) in enumerate(sample.batches):
            memory = view.memory(states, batch.pages)
            first = _first_labels(batch)
            ends, gone = _ends(view, batch, memory, cross, feed)
            for run, end in ends.items():
                losses.setdefault(run, []).append(measure(view, end, first))
            removed.append(gone[first != IGNORED])
            material.progress(f"cleaner, {name}", done + 1, len(sample.batches))
    seed = seed_from("cleaner", sample.fingerprint, material.seed)
    runs = {run: joined(values) for run, values in losses.items()}
    return Part(name, sample.documents, runs, joined(removed), seed)


def _first_labels(batch: Batch) -> Tensor:
    """Return [B, T], the labels with all but each row's first answer token left out."""
    scored = batch.labels != IGNORED
    first = scored & (scored.cumsum(dim=1) == 1)
    return batch.labels.where(first, IGNORED)


def _ends(
    view: ResidualDecoder, batch: Batch, memory: Memory, cross: SubLayer, feed: SubLayer
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the last stream [B, T, d] of every run, and how much of x the feed-forward removes."""
    before = [s for s in view.sublayers if s < cross]
    without = [s for s in view.sublayers if s != feed]
    between = [s for s in without if s < feed]
    x = continue_from(view, view.embed(batch.ids), memory, kept=before)
    units = view.units(cross, x, memory)
    written = view.project(cross, units)
    starts = {SKIPPED: x + written, ALONE: written}
    heads = units.flatten(-2)
    if heads.shape == x.shape:  # elsewhere heads joined are no vector of the stream
        starts[HEADS] = heads
    ends = {CLEAN: continue_from(view, x + written, memory, after=cross)}
    for run, start in starts.items():
        ends[run] = continue_from(view, start, memory, after=cross, kept=without)
    read = continue_from(view, x + written, memory, after=cross, kept=between)
    products = (write(view, feed, read, memory) * x).sum(dim=-1)
    return ends, -products / x.square().sum(dim=-1).clamp_min(torch.finfo(x.dtype).tiny)
