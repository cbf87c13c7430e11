"""Puzzle (Bercovich et al., arXiv 2411.19146): replace-one scores that add up, and a program.

Every alternative of a part is scored by itself, all else being the teacher:

    puzzle         KL(teacher | student) at the answer tokens
    puzzle-cosine  1 - cos of the last hidden states (behind the final norm) at all tokens

Alternatives of a sub-layer are the whole of it, none of it, and between these its k best heads or
its widths. An integer program takes one of each so that the scores add up to the least within the
budget (`search.knapsack`, handed in). It counts worths of steps: what the k-th head or the next
width takes off the score, so that the steps that are kept add up to their alternative's score.

The paper's menu has other attentions (fewer key-value heads, linear ones), which a student here has
not; here it is the k best heads, best by the score of the decoder without the one. Its local
distillation of blocks is left out: every student meets the same trainer afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from circuitsearch.core.components import SubLayer
from circuitsearch.core.plan import Plan
from circuitsearch.students.plan_view import PlanView
from circuitsearch.teacher.decoders import ResidualDecoder, continue_from

from .base import Case, Proposal, proposal
from .calibration import batches, real
from .distances import PlanDistances
from .units import Kept

__all__ = ["Menu", "puzzle", "puzzle_menus"]


@dataclass(frozen=True)
class Menu:
    """Alternatives of a sub-layer.

    Attributes:
        order: its units, the one that is kept longest first.
        scores: of the decoder that keeps the first k of them, k from 0; 0.0 for all.
    """

    order: tuple[int, ...]
    scores: tuple[float, ...]


def puzzle(case: Case, score: str) -> tuple[Proposal, ...]:
    """Propose the plan whose alternatives' scores add up to the least.

    Args:
        case: what is pruned.
        score: `kl` or `cosine`.

    Raises:
        InfeasibleError: no legal plan keeps the budget.
    """
    menus, passes = puzzle_menus(case, score)
    steps: dict[str, float] = {}  # by the program's names of steps
    worths: dict[str, float] = {}  # by the units' names
    for menu in menus.values():
        for step, unit in enumerate(menu.order):
            worth = menu.scores[step] - menu.scores[step + 1]
            worths[case.units.all[unit].name] = worth
            steps[_step_name(case, menu, step)] = worth
    plan = case.solve(steps)
    sizes = {sublayer: _size(case, plan, sublayer) for sublayer in menus}
    kept = frozenset(i for one, menu in menus.items() for i in menu.order[: sizes[one]])
    return (proposal(case, kept, scores=worths, passes=passes),)


def puzzle_menus(case: Case, score: str) -> tuple[dict[SubLayer, Menu], int]:
    """Return the alternatives of every sub-layer, and the passes spent."""
    units, scores = case.units, _Scores(case, score)
    heads = [index for index, unit in enumerate(units.all) if unit.head is not None]
    alone = dict(zip(heads, scores([units.everything - {head} for head in heads]), strict=True))
    orders = {
        # steps of a width stand in their order already
        sublayer: tuple(sorted(chain, key=lambda unit: (-alone.get(unit, 0.0), unit)))
        for sublayer, chain in units.by_sublayer.items()
    }
    kept = {
        sublayer: [units.everything - frozenset(order[k:]) for k in range(len(order) + 1)]
        for sublayer, order in orders.items()
    }
    scores([one for several in kept.values() for one in several])  # all at once: they share much
    menus = {s: Menu(order, tuple(scores(kept[s]))) for s, order in orders.items()}
    return menus, scores.passes


class _Scores:
    """Scores of decoders that keep some units, each measured once.

    Attributes:
        passes: forward passes of one question so far.
    """

    def __init__(self, case: Case, score: str) -> None:
        self.passes = 0
        self._case, self._score = case, score
        self._known: dict[Kept, float] = {case.units.everything: 0.0}

    def __call__(self, several: Sequence[Kept]) -> list[float]:
        """Return the score of each."""
        new = [kept for kept in dict.fromkeys(several) if kept not in self._known]
        if new:
            plans = [self._case.units.plan(kept) for kept in new]
            self._known.update(zip(new, self._measured(plans), strict=True))
        return [self._known[kept] for kept in several]

    def _measured(self, plans: Sequence[Plan]) -> list[float]:
        case = self._case
        if self._score == "kl":
            distances = PlanDistances(case, "kl")
            values = distances(plans, case.questions)
            self.passes += distances.passes
            return values
        self.passes += (len(plans) + 1) * len(case.questions)
        return _turned(case, plans)


def _step_name(case: Case, menu: Menu, step: int) -> str:
    """Return what the program calls a step: a sub-layer, one more head, or a further width."""
    unit = case.units.all[menu.order[step]]
    if unit.head is None:
        return unit.name
    return f"{unit.sublayer}:{step + 1}" if len(menu.order) > 1 else unit.sublayer.name


def _size(case: Case, plan: Plan, sublayer: SubLayer) -> int:
    """Return how many units of a sub-layer a plan of the program keeps."""
    keep, chain = plan.keep(sublayer), case.units.by_sublayer[sublayer]
    if keep is None:
        return 0
    if keep.heads is not None:
        return len(keep.heads)
    return len(chain) if keep.width is None else case.units.widths.index(keep.width) + 1


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
