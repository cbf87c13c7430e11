"""What unstructured baselines share: how many weights must go, and what their rows always say."""

from __future__ import annotations

from circuitsearch.core.errors import InfeasibleError
from circuitsearch.core.plan import Plan

from .base import Case, Proposal
from .masks import Masks

__all__ = ["needed", "of_group", "pruned"]


def needed(case: Case, weights: int) -> int:
    """Return how many of the matrices' weights must be zero, by the limits on parameters.

    Raises:
        InfeasibleError: no number of zeros is enough, or the budget limits no parameters.
    """
    slack = case.budget.slack(_whole(case), case.teacher.shape)
    over = {one: -slack[one.name] for one in case.budget.limits if slack.get(one.name, 0) < 0}
    counted = [most for limit, most in over.items() if limit.quantity == "parameters"]
    if over and not counted:
        raise InfeasibleError(
            f"Unstructured pruning: the budget limits {', '.join(one.name for one in over)}, and "
            "zeros save none of it; limit parameters, or choose a structured baseline"
        )
    zeros = max(counted, default=0)
    if zeros > weights:
        raise InfeasibleError(
            f"Unstructured pruning: {zeros:,} parameters must go and the matrices hold {weights:,}"
            "; biases and LayerNorms stay. Allow more parameters, or choose a structured baseline"
        )
    return zeros


def of_group(zeros: int, weights: int, size: int) -> int:
    """Return how many of `size` weights that are compared with each other become zero.

    All groups lose the same share, rounded up, so that the total is reached.
    """
    return -(-zeros * size // weights)


def pruned(case: Case, masks: Masks, passes: int) -> Proposal:
    """Return the proposal of masks: the whole plan, and notes on what its row must say."""
    slack = case.budget.slack(_whole(case), case.teacher.shape)
    notes = [
        f"parameters are zeros: {masks.zeros:,} of {masks.weights:,} weights are zero and stored; "
        "MACs are 100 % of the teacher's"
    ]
    notes += [
        f"the limit on {limit.name} is not kept"
        for limit in case.budget.limits
        if limit.name in slack and limit.quantity != "parameters" and slack[limit.name] < 0
    ]
    return Proposal(_whole(case), masks=masks, notes=tuple(notes), passes=passes)


def _whole(case: Case) -> Plan:
    return Plan.full(case.teacher.shape.decoder.layers)
