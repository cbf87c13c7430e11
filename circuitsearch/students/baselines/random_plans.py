"""Random plans: what a budget alone is worth.

Units are taken in a random order as long as they fit and a cross-attention stays affordable; a draw
is never rejected, and nothing more fits into any of the plans. The row of random plans in a result
table is a distribution over `draws` different plans, not one lucky or unlucky one.
"""

from __future__ import annotations

import random

from circuitsearch.core.files import seed_from

from .base import Case, Proposal, fill, proposal
from .units import Kept

__all__ = ["DRAWS", "random_plans"]

DRAWS = 20
_TRIES = 20
"""Draws per plan: a small space may hold fewer different ones."""


def random_plans(case: Case, draws: int = DRAWS) -> tuple[Proposal, ...]:
    """Propose different random plans, fewer where the budget allows no more.

    Raises:
        InfeasibleError: nothing that reads the page keeps the budget.
    """
    found: dict[Kept, None] = {}
    for draw in range(draws * _TRIES):
        rng = random.Random(seed_from("random plan", case.seed, draw))
        order = rng.sample(range(len(case.units.all)), len(case.units.all))
        found[fill(case, frozenset(), order)] = None
        if len(found) == draws:
            break
    return tuple(
        Proposal(one.plan, f"random {number}", notes=one.notes)
        for number, one in enumerate(proposal(case, kept) for kept in found)
    )
