"""Running a decoder on the calibration questions: what sub-layers read and write, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from circuitsearch.core.components import SubLayer
from circuitsearch.core.files import content_hash
from circuitsearch.discovery.sample import Sample
from circuitsearch.students.features.reader import FeatureBatch
from circuitsearch.teacher.decoders import Memory, ResidualDecoder

from .base import Case

__all__ = ["Seen", "batches", "observed", "real", "sample_of"]

_BATCH = 16


class Seen(NamedTuple):
    """One sub-layer at work on a batch.

    Attributes:
        sublayer: which.
        before: [B, T, d] the stream that it reads.
        units: [B, T, H, hd] heads or [B, T, F] neurons.
        after: [B, T, d] the stream behind it.
        real: [B, T] False on padding.
        memory: what cross-attention reads.
    """

    sublayer: SubLayer
    before: Tensor
    units: Tensor
    after: Tensor
    real: Tensor
    memory: Memory


def batches(case: Case) -> Iterator[FeatureBatch]:
    """Yield the calibration questions in batches, questions about one page side by side."""
    asked = sorted(case.questions)
    for first in range(0, len(asked), _BATCH):
        yield case.features.read(asked[first : first + _BATCH])


def real(read: FeatureBatch) -> Tensor:
    """Return [B, T], False on padding."""
    lengths = torch.tensor([len(example.ids) - 1 for example in read.batch.examples])
    return torch.arange(read.batch.ids.shape[1]) < lengths[:, None]


def observed(view: ResidualDecoder, case: Case) -> Iterator[Seen]:
    """Yield every sub-layer's work on every batch, in execution order within a batch."""
    device = case.teacher.device
    with torch.no_grad():
        for read in batches(case):
            memory = view.memory(read.states.to(device), read.rows.to(device))
            x, there = view.embed(read.batch.ids.to(device)), real(read).to(device)
            for sublayer in view.sublayers:
                units = view.units(sublayer, x, memory)
                after = x + view.project(sublayer, units)
                yield Seen(sublayer, x, units, after, there, memory)
                x = after


def sample_of(case: Case) -> Sample:
    """Return the calibration questions as the sample that discovery runs on."""
    asked = sorted(case.questions)
    rows = [case.features.examples[index] for index in asked]
    pages = sorted({row.page for row in rows})
    place = {page: index for index, page in enumerate(pages)}
    return Sample(
        rows=tuple(replace(row, page=place[row.page]) for row in rows),
        states=case.features.states(pages).to(case.teacher.device),
        documents=tuple(case.features.pages[row.page].document for row in rows),
        batch_size=_BATCH,
        pad_id=case.features.pad_id,
        fingerprint=content_hash([case.features.key, asked]),
    )
