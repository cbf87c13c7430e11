"""EvoPress (Sieberling et al., arXiv 2410.14649): a (1 + 32) evolution with staged selection.

Fitness is KL(teacher | student) at the answer tokens, against cached teacher logits.

* Start: 64 random feasible plans, the best on a sixteenth of the calibration questions.
* A generation: 32 children, none like the parent or another. A child takes min(a, b) swaps, a and b
  uniform in 1..3.
* Selection: the best two children on a sixteenth of the questions, drawn anew; these and the parent
  on all of them, and the best is the next parent. The paper's stages have the same ratio (2,048 and
  32,768 tokens). As the last stage reads all questions, fitness never gets worse.
* Generations: k (n - k) / 1.5 for k of n units removed at the start, as for depth in the paper.

The paper's swap drops a kept part and restores a dropped one of the same kind, which conserves
their number. Under a budget in parameters and multiply-adds swaps compensate by cost: a kept unit
goes, and dropped ones come back in random order as long as they fit. Swaps of one kind are among
these.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from circuitsearch.core.files import seed_from

from .base import Case, Proposal, fill, proposal
from .distances import PlanDistances
from .units import Kept

__all__ = ["evolved", "evopress"]

_STARTS = 64
_CHILDREN = 32
_SURVIVORS = 2
_SWAPS = 3
_SHARE = 16
_TRIES = 20
"""Draws per child before a generation goes on with fewer: small spaces hold no 32 neighbours."""


def evopress(case: Case) -> tuple[Proposal, ...]:
    """Propose the plan that the evolution ends with.

    Raises:
        InfeasibleError: nothing that reads the page keeps the budget.
    """
    judge = PlanDistances(case, "kl")
    kept, trace = evolved(case, judge)
    notes = [f"{len(trace) - 1} generations, KL {trace[0]:.4g} to {trace[-1]:.4g}"]
    return (proposal(case, kept, notes=notes, passes=judge.passes),)


def evolved(case: Case, judge: PlanDistances) -> tuple[Kept, list[float]]:
    """Return the last parent and the fitness of every parent, lower is better."""
    rng = random.Random(seed_from("evopress", case.features.key, case.seed))
    small = max(1, len(case.questions) // _SHARE)
    units = case.units

    def ranked(some: Sequence[Kept], questions: Sequence[int]) -> list[tuple[float, Kept]]:
        values = judge([units.plan(kept) for kept in some], questions)
        return sorted(zip(values, some, strict=True), key=lambda row: (row[0], sorted(row[1])))

    starts = {_drawn(case, rng): None for _ in range(_STARTS)}
    parent = ranked(list(starts), rng.sample(case.questions, small))[0][1]
    best = ranked([parent], case.questions)[0][0]
    trace = [best]
    removed = len(units.all) - len(parent)
    generations = int(removed * len(parent) / 1.5)
    if case.most_generations is not None:
        generations = min(generations, case.most_generations)
    for _ in range(generations):
        children = _children(case, parent, rng)
        if not children:
            break
        first = ranked(children, rng.sample(case.questions, small))[:_SURVIVORS]
        value, child = ranked([kept for _, kept in first], case.questions)[0]
        if value < best:
            parent, best = child, value
        trace.append(best)
    return parent, trace


def _drawn(case: Case, rng: random.Random) -> Kept:
    """Return random units, filled up until nothing more fits."""
    order = rng.sample(range(len(case.units.all)), len(case.units.all))
    return fill(case, frozenset(), order)


def _children(case: Case, parent: Kept, rng: random.Random) -> list[Kept]:
    """Return different children of a parent."""
    found: dict[Kept, None] = {}
    for _ in range(_CHILDREN * _TRIES):
        child = parent
        for _ in range(min(rng.randint(1, _SWAPS), rng.randint(1, _SWAPS))):
            child = _swapped(case, child, rng)
        if child != parent:
            found[child] = None
        if len(found) == _CHILDREN:
            break
    return list(found)


def _swapped(case: Case, kept: Kept, rng: random.Random) -> Kept:
    """Return the units after a kept one went and others came back for what it cost."""
    units = case.units
    others = sorted(units.everything - kept)
    if not others:
        return kept
    # the only unit that reads the page may go: `fill` keeps room for another one
    left = units.less(kept, [rng.choice(sorted(kept))])
    return fill(case, left, rng.sample(others, len(others)))
