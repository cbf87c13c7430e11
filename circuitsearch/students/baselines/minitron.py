"""Minitron (Muralidharan et al., arXiv 2407.14679): activation statistics and a grid of shapes.

With x the input of fc2 (neurons) or out_proj (heads) and `mean` over the tokens of one question:

    neuron   sqrt(sum over questions of (mean |x|)^2)
    head     L2 norm of that statistic over the head's channels
    layer    sum over questions of the mean of 1 - cos(stream before, stream behind)

Statistics only rank: heads inside their attention, neurons inside their feed-forward, layers. What
to keep comes from a grid of homogeneous shapes, as in the reference implementation (NVIDIA
Model-Optimizer): as many heads in every attention, the same width in every feed-forward, the lowest
layers dropped. Shapes within the budget are sorted by how much of it they use, and of the first ten
that of least calibration loss is taken. At granularity `sublayers` only depth is left.
The reference's caps (at most 40 % narrower, 20 % shallower) are left out, since budgets below half
would leave no shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import InfeasibleError

from .base import Case, Proposal, proposal
from .calibration import observed
from .distances import PlanDistances
from .unit_scores import neuron_ranking
from .units import Kept

__all__ = ["Statistics", "minitron", "statistics"]

_SCORED = 10
"""Shapes whose calibration loss is measured."""


class Statistics:
    """Minitron's statistics of a decoder.

    Attributes:
        heads: [H] by attention.
        neurons: [F] by feed-forward.
        layers: by layer.
    """

    def __init__(self) -> None:
        self.heads: dict[SubLayer, Tensor] = {}
        self.neurons: dict[SubLayer, Tensor] = {}
        self.layers: dict[int, float] = {}


def statistics(case: Case) -> Statistics:
    """Measure the statistics on the calibration questions, in one pass."""
    squares: dict[SubLayer, Tensor] = {}
    found = Statistics()
    start: Tensor | None = None
    for seen in observed(case.teacher.decoder, case):
        there = seen.real.double()
        lengths = there.sum(dim=1, keepdim=True)
        channels = seen.units.flatten(2).double().abs()
        means = (channels * there[..., None]).sum(dim=1) / lengths
        total = means.square().sum(dim=0)
        squares[seen.sublayer] = squares.get(seen.sublayer, torch.zeros_like(total)) + total
        if start is None or seen.sublayer.position % 3 == 0:
            start = seen.before
        if seen.sublayer.position % 3 == 2:
            turned = 1 - cosine_similarity(start.double(), seen.after.double(), dim=-1)
            value = float(((turned * there).sum(dim=1, keepdim=True) / lengths).sum())
            layer = seen.sublayer.layer
            found.layers[layer] = found.layers.get(layer, 0.0) + value
    for sublayer, total in squares.items():
        if sublayer.kind is Kind.FEED:
            found.neurons[sublayer] = total.sqrt()
        else:
            each = total.view(case.units.shape.heads, -1)
            found.heads[sublayer] = each.sum(dim=1).sqrt()
    return found


def minitron(case: Case) -> tuple[Proposal, ...]:
    """Propose the best of the ten largest homogeneous shapes within the budget.

    Raises:
        InfeasibleError: no homogeneous shape fits.
    """
    found = statistics(case)
    units, shape = case.units, case.teacher.shape
    fitting = [kept for kept in _shapes(case, found) if case.keeps_budget(kept)]
    if not fitting:
        raise InfeasibleError(
            "Minitron: no homogeneous shape keeps the budget; allow more, or let baselines remove "
            "heads and widths"
        )
    largest = {limit.name: max(limit.maximum, 1) for limit in case.budget.limits}

    def unused(kept: Kept) -> float:
        slack = case.budget.slack(units.plan(kept), shape)
        return sum(left / largest[name] for name, left in slack.items())

    first = sorted(fitting, key=lambda kept: (unused(kept), sorted(kept)))[:_SCORED]
    ranking = neuron_ranking(found.neurons)
    judge = PlanDistances(case, "loss", ranking)
    plans = [units.plan(kept) for kept in first]
    losses = judge(plans, case.questions)
    _, place = min(zip(losses, range(len(first)), strict=True))
    notes = [f"{len(fitting)} homogeneous shapes fit, the loss of the {len(first)} largest decided"]
    passes = judge.passes + len(case.questions)
    scores = _named(found, units.granularity)
    return (
        proposal(case, first[place], scores=scores, ranking=ranking, notes=notes, passes=passes),
    )


def _shapes(case: Case, found: Statistics) -> Iterator[Kept]:
    """Yield the units of every homogeneous shape."""
    units = case.units
    worst = sorted(found.layers, key=lambda layer: (found.layers[layer], -layer))
    heads = {
        sublayer: torch.argsort(values, descending=True, stable=True).tolist()
        for sublayer, values in found.heads.items()
    }
    counted = units.granularity == "heads"
    for dropped in range(len(worst)):
        layers = set(worst[dropped:])
        for count in range(1, units.shape.heads + 1) if counted else (0,):
            for steps in range(1, len(units.widths) + 1) if counted else (0,):
                yield frozenset(
                    index
                    for index, unit in enumerate(units.all)
                    if unit.sublayer.layer in layers
                    and (unit.head is None or unit.head in heads[unit.sublayer][:count])
                    and (unit.step is None or unit.step < steps)
                )


def _named(found: Statistics, granularity: str) -> Mapping[str, float]:
    """Return the statistics by name: those of layers, and of heads where they are ranked."""
    named = {f"layer {layer}": value for layer, value in found.layers.items()}
    if granularity == "heads":
        for sublayer, values in found.heads.items():
            named |= {f"{sublayer}.H{head}": v for head, v in enumerate(values.tolist())}
    return named
