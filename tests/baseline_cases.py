"""Shared by the tests of baselines: cases as `stages.baselines` makes them, on the tiny teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.plan import Plan
from circuitsearch.search.exhaustive import sweep
from circuitsearch.search.knapsack import solve
from circuitsearch.search.space import Space
from circuitsearch.search.units import Choices
from circuitsearch.students.baselines import Case, widths
from circuitsearch.students.baselines.units import Granularity
from circuitsearch.students.features import Features
from circuitsearch.teacher.loading import Teacher, load_teacher
from tests.tiny import tiny_checkpoint, tiny_model, tiny_tokenizer

__all__ = ["BUDGETS", "make_case", "small_teacher", "space_of"]

# Generous; Donut-MINT's coarse row; heads beside biases and norms; a few heads; a single head.
BUDGETS: dict[str, tuple[Granularity, tuple[LimitSpec, ...]]] = {
    "most": ("sublayers", (LimitSpec("parameters", "80%"),)),
    "coarse": ("sublayers", (LimitSpec("parameters", "31.25%"), LimitSpec("macs", "50%"))),
    "cached": ("heads", (LimitSpec("parameters", "85%", accounting="cached"),)),
    "fine": ("heads", (LimitSpec("parameters", "20%"), LimitSpec("macs", "40%"))),
    "least": ("heads", (LimitSpec("parameters", "6.5%"),)),
}


def small_teacher(folder: Path) -> Teacher:
    """The tiny teacher, narrower: greedy rules try every head and every step of every width."""
    tiny_checkpoint(folder)
    tokenizer = tiny_tokenizer()
    start = tokenizer.convert_tokens_to_ids("<s_docvqa>")
    tiny_model(len(tokenizer), start, heads=2, ffn=4).save_pretrained(folder)
    return load_teacher(str(folder))


def space_of(teacher: Teacher, granularity: Granularity, limits: tuple[LimitSpec, ...]) -> Space:
    """Plans of the units that baselines remove."""
    choices = Choices()
    if granularity == "heads":
        choices = Choices("heads", widths(teacher.shape.decoder))
    return Space(teacher.shape, Budget.resolve(limits, teacher.shape), choices)


def make_case(teacher: Teacher, features: Features, budget: str, **options: Any) -> Case:
    """A case under one of the budgets."""
    granularity, limits = BUDGETS[budget]
    space = space_of(teacher, granularity, limits)

    def best(worths: Mapping[str, float]) -> Plan:
        bits = solve([worths[name] for name in space.names], space)
        assert bits is not None
        return space.plan(bits)

    given: dict[str, Any] = {
        "teacher": teacher,
        "features": features,
        "budget": space.budget,
        "granularity": granularity,
        "seed": 0,
        "solve": best,
        "sweep": sweep,
        "most_questions": 6,
        "most_generations": 3,
    }
    return Case(**(given | options))
