"""Puzzle (Bercovich et al., arXiv 2411.19146): replace-one scores that add up, and a program.

Every alternative of a part is scored by itself, all else being the teacher:

    puzzle         KL(teacher | student) at the answer tokens
    puzzle-cosine  1 - cos of the last hidden states (behind the final norm) at all tokens

The worth of a unit is what its removal costs: for a sub-layer or a head the score of the decoder
without it; for step i of a feed-forward's width the score at the width before it minus the score at
its own, so that the steps kept add up to the score of the width. An integer program keeps the units
of largest total worth within the budget (`search.knapsack`, handed in).

The paper's menu has other attentions (fewer key-value heads, linear ones), which a student here has
not; heads are scored one by one instead. Its local distillation of blocks is left out: every
student meets the same trainer afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from circuitsearch.core.plan import Plan
from circuitsearch.students.plan_view import PlanView
from circuitsearch.teacher.decoders import ResidualDecoder, continue_from

from .base import Case, Proposal, proposal
from .calibration import batches, real
from .distances import PlanDistances
from .units import Kept

__all__ = ["puzzle", "puzzle_worths"]


def puzzle(case: Case, score: str) -> tuple[Proposal, ...]:
    """Propose the plan of largest total worth.

    Args:
        case: what is pruned.
        score: `kl` or `cosine`.

    Raises:
        InfeasibleError: no legal plan keeps the budget.
    """
    worths, passes = puzzle_worths(case, score)
    plan = case.solve(worths)
    kept = frozenset(_units_of(case, plan))
    return (proposal(case, kept, scores=worths, passes=passes),)


def puzzle_worths(case: Case, score: str) -> tuple[dict[str, float], int]:
    """Return the worth of every unit by name, and the passes spent."""
    units = case.units
    # what is left when a unit, and of a width all later steps, are gone
    left: list[Kept] = []
    for unit in units.all:
        chain = units.by_sublayer[unit.sublayer]
        gone = chain[unit.step :] if unit.step is not None else [units.all.index(unit)]
        left.append(units.everything - frozenset(gone))
    plans = [units.plan(kept) for kept in left]
    if score == "kl":
        judge = PlanDistances(case, "kl")
        values = judge(plans, case.questions)
        passes = judge.passes
    else:
        values = _turned(case, plans)
        passes = (len(plans) + 1) * len(case.questions)
    worths = {}
    for index, unit in enumerate(units.all):
        chain = units.by_sublayer[unit.sublayer]
        narrower = unit.step is not None and index != chain[-1]
        worths[unit.name] = values[index] - (values[index + 1] if narrower else 0.0)
    return worths, passes


def _units_of(case: Case, plan: Plan) -> list[int]:
    """Return the units that a plan keeps."""
    found = []
    for index, unit in enumerate(case.units.all):
        keep = plan.keep(unit.sublayer)
        if keep is None:
            continue
        head = unit.head is None or keep.heads is None or unit.head in keep.heads
        width = keep.width or case.units.shape.ffn
        if head and (unit.step is None or case.units.widths[unit.step] <= width):
            found.append(index)
    return found


def _turned(case: Case, plans: Sequence[Plan]) -> list[float]:
    """Return 1 - cos of the last hidden states of each plan, averaged over all tokens."""
    view, device = case.teacher.decoder, case.teacher.device
    views = [PlanView(view, plan) for plan in plans]
    sums, tokens = [0.0] * len(plans), 0
    with torch.no_grad():
        for read in batches(case):
            states, rows = read.states.to(device), read.rows.to(device)
            ids, there = read.batch.ids.to(device), real(read).to(device)
            teacher = _hidden(view, states, rows, ids)[there]
            tokens += len(teacher)
            for place, one in enumerate(views):
                student = _hidden(one, states, rows, ids)[there]
                cosine = cosine_similarity(teacher.double(), student.double(), dim=-1)
                sums[place] += float((1 - cosine).sum())
    return [value / tokens for value in sums]


def _hidden(view: ResidualDecoder, states: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    """Return the last hidden states [B, T, d]."""
    x = continue_from(view, view.embed(ids), view.memory(states, rows))
    return view.final_norm(x)
