"""FinerCut (Zhang et al., arXiv 2405.18218): greedy removal by the change of the logits.

Repeat until the budget is met: remove every remaining unit by itself, measure how far the logits
move from the teacher's (`distances`), and remove the unit that moves them least, whatever it costs.
At granularity `heads` units are heads and steps of widths, which the row of Donut-MINT at 7 % of
the parameters needs: no plan of whole sub-layers is that small.

With n units and r of them removed this takes r n - r (r - 1) / 2 evaluations of a student: 78 for
all of Donut's 12 sub-layers.
"""

from __future__ import annotations

from .base import Case, Proposal, infeasible, proposal, taken_back
from .distances import PlanDistances
from .units import Kept

__all__ = ["finercut"]

_QUESTIONS_OF_HEADS = 32
"""Calibration questions at granularity `heads`, where thousands of students are evaluated."""


def finercut(case: Case, distance: str) -> tuple[Proposal, ...]:
    """Propose the plan of the greedy removal.

    Scores are the distances at which units were removed, also of those that fit after all; units
    that were never removed have none.

    Args:
        case: what is pruned.
        distance: `norm`, `angular`, `kl` or `js`.
    """
    units = case.units
    judge = PlanDistances(case, distance)
    questions = case.questions
    if case.granularity == "heads":
        questions = questions[:_QUESTIONS_OF_HEADS]
    kept: Kept = units.everything
    gone: list[list[int]] = []
    scores: dict[str, float] = {}
    notes: list[str] = []
    while not case.keeps_budget(kept):
        candidates = units.removable(kept)
        plans = [units.plan(units.less(kept, [index])) for index in candidates]
        found = zip(judge(plans, questions), candidates, strict=True)
        ranked = sorted(found, key=lambda row: (row[0], -row[1]))
        reading = kept & units.readers
        if len(reading) == 1 and ranked[0][1] in reading and not notes:
            notes.append(
                f"{units.names(reading)} would go and is protected: nothing else reads the page"
            )
        ranked = [row for row in ranked if len(reading) > 1 or row[1] not in reading]
        if not ranked:
            raise infeasible(case, kept)
        value, chosen = ranked[0]
        kept = units.less(kept, [chosen])
        gone.append([chosen])
        scores[units.all[chosen].name] = value
    kept, back = taken_back(case, kept, gone)
    passes = judge.passes
    return (proposal(case, kept, scores=scores, notes=notes + back, passes=passes),)
