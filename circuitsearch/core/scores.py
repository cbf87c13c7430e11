"""Scores: what discovery says about every component, as a record that travels between stages.

A *score* is the estimated and an *effect* the measured change of the metric when a component is
removed from the teacher. Both share one sign: positive means that removing the component raises the
loss, so the component helps. The effect, by exact patching, judges the score; `calibration` keeps
how well the two agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from circuitsearch.core.errors import (
    DataError,
    integer_problems,
    number_problems,
    raise_together,
)
from circuitsearch.core.files import plain, record_fields

__all__ = ["ComponentScore", "Scores"]


@dataclass(frozen=True)
class ComponentScore:
    """What is known about one component.

    Attributes:
        component: name, e.g. `C3` or `C3.H11`.
        score: estimated rise of the mean loss when the component is removed; None if not scored.
        effect: measured rise of the mean loss; None if not patched.
        effect_sd: standard deviation of the effect over examples.
        score_sd: standard deviation of the score over examples.
        examples: number of examples behind the numbers.
        sign_consistency: share of examples whose score has the sign of the mean.
        score_low: lower end of the score's 95 % interval, documents drawn.
        score_high: its upper end.
        effect_low: lower end of the effect's 95 % interval.
        effect_high: its upper end.
    """

    component: str
    score: float | None = None
    effect: float | None = None
    effect_sd: float | None = None
    score_sd: float | None = None
    examples: int = 0
    sign_consistency: float | None = None
    score_low: float | None = None
    score_high: float | None = None
    effect_low: float | None = None
    effect_high: float | None = None

    def __post_init__(self) -> None:
        """Turn numpy scalars into Python numbers; refuse numbers that are not finite."""
        numbers = [one.name for one in fields(self) if one.name not in ("component", "examples")]
        for name in (*numbers, "examples"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        problems = integer_problems("examples", self.examples)
        for name in numbers:
            value = getattr(self, name)
            least = 0.0 if name.endswith("_sd") else -math.inf
            problems += [] if value is None else number_problems(name, value, least)
        raise_together(problems, DataError, f"Score of component {self.component!r}")


@dataclass(frozen=True)
class Scores:
    """Scores and effects of a teacher's components under one metric and one kind of ablation.

    Attributes:
        teacher: fingerprint of the teacher.
        metric: what the numbers are about, e.g. `answer_loss`.
        ablation: what replaces a removed component: `zero`, `mean` or `resample`.
        method: how the scores were estimated.
        examples: number of examples used.
        components: one entry per component, names unique.
        calibration: agreement of scores and effects, keys such as `sublayers.spearman`.
        passes: forward and backward passes of one example, spent.
        base_metric: the metric of the whole teacher on the same examples.
    """

    teacher: str
    metric: str
    ablation: str
    method: str
    examples: int
    components: tuple[ComponentScore, ...]
    calibration: Mapping[str, float] = field(default_factory=dict)
    passes: int = 0
    base_metric: float = 0.0

    def __post_init__(self) -> None:
        """Turn numpy scalars into Python numbers; refuse repeated names and infinities."""
        object.__setattr__(self, "components", tuple(self.components))
        object.__setattr__(self, "calibration", plain(dict(self.calibration)))
        for name in ("examples", "passes", "base_metric"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        names = [entry.component for entry in self.components]
        counts = {name: names.count(name) for name in names}
        problems = [f"component {name!r} appears {n} times" for name, n in counts.items() if n > 1]
        problems += integer_problems("examples", self.examples)
        problems += integer_problems("passes", self.passes)
        for name, value in {"base_metric": self.base_metric, **self.calibration}.items():
            problems += number_problems(name, value)
        raise_together(problems, DataError, "Scores")

    def by_name(self) -> dict[str, ComponentScore]:
        """Return the entries by component name, in their order."""
        return {entry.component: entry for entry in self.components}

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object; `from_json` reads it back equal."""
        components = [dict(vars(entry)) for entry in self.components]
        return {**vars(self), "components": components, "calibration": dict(self.calibration)}

    @classmethod
    def from_json(cls, data: Any) -> Scores:
        """Read what `to_json` wrote.

        Raises:
            DataError: fields are missing or unknown, or a value is impossible.
        """
        values = record_fields(cls, data)
        if not isinstance(values["components"], list):
            raise DataError("Reading Scores: components must be a list")
        values["components"] = tuple(
            ComponentScore(**record_fields(ComponentScore, entry)) for entry in values["components"]
        )
        return cls(**values)
