"""From numbers of heads, neurons and sub-layers to one score per unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from circuitsearch.core.components import SubLayer
from circuitsearch.students.plan_view import NeuronOrder

from .units import Units

__all__ = ["UnitScores", "neuron_ranking", "unit_scores"]


@dataclass(frozen=True)
class UnitScores:
    """One number per unit, larger for what should stay.

    Attributes:
        values: in the order of the units.
        named: the same by name.
        ranking: neurons of the feed-forwards, best first; empty at granularity `sublayers`.
    """

    values: tuple[float, ...]
    named: Mapping[str, float]
    ranking: NeuronOrder


def neuron_ranking(neurons: Mapping[SubLayer, Tensor]) -> dict[SubLayer, tuple[int, ...]]:
    """Return neurons by score [F], best first; ties by number."""
    return {
        feed: tuple(torch.argsort(values, descending=True, stable=True).tolist())
        for feed, values in neurons.items()
    }


def unit_scores(
    units: Units,
    *,
    sublayers: Callable[[SubLayer], float],
    heads: Callable[[SubLayer], Tensor],
    neurons: Callable[[SubLayer], Tensor],
    join: Callable[[Tensor], Tensor],
) -> UnitScores:
    """Score every unit.

    Args:
        units: what is scored.
        sublayers: gives the score of a whole sub-layer.
        heads: gives the scores [H] of an attention's heads.
        neurons: gives the scores [F] of a feed-forward's neurons.
        join: makes the score of a step of the width from those of its neurons.
    """
    values: list[float] = []
    ranking: dict[SubLayer, tuple[int, ...]] = {}
    for sublayer, indices in units.by_sublayer.items():
        first = units.all[indices[0]]
        if first.step is not None:
            each = neurons(sublayer)
            ranking |= neuron_ranking({sublayer: each})
            values += [float(join(each[list(step)])) for step in _steps(units, ranking[sublayer])]
        elif first.head is not None:
            values += [float(value) for value in heads(sublayer)]
        else:
            values.append(float(sublayers(sublayer)))
    named = {unit.name: value for unit, value in zip(units.all, values, strict=True)}
    return UnitScores(tuple(values), named, ranking)


def _steps(units: Units, order: Sequence[int]) -> list[Sequence[int]]:
    """Return the neurons of each step of a width."""
    ends = (0, *units.widths)
    return [order[low:high] for low, high in pairwise(ends)]
