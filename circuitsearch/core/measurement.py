"""Measurements: how good one evaluated plan is and what it costs, as a record that travels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from circuitsearch.core.errors import (
    DataError,
    choice_problem,
    integer_problems,
    number_problems,
    raise_together,
)
from circuitsearch.core.files import plain, record_fields

__all__ = ["PHASES", "Measurement", "merit"]

PHASES = ("teacher", "untrained", "short", "full")
_SHARES = ("quality", "quality_low", "quality_high", "exact", "nted", "field_f1")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The result of evaluating one plan.

    Attributes:
        plan: canonical text of the plan.
        plan_hash: hash of that text.
        phase: who was measured: the `teacher`, the `untrained` student, or the student after
            `short` or `full` distillation.
        loss: mean cross-entropy of the answers, in nats per answer token.
        quality: mean ANLS in [0, 1]; None when no answers were generated.
        quality_low: lower end of its 95 % bootstrap interval, clustered by document.
        quality_high: upper end of the same interval.
        exact: share of answers that are exactly right, in [0, 1].
        perplexity: exp of the mean loss over all answer tokens, each weighing the same (`loss` is
            the mean over examples); None when unknown or beyond what a float holds.
        nted: mean nTED accuracy of parses, in [0, 1]; None where the task is not parsing.
        field_f1: field F1 of parses over the corpus, in [0, 1]; None where `nted` is.
        examples: number of examples behind the numbers.
        seed: seed of the training; 0 where nothing was trained.
        steps: optimiser steps taken.
        source: who proposed the plan, e.g. `teacher`, `exhaustive`, `scores`, `sampler`.
        cost: `Cost.to_json()` per accounting: {"paper": ..., "cached": ...}.
        checkpoint: folder of the student, None when it was not kept.
        families: quality per question family.
        seconds: time that answering and scoring took, training left out.
        speed: `Speed.to_json()` of the plan's student; empty when it was not measured.
    """

    plan: str
    plan_hash: str
    phase: str
    loss: float
    quality: float | None = None
    quality_low: float | None = None
    quality_high: float | None = None
    exact: float | None = None
    perplexity: float | None = None
    nted: float | None = None
    field_f1: float | None = None
    examples: int
    seed: int
    steps: int
    source: str
    cost: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    families: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    speed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Turn numpy scalars into Python numbers; refuse impossible values, all together."""
        for entry in fields(self):
            object.__setattr__(self, entry.name, plain(getattr(self, entry.name)))
        problems = []
        if self.phase not in PHASES:
            problems.append(choice_problem("phase", self.phase, PHASES))
        for name, number in {"loss": self.loss, **self.families}.items():
            problems += number_problems(name, number)
        problems += number_problems("seconds", self.seconds, 0.0)
        if self.perplexity is not None:
            problems += number_problems("perplexity", self.perplexity, 0.0)
        for name in _SHARES:
            share = getattr(self, name)
            problems += [] if share is None else number_problems(name, share, 0.0, 1.0)
        for name in ("examples", "seed", "steps"):
            problems += integer_problems(name, getattr(self, name))
        raise_together(problems, DataError, f"Measurement of plan {self.plan!r}")

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object; `from_json` reads it back equal."""
        return {entry.name: plain(getattr(self, entry.name)) for entry in fields(self)}

    @classmethod
    def from_json(cls, data: Any) -> Measurement:
        """Read what `to_json` wrote.

        Raises:
            DataError: fields are missing or unknown, or a value is impossible.
        """
        return cls(**record_fields(cls, data))


def merit(made: Measurement) -> tuple[float, float, str]:
    """Return by what plans are ordered, best first: quality, then lower loss, then text."""
    return (-(made.quality or 0.0), made.loss, made.plan)
