"""Wanda (Sun et al., arXiv 2306.11695): weights times the norm of what they read.

    S[i, j] = |W[i, j]| * ||X_j||,   X_j: input j of the matrix at all calibration tokens

Unstructured, as published: S is compared *inside each output row* and the same share of every row
goes. Decoder layers are pruned one after the other: statistics of a layer are taken behind the
pruned layers before it, with its own weights still whole. No weight is updated. Keys and values of
cross-attention read the page; a page counts as often as questions are asked about it.

Structured reading (the paper has none): a unit's score is the mean of S over its columns of
out_proj or fc2, with the teacher's own activations. A mean of S is a number per weight already, so
the lowest goes first, whatever it costs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.plan import Plan
from circuitsearch.students.student import build_student
from circuitsearch.teacher.decoders import Memory, ResidualDecoder, residual_decoder, write

from .base import Case, Proposal, proposal, remove
from .calibration import batches, observed, real
from .masks import MAPS, Masks, matrices
from .unit_scores import unit_scores
from .unstructured import needed, of_group, pruned

__all__ = ["smallest_of_rows", "wanda", "wanda_unstructured"]

Squares = dict[tuple[SubLayer, str], Tensor]
"""Sums of squared inputs, [in] float64, by sub-layer and map."""


def wanda(case: Case) -> tuple[Proposal, ...]:
    """Propose the plan of units with the largest mean S."""
    view, squares = case.teacher.decoder, Squares()
    for seen in observed(view, case):
        joined = seen.units.flatten(-2) if seen.units.ndim == 4 else seen.units
        _add(squares, (seen.sublayer, "project"), joined[seen.real])

    def columns(sublayer: SubLayer) -> Tensor:
        weight = view.parts(sublayer).project.weight.detach().double().abs()
        return (weight * squares[sublayer, "project"].sqrt()).mean(dim=0)

    scores = unit_scores(
        case.units,
        sublayers=lambda one: float(columns(one).mean()),
        heads=lambda one: columns(one).view(case.units.shape.heads, -1).mean(dim=1),
        neurons=columns,
        join=torch.mean,
    )
    order = sorted(range(len(scores.values)), key=lambda i: (scores.values[i], -i))
    kept, notes = remove(case, [[index] for index in order])
    passes = len(case.questions)
    return (
        proposal(
            case, kept, scores=scores.named, ranking=scores.ranking, notes=notes, passes=passes
        ),
    )


def wanda_unstructured(case: Case) -> tuple[Proposal, ...]:
    """Propose masks by Wanda's rule, layer by layer."""
    whole = build_student(case.teacher, Plan.full(case.units.shape.layers)).requires_grad_(False)
    view = residual_decoder(whole)
    named = matrices(view)
    weights = sum(matrix.numel() for _, matrix in named.values())
    zeros = needed(case, weights)
    device = case.teacher.device
    streams = [view.embed(read.batch.ids.to(device)) for read in batches(case)]
    kept: dict[str, Tensor] = {}
    for layer in range(case.units.shape.layers):
        here = [sublayer for sublayer in view.sublayers if sublayer.layer == layer]
        squares = Squares()
        _run(view, case, here, streams, squares)
        for (sublayer, one), (name, matrix) in named.items():
            if sublayer.layer == layer:
                scores = matrix.double().abs() * squares[sublayer, one].sqrt()
                gone = smallest_of_rows(scores, of_group(zeros, weights, matrix.shape[1]))
                matrix.masked_fill_(gone, 0.0)
                kept[name] = ~gone
        streams = _run(view, case, here, streams, None)
    return (pruned(case, Masks(kept), 2 * len(case.questions)),)


def smallest_of_rows(scores: Tensor, count: int) -> Tensor:
    """Return [out, in] of bool, the `count` smallest of every row of scores [out, in]."""
    gone = torch.zeros_like(scores, dtype=torch.bool)
    order = torch.argsort(scores, dim=1, stable=True)[:, :count]
    return gone.scatter_(1, order, True)


def _run(
    view: ResidualDecoder,
    case: Case,
    sublayers: list[SubLayer],
    streams: list[Tensor],
    squares: Squares | None,
) -> list[Tensor]:
    """Run some sub-layers on all batches; return the streams behind them.

    Args:
        view: the decoder.
        case: the questions.
        sublayers: what runs.
        streams: [B, T, d] of each batch.
        squares: where squared inputs of all matrices are added up; None adds none.
    """
    behind, device = [], case.teacher.device
    with torch.no_grad():
        for read, before in zip(batches(case), streams, strict=True):
            memory = view.memory(read.states.to(device), read.rows.to(device), sublayers)
            x, there = before, real(read).to(device)
            for sublayer in sublayers:
                if squares is not None:
                    inputs = _inputs(view, sublayer, x, memory, there)
                    for one, rows in inputs.items():
                        _add(squares, (sublayer, one), rows)
                x = x + write(view, sublayer, x, memory)
            behind.append(x)
    return behind


def _inputs(
    view: ResidualDecoder, sublayer: SubLayer, x: Tensor, memory: Memory, there: Tensor
) -> Mapping[str, Tensor]:
    """Return what each matrix of a sub-layer reads at real tokens, rows [n, in]."""
    parts = view.parts(sublayer)
    units = view.units(sublayer, x, memory)
    joined = units.flatten(-2) if units.ndim == 4 else units
    found = defaultdict(lambda: parts.norm(x)[there], project=joined[there])
    if sublayer.kind is Kind.CROSS:
        counts = torch.bincount(memory.row_pages(), minlength=len(memory.states))
        # the square of a page's rows counts once per question: scale the rows by its root
        pages = memory.states * counts.to(memory.states).sqrt()[:, None, None]
        found["key"] = found["value"] = pages.flatten(0, 1)
    return {one: found[one] for one in MAPS if getattr(parts, one) is not None}


def _add(squares: Squares, key: tuple[SubLayer, str], rows: Tensor) -> None:
    """Add squares of rows [n, in] to a sum."""
    total = rows.double().square().sum(dim=0)
    squares[key] = squares[key] + total if key in squares else total
