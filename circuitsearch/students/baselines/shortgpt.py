"""ShortGPT (Men et al., arXiv 2403.03853): block influence, one shot.

    BI = 1 - E[cos(x, y)],   x: the stream before a block, y: behind it, E over calibration tokens

The block of lowest BI goes first, whatever it costs, until the budget is met. A block is a decoder
layer, as published, or (`shortgpt-sublayers`) a sub-layer. Where not even one layer fits, the last
one loses sub-layers by their own BI, and the notes say so. Streams are raw residuals: the final
norm is no part of the last block.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn.functional import cosine_similarity

from circuitsearch.core.components import SubLayer

from .base import Case, Proposal, proposal, remove
from .calibration import Seen, observed

__all__ = ["layer_influence", "shortgpt", "shortgpt_sublayers", "sublayer_influence"]


def shortgpt(case: Case) -> tuple[Proposal, ...]:
    """Propose the plan of the layers of largest influence."""
    layers, single = _influences(case)
    units = case.units
    whole: dict[int, list[int]] = {layer: [] for layer in layers}
    for index, unit in enumerate(units.all):
        whole[unit.sublayer.layer].append(index)
    order = sorted(layers, key=lambda layer: (layers[layer], -layer))
    groups = [whole[layer] for layer in order[:-1]]
    kept = frozenset(whole[order[-1]])
    notes = []
    if not case.keeps_budget(kept):
        notes = [f"layer {order[-1]} alone does not fit, so it loses sub-layers by their BI"]
        last = [one for one in single if one.layer == order[-1]]
        groups += _groups(case, single, last)
    kept, said = remove(case, groups)
    scores = {f"layer {layer}": value for layer, value in layers.items()}
    passes = len(case.questions)
    return (proposal(case, kept, scores=scores, notes=notes + said, passes=passes),)


def shortgpt_sublayers(case: Case) -> tuple[Proposal, ...]:
    """Propose the plan of the sub-layers of largest influence."""
    _, single = _influences(case)
    kept, notes = remove(case, _groups(case, single, single))
    scores = {sublayer.name: value for sublayer, value in single.items()}
    return (proposal(case, kept, scores=scores, notes=notes, passes=len(case.questions)),)


def _groups(
    case: Case, influence: dict[SubLayer, float], some: Iterable[SubLayer]
) -> list[list[int]]:
    """Return the units of sub-layers, lowest influence first."""
    order = sorted(some, key=lambda one: (influence[one], -one.position))
    return [list(case.units.by_sublayer[one]) for one in order]


def _influences(case: Case) -> tuple[dict[int, float], dict[SubLayer, float]]:
    """Return the block influence of every layer and of every sub-layer."""
    layers: dict[int, float] = {}
    single: dict[SubLayer, float] = {}
    tokens = 0
    start: torch.Tensor | None = None
    for seen in observed(case.teacher.decoder, case):
        layer = seen.sublayer.layer
        if start is None or seen.sublayer.position % 3 == 0:
            start = seen.before
        single[seen.sublayer] = single.get(seen.sublayer, 0.0) + _turned(seen, seen.before)
        if seen.sublayer.position % 3 == 2:
            layers[layer] = layers.get(layer, 0.0) + _turned(seen, start)
        tokens += int(seen.real.sum()) if seen.sublayer.position == 0 else 0
    return (
        {layer: value / tokens for layer, value in layers.items()},
        {one: value / tokens for one, value in single.items()},
    )


def layer_influence(case: Case) -> dict[int, float]:
    """Return the block influence of every decoder layer."""
    return _influences(case)[0]


def sublayer_influence(case: Case) -> dict[SubLayer, float]:
    """Return the block influence of every sub-layer."""
    return _influences(case)[1]


def _turned(seen: Seen, before: torch.Tensor) -> float:
    """Return the sum of 1 - cos over real tokens."""
    cosine = cosine_similarity(before[seen.real].double(), seen.after[seen.real].double(), dim=-1)
    return float((1 - cosine).sum())
