"""Taylor pruning: how much the loss would move, to first order, if a unit's numbers were zero.

    taylor       sum over the unit's weights of |w * dL/dw|     LLM-Pruner (arXiv 2305.11627),
                 Molchanov et al. (arXiv 1611.06440)
    taylor-gate  |<z, dL/dz>| of what the unit carries          Michel et al. (arXiv 1905.10650)

The formulas are those of `discovery.attribution.taylor`, per example and averaged; L is the mean
cross-entropy of the answer. Neurons are ranked by the same score, a step of a width has the sum of
its neurons' scores. The lowest score per cost goes first (`base.by_cost`).
"""

from __future__ import annotations

import torch

from circuitsearch.core.components import SubLayer
from circuitsearch.discovery.attribution.taylor import taylor_neurons, taylor_scores

from .base import Case, Proposal, by_cost, proposal, remove
from .unit_scores import unit_scores

__all__ = ["taylor"]


def taylor(case: Case, form: str) -> tuple[Proposal, ...]:
    """Propose the plan of the largest Taylor scores.

    Args:
        case: what is pruned.
        form: `weights` or `gate`.
    """
    view, sample = case.teacher.decoder, case.sample
    table = taylor_scores(view, sample, form=form)
    means = table.means()
    passes = round(table.passes * sample.examples)
    neurons = {}
    if case.granularity == "heads":
        neurons = taylor_neurons(view, sample, form=form)
        passes += 2 * sample.examples

    def heads(one: SubLayer) -> torch.Tensor:
        return torch.tensor([means[f"{one}.H{head}"] for head in range(case.units.shape.heads)])

    scores = unit_scores(
        case.units,
        sublayers=lambda one: means[one.name],
        heads=heads,
        neurons=lambda one: torch.from_numpy(neurons[one.name]),
        join=torch.sum,
    )
    kept, notes = remove(case, by_cost(case, scores.values))
    return (
        proposal(
            case, kept, scores=scores.named, ranking=scores.ranking, notes=notes, passes=passes
        ),
    )
