"""Ablations: what a removed component writes instead.

    zero           nothing. A whole sub-layer is skipped, output bias included, as in a student
                   without it; a head gives zero units while the bias stays, as in a student with
                   sliced heads.
    mean           its average over the answer rows of a sample. A student can keep it as a bias.
    position_mean  its average at each position of the decoder's input, over examples.
    resample       what it gives when the same tokens read *another page* of the sample: token
                   lengths are equal by construction. This removes what the component knows of the
                   page, not what it knows of the question.
    pair           what it gives on the example's own counterfactual (`pair_sample`): the page with
                   another answer, or another question.

The embedding and the encoder, which are no components but write too, are replaced in the same way:
by zero, by their mean, or by what the counterfactual has there.

Scores, effects and students must use the same ablation; its name travels with every record. Noise
on the page is not offered: it takes the model off its distribution (NOTICE, arXiv 2406.16320).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import ConfigError, DataError, choice_problem
from circuitsearch.teacher.decoders import Memory, ResidualDecoder
from circuitsearch.teacher.documents.collate import IGNORED, Batch

from .sample import Sample

__all__ = [
    "ABLATIONS",
    "Ablation",
    "Means",
    "Progress",
    "Replacements",
    "batches_with_replacements",
    "clean_units",
    "means_for",
    "unit_means",
]

Ablation = Literal["zero", "mean", "position_mean", "resample", "pair"]
ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total)."""


@dataclass(frozen=True)
class Means:
    """Averages of a sample, best of one that is held out from what is scored.

    Attributes:
        units: per sub-layer [H, hd] (S, C) or [F] (M); by position [T, H, hd] or [T, F].
        embedding: [d], or [T, d].
        states: [E] mean encoder state over pages and tokens.
        by_position: whether averages are per position of the decoder's input.
    """

    units: Mapping[SubLayer, Tensor]
    embedding: Tensor
    states: Tensor
    by_position: bool = False

    def at(self, length: int) -> Means:
        """Return the averages of the first `length` positions.

        Raises:
            DataError: the averaged sample had no example of this length.
        """
        if not self.by_position:
            return self
        known = len(self.embedding)
        if length > known:
            raise DataError(
                f"position_mean: an example has {length} positions, the averages cover {known}; "
                "average a sample with examples as long, or choose mean"
            )
        units = {sublayer: mean[:length] for sublayer, mean in self.units.items()}
        return Means(units, self.embedding[:length], self.states, True)


@dataclass(frozen=True)
class Replacements:
    """Replacement values for one batch; None stands for zero.

    Attributes:
        decoder: the view.
        units: units that stand in, per sub-layer, broadcastable to the clean units.
        embedding: [d], [T, d] or [B, T, d].
        states: [E], or the counterfactual pages [P', N, E].
        pages: [B] which counterfactual page each row reads; None when all rows share `states`.
    """

    decoder: ResidualDecoder
    units: Mapping[SubLayer, Tensor] | None = None
    embedding: Tensor | None = None
    states: Tensor | None = None
    pages: Tensor | None = None

    def units_for(self, sublayer: SubLayer, clean: Tensor) -> Tensor:
        """Return replacement units, of the shape of the clean ones [B, T, ...]."""
        if self.units is None:
            return torch.zeros_like(clean)
        return self.units[sublayer].expand_as(clean)

    def write_for(self, sublayer: SubLayer, clean: Tensor) -> Tensor:
        """Return what the whole sub-layer writes instead, shaped as the clean write [B, T, d]."""
        if self.units is None:
            return torch.zeros_like(clean)
        return self.decoder.project(sublayer, self.units[sublayer]).expand_as(clean)

    def embedding_for(self, clean: Tensor) -> Tensor:
        """Return the replacement of the embedding [B, T, d]."""
        if self.embedding is None:
            return torch.zeros_like(clean)
        return self.embedding.expand_as(clean)

    def states_for(self, clean: Tensor) -> Tensor:
        """Return the replacement of each row's encoder states [B, N, E], given the clean ones."""
        if self.states is None:
            return torch.zeros_like(clean)
        if self.pages is not None:
            return self.states[self.pages]
        return self.states.expand_as(clean)


