"""Two models on the same questions: paired differences of their ANLS, overall and per family.

A side is one run or several runs of one plan with several seeds; then a question's score is its
mean over the seeds. ANLS is computed here from answers and gold answers, by one rule for both
sides, so files written under different rules can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from circuitsearch.core.answers import AnlsRule, Answer, Answers
from circuitsearch.core.difference import DRAWS, Difference
from circuitsearch.core.errors import DataError, raise_together
from circuitsearch.core.files import seed_from

from .intervals import paired_bootstrap
from .metrics import anls

__all__ = ["OVERALL", "compare_answers"]

OVERALL = "all"
"""Name of the row over all questions."""

_SHOWN = 3  # question ids named per fault


def compare_answers(
    first: Sequence[Answers],
    second: Sequence[Answers],
    *,
    rule: AnlsRule = "rrc",
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, Difference]:
    """Compare two models that answered the same questions.

    Args:
        first: Runs of the first model, one per seed.
        second: Runs of the second model, one per seed; the numbers of seeds may differ.
        rule: Reading of ANLS.
        seed: Seed of the bootstrap.
        draws: Draws of the bootstrap.

    Returns:
        First minus second: under `OVERALL` over all questions, then under each family's name, in
        order of the names (a family called like `OVERALL` is left to the first row).

    Raises:
        DataError: If a side holds no run, different plans or a seed twice, or if the sides differ
            in their questions, gold answers or documents; all faults together.
    """
    sides = {"first": list(first), "second": list(second)}
    problems = [line for name, runs in sides.items() for line in _side_problems(name, runs)]
    raise_together(problems, DataError, "Comparison")
    _check_same_questions([*sides["first"], *sides["second"]])
    scores = {name: _scores(runs, rule) for name, runs in sides.items()}
    groups: dict[str, list[Answer]] = {OVERALL: sorted(first[0].rows, key=lambda r: r.question)}
    for row in groups[OVERALL]:
        if row.family and row.family != OVERALL:
            groups.setdefault(row.family, []).append(row)
    named = [OVERALL, *sorted(name for name in groups if name != OVERALL)]
    return {
        name: paired_bootstrap(
            [scores["first"][row.question] for row in groups[name]],
            [scores["second"][row.question] for row in groups[name]],
            [row.document for row in groups[name]],
            # a family's interval does not depend on which other families there are
            seed_from("comparison", seed, name),
            draws=draws,
        )
        for name in named
    }


def _scores(runs: Sequence[Answers], rule: AnlsRule) -> dict[str, float]:
    """Return each question's ANLS, the mean over the runs."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for row in run.rows:
            score = anls(row.answer, row.golds, strict=rule == "strict")
            found.setdefault(row.question, []).append(score)
    return {name: math.fsum(each) / len(each) for name, each in found.items()}


def _side_problems(name: str, runs: Sequence[Answers]) -> list[str]:
    """Describe why runs are not the seeds of one plan."""
    if not runs:
        return [f"the {name} side holds no run"]
    problems = [
        f"the {name} side mixes {word}s: {', '.join(map(repr, values[:_SHOWN]))}; compare one "
        "plan with one other"
        for word, values in (
            ("plan", _distinct(run.plan for run in runs)),
            ("number of step", _distinct(run.steps for run in runs)),
            ("split", _distinct(run.split for run in runs)),
        )
        if len(values) > 1
    ]
    seeds = [run.seed for run in runs]
    repeated = _distinct(seed for seed in seeds if seeds.count(seed) > 1)
    problems += [f"the {name} side holds seed {seed} twice" for seed in repeated]
    if not runs[0].rows:
        problems.append(f"the {name} side answers no question")
    return problems


def _distinct(values: Iterable[object]) -> list[object]:
    return list(dict.fromkeys(values))


def _check_same_questions(runs: Sequence[Answers]) -> None:
    """Refuse runs that differ in questions, gold answers, documents or families."""
    base = {row.question: row for row in runs[0].rows}
    problems: dict[str, None] = {}
    for run in runs[1:]:
        other = {row.question: row for row in run.rows}
        found = {
            "are answered on the first side only": [q for q in base if q not in other],
            "are answered on the second side only": [q for q in other if q not in base],
        }
        if run.plan == runs[0].plan and run.seed != runs[0].seed:
            found = {
                f"are not in both seeds {runs[0].seed} and {run.seed}": [
                    *(q for q in base if q not in other),
                    *(q for q in other if q not in base),
                ]
            }
        for what in ("golds", "document", "family"):
            found[f"have another {what.rstrip('s')} on the two sides"] = [
                q for q in base if q in other and getattr(base[q], what) != getattr(other[q], what)
            ]
        problems.update(
            {
                f"{len(names)} questions {how}, first {', '.join(map(repr, names[:_SHOWN]))}": None
                for how, names in found.items()
                if names
            }
        )
    raise_together(
        list(problems),
        DataError,
        "Comparison: the two sides must answer the same questions about the same pages",
    )
