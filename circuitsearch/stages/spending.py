"""What a search spends before its first training, in passes.

A *pass* is one forward or backward run of a decoder on one question, for the search as for
published methods (`students.baselines`). A plan whose loss is asked for counts a pass per question,
although the walk over all plans runs what they begin with once. Published analyses that a warm
start follows (`search.warm_findings`) tell no passes and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from circuitsearch.core.scores import Scores
from circuitsearch.search.space import Space
from circuitsearch.students.baselines import Proposal
from circuitsearch.workspace import Workspace

from .ranking import Ranking
from .warm import replaced_plans, speaks_of_units

__all__ = ["passes_before"]


def passes_before(
    work: Workspace,
    space: Space,
    scores: Scores,
    circuit: Mapping[str, Any],
    asked: Sequence[tuple[str, Proposal]],
    rankings: Sequence[Ranking],
    questions: int,
) -> int:
    """Return the passes behind scores, warm start and rankings.

    Args:
        work: The search.
        space: The feasible plans.
        scores: Scores and effects of the teacher's components.
        circuit: The circuit graph as node-link JSON.
        asked: What published methods proposed for the warm start.
        rankings: The rankings that the search goes by.
        questions: Number of questions that plans are ranked on.
    """
    settings = work.config.search
    spent = scores.passes + sum(one.passes for _, one in asked)
    spent += questions * sum(len(ranking) for ranking in rankings)
    _, skipped, replaced = replaced_plans(space)
    spent += questions * (1 + len(skipped) + len(replaced)) if replaced else 0
    recipe = circuit["graph"]["recipe"]
    if settings.warm_edges and speaks_of_units(work, space, "edges"):
        behind = recipe.get("edge_passes", 0.0) + recipe.get("effect_passes", 0.0)
        spent += recipe["passes"] + math.ceil(recipe["examples"] * behind)
    if settings.warm_pairs and speaks_of_units(work, space, "pairs"):
        # the elastic teacher as it is, without every sub-layer, without every two
        kept = len(space.parts)
        spent += recipe["examples"] * (1 + kept + math.comb(kept, 2))
    return spent