def unit_means(decoder: ResidualDecoder, sample: Sample, *, by_position: bool = False) -> Means:
    """Average units, embedding and encoder states over a sample.

    Without positions the average is over answer rows, the positions that predict an answer token;
    by position it is over all examples that reach a position. The mean of a *write* follows by
    `project`, which is affine. Averages keep the dtype of what they average. One forward pass per
    batch.
    """
    sums: dict[SubLayer | None, Tensor] = {}
    dtypes: dict[SubLayer | None, torch.dtype] = {}
    width = max(len(row.ids) for row in sample.rows) - 1
    counts = torch.zeros(width, dtype=torch.float64, device=sample.states.device)

    def add(key: SubLayer | None, units: Tensor, counted: Tensor) -> None:
        # summed in float64: thousands of rows of float32 would lose digits
        weights = counted.to(torch.float64)
        total = torch.einsum("bt,bt...->t...", weights, units.double())
        padded = total.new_zeros(width, *total.shape[1:])
        padded[: len(total)] = total
        sums[key] = sums[key] + padded if key in sums else padded
        dtypes[key] = units.dtype

    with torch.no_grad():
        for batch, states in sample.batches:
            counted = _real(batch) if by_position else batch.labels != IGNORED
            counts[: counted.shape[1]] += counted.sum(dim=0)
            add(None, decoder.embed(batch.ids), counted)
            for sublayer, units in clean_units(decoder, batch, decoder.memory(states, batch.pages)):
                add(sublayer, units, counted)

    def averaged(key: SubLayer | None) -> Tensor:
        total = sums[key]
        if not by_position:
            return (total.sum(dim=0) / counts.sum()).to(dtypes[key])
        shape = (-1,) + (1,) * (total.ndim - 1)
        return (total / counts.view(shape)).to(dtypes[key])

    means = {key: averaged(key) for key in sums if key is not None}
    return Means(means, averaged(None), sample.states.mean(dim=(0, 1)), by_position)


def means_for(
    decoder: ResidualDecoder, sample: Sample, ablation: str, held_out: Sample | None = None
) -> Means | None:
    """Return the averages that an ablation needs, of a held-out sample where there is one."""
    if ablation not in ("mean", "position_mean"):
        return None
    source = sample if held_out is None else held_out
    return unit_means(decoder, source, by_position=ablation == "position_mean")


def clean_units(
    decoder: ResidualDecoder, batch: Batch, memory: Memory
) -> Iterator[tuple[SubLayer, Tensor]]:
    """Yield every sub-layer's units [B, T, ...] of an untouched run, in execution order."""
    yield from _units_of(decoder, decoder.embed(batch.ids), memory)


def batches_with_replacements(
    decoder: ResidualDecoder, sample: Sample, ablation: str, means: Means | None = None
) -> Iterator[tuple[Batch, Tensor, Replacements]]:
    """Yield each batch, its states [P, N, E] and what stands in for removed components.

    Args:
        decoder: the view.
        sample: what to run on.
        ablation: a name in `ABLATIONS`.
        means: for `mean` and `position_mean`; computed from the sample when None.

    Raises:
        ConfigError: the ablation is unknown.
        DataError: `resample` on a single page, `pair` on a sample without counterfactuals.
    """
    if ablation not in ABLATIONS:
        raise ConfigError(choice_problem("ablation", ablation, ABLATIONS))
    if ablation == "resample" and all(s.kind is not Kind.CROSS for s in decoder.sublayers):
        raise ConfigError(
            "Ablation resample: this decoder reads no page, so nothing would change; choose zero, "
            "mean or pair"
        )
    if means is None:
        means = means_for(decoder, sample, ablation)
    for index, (batch, states) in enumerate(sample.batches):
        yield batch, states, _replacements(decoder, sample, ablation, means, index)


def _replacements(
    decoder: ResidualDecoder, sample: Sample, ablation: str, means: Means | None, index: int
) -> Replacements:
    """Return the replacement values of one batch."""
    batch, _ = sample.batches[index]
    if means is not None:
        at = means.at(batch.ids.shape[1])
        return Replacements(decoder, at.units, at.embedding, at.states)
    if ablation == "zero":
        return Replacements(decoder)
    if ablation == "resample":
        ids, states, pages = batch.ids, sample.swapped[index], batch.pages
    elif sample.others is None:
        raise DataError(
            "Ablation pair: the sample has no counterfactuals; make it with `make_pair_sample`, or "
            "choose zero, mean or resample"
        )
    else:
        other = sample.others[index]
        ids, states, pages = other.ids, other.states, other.pages
    with torch.no_grad():
        embedding = decoder.embed(ids)
        units = dict(_units_of(decoder, embedding, decoder.memory(states, pages)))
    return Replacements(decoder, units, embedding, states, pages)


def _units_of(
    decoder: ResidualDecoder, x: Tensor, memory: Memory
) -> Iterator[tuple[SubLayer, Tensor]]:
    """Yield the units of a run that starts from the stream x."""
    for sublayer in decoder.sublayers:
        units = decoder.units(sublayer, x, memory)
        yield sublayer, units
        x = x + decoder.project(sublayer, units)


def _real(batch: Batch) -> Tensor:
    """Return [B, T], which positions are no padding."""
    lengths = torch.tensor([len(row.ids) - 1 for row in batch.examples], device=batch.ids.device)
    return torch.arange(batch.ids.shape[1], device=batch.ids.device) < lengths[:, None]
