"""Magnitude pruning (Han et al., arXiv 1506.02626): small weights go.

Structured. The score of a unit is the L2 norm of its weights, biases left out:

    head        its rows of q, k and v, its columns of out_proj
    neuron      its row of fc1, its column of fc2; neurons are ranked by it
    width step  all weights of its neurons
    sub-layer   all weights of its matrices

The lowest norm per cost goes first (`base.by_cost`).

Unstructured. In every matrix the same share of weights, those of smallest |W|, becomes zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuitsearch.core.components import SubLayer
from circuitsearch.teacher.decoders import ResidualDecoder

from .base import Case, Proposal, by_cost, proposal, remove
from .masks import MAPS, Masks, matrices
from .unit_scores import unit_scores
from .unstructured import needed, of_group, pruned

__all__ = ["magnitude", "magnitude_unstructured"]


def magnitude(case: Case) -> tuple[Proposal, ...]:
    """Propose the plan of the largest weights."""
    view = case.teacher.decoder
    scores = unit_scores(
        case.units,
        sublayers=lambda one: float(_squares(view, one, 1).sqrt()),
        heads=lambda one: _squares(view, one, case.units.shape.heads).sqrt(),
        neurons=lambda one: _squares(view, one, case.units.shape.ffn).sqrt(),
        join=torch.linalg.vector_norm,
    )
    kept, notes = remove(case, by_cost(case, scores.values))
    return (proposal(case, kept, scores=scores.named, ranking=scores.ranking, notes=notes),)


def magnitude_unstructured(case: Case) -> tuple[Proposal, ...]:
    """Propose masks of the largest weights of every matrix."""
    named = matrices(case.teacher.decoder)
    weights = sum(matrix.numel() for _, matrix in named.values())
    zeros = needed(case, weights)
    kept = {}
    for name, matrix in named.values():
        flat = matrix.detach().abs().flatten()
        mask = torch.ones_like(flat, dtype=torch.bool)
        count = of_group(zeros, weights, flat.numel())
        mask[torch.argsort(flat, stable=True)[:count]] = False
        kept[name] = mask.view_as(matrix)
    return (pruned(case, Masks(kept), 0),)


def _squares(view: ResidualDecoder, sublayer: SubLayer, units: int) -> Tensor:
    """Return the sums of squared weights of each of `units` equal parts of a sub-layer, [units]."""
    parts = view.parts(sublayer)
    total = torch.zeros(units, dtype=torch.float64, device=parts.project.weight.device)
    for one in MAPS:
        affine = getattr(parts, one)
        if affine is None:
            continue
        squares = affine.weight.detach().double().square()
        # a unit owns rows of what it reads through and columns of what it writes through
        sums = squares.sum(dim=0 if one == "project" else 1)
        total += sums.view(units, -1).sum(dim=1)
    return total
