"""Running a decoder on the calibration questions: what sub-layers read and write, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from circuitsearch.core.components import SubLayer
from circuitsearch.students.features.reader import FeatureBatch
from circuitsearch.teacher.decoders import Memory, ResidualDecoder

from .base import Case

__all__ = ["Seen", "batches", "observed", "real"]

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
