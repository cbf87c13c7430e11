"""The recipe of a distillation: everything but the student, the pages and the seed.

What a user sets has no default here: it lives in `config`, and only there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, asdict, dataclass
from typing import Any, Literal

from circuitsearch.core.errors import (
    ConfigError,
    PlanError,
    choice_problem,
    integer_problems,
    raise_together,
)
from circuitsearch.students.losses import LOSSES, Reads
from circuitsearch.students.training.presets import PRESETS, Weight
from circuitsearch.students.training.trace import END, parse_place

__all__ = ["DistillRecipe", "Weight"]

_SHORTHAND = "forward_kl"


@dataclass(frozen=True, kw_only=True)
class DistillRecipe:
    """How a student is trained; the loss is by default Donut-MINT's (arXiv 2509.26235).

    Attributes:
        steps: optimiser steps.
        batch: examples per step.
        accumulate: parts that the batch of a step is cut into, one after the other: as many times
            less memory, the same gradient.
        pages_together: whether a batch takes all questions of a page, which then share its
            cross-attention keys and values; else questions are shuffled one by one.
        learning_rate: peak of the schedule.
        warmup: share of the steps in which the rate rises linearly; a cosine to 0 follows.
        losses: names of `losses.LOSSES` with their weights; the weighted sum is minimised. A weight
            is a number or `balanced`: the ratio, on the first batches before training, of the
            `reference` loss's term to this loss, so that both begin with equal say.
        kd_weight: shorthand for the weight of `forward_kl`; not kept.
        hidden_map: pairs of (student's place, teacher's place) at which losses of hidden states
            compare (`trace`); their mean counts.
        temperature: softmax temperature of the losses that read the teacher's logits.
        weight_decay: AdamW's decoupled decay of matrices; biases and LayerNorms do not decay.
        clip: largest norm of the gradient.
        diverged: the loss that ends the training, in multiples of that at the start (`distill`).
        precision: `float32`, or `bfloat16` for mixed precision with float32 weights.
    """

    steps: int
    batch: int
    accumulate: int = 1
    pages_together: bool = True
    learning_rate: float
    warmup: float
    losses: Mapping[str, Weight] | Sequence[tuple[str, Weight]] = PRESETS["donut-mint"].losses
    kd_weight: InitVar[Weight | None] = None
    hidden_map: Sequence[tuple[str, str]] = ((END, END),)
    temperature: float
    weight_decay: float = 0.01
    clip: float = 1.0
    diverged: float = 3.0
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self, kd_weight: Weight | None) -> None:
        """Bring losses and map into one form; refuse impossible values, all together."""
        given: Any = self.losses
        pairs = given.items() if isinstance(given, Mapping) else given
        losses = tuple((str(name), weight) for name, weight in pairs)
        problems = []
        if kd_weight is not None:
            if _SHORTHAND not in dict(losses):
                problems.append(f"kd_weight: it weighs {_SHORTHAND}, which is not among the losses")
            losses = tuple((n, kd_weight if n == _SHORTHAND else w) for n, w in losses)
        object.__setattr__(self, "losses", losses)
        places = tuple((str(ours), str(theirs)) for ours, theirs in self.hidden_map)
        object.__setattr__(self, "hidden_map", places)
        problems += [*self._number_problems(), *self._loss_problems()]
        raise_together(problems, ConfigError, "Distillation recipe")

    def _number_problems(self) -> list[str]:
        counts = {"steps": self.steps, "batch": self.batch, "accumulate": self.accumulate}
        problems = [fault for name, n in counts.items() for fault in integer_problems(name, n, 1)]
        above = {"learning_rate": self.learning_rate, "temperature": self.temperature}
        above["clip"] = self.clip
        problems += [
            f"{name}: got {value!r}, allowed are finite numbers above 0"
            for name, value in above.items()
            if not 0 < value < math.inf
        ]
        if not 0 <= self.warmup <= 1:
            problems.append(f"warmup: got {self.warmup!r}, allowed are shares from 0 to 1")
        if not 0 <= self.weight_decay < math.inf:
            problems.append(f"weight_decay: got {self.weight_decay!r}, allowed are numbers from 0")
        if not self.diverged > 1:
            problems.append(f"diverged: got {self.diverged!r}, allowed are numbers above 1")
        if self.precision not in ("float32", "bfloat16"):
            problems.append(choice_problem("precision", self.precision, ("float32", "bfloat16")))
        return problems

    def _loss_problems(self) -> list[str]:
        problems = []
        for name, weight in self.pairs:
            number = isinstance(weight, int | float) and 0 <= weight < math.inf
            if name not in LOSSES:
                problems.append(choice_problem("losses", name, list(LOSSES)))
            elif weight != "balanced" and (isinstance(weight, bool) or not number):
                problems.append(
                    f"weight of {name}: got {weight!r}, allowed are 'balanced' or numbers from 0"
                )
        if not self.pairs or len(self.weights) < len(self.pairs):
            problems.append(f"losses: got {self.names!r}, allowed are one or more different ones")
        elif all(weight == 0 for _, weight in self.pairs):
            problems.append("losses: every weight is 0; give one of them a weight above 0")
        if not self.hidden_map:
            problems.append(f"hidden_map: got no pair of places; the default is ({END!r}, {END!r})")
        for place in (place for pair in self.hidden_map for place in pair):
            try:
                parse_place(place)
            except PlanError as error:
                problems.append(f"hidden_map: {error}")
        return problems

    def rate(self, step: int) -> float:
        """Return the learning rate of a step (from 0); a function of the step alone."""
        rising = self.warming
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        progress = (step - rising) / max(1, self.steps - rising)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    @property
    def warming(self) -> int:
        """Steps in which the learning rate rises."""
        return math.ceil(self.warmup * self.steps)

    @property
    def pairs(self) -> tuple[tuple[str, Weight], ...]:
        """Names and weights of the losses, in order."""
        held: Any = self.losses  # brought into this form on construction
        pairs: tuple[tuple[str, Weight], ...] = held
        return pairs

    @property
    def weights(self) -> dict[str, Weight]:
        """Weight of each loss, in order."""
        return dict(self.pairs)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the losses, in order."""
        return tuple(name for name, _ in self.pairs)

    @property
    def reference(self) -> str:
        """The loss whose term balanced losses are made as large as.

        The first that reads labels among those with a number above 0 for a weight, or else the
        first of these; without any, the same among the balanced ones, where its weight is 1.
        """
        fixed = [name for name, weight in self.pairs if weight not in ("balanced", 0)]
        pool = fixed or [name for name, weight in self.pairs if weight == "balanced"]
        labels = [name for name in pool if LOSSES[name].reads is Reads.LABELS]
        return (labels or pool)[0]

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values; the order of the losses counts."""
        plain = asdict(self)
        plain["losses"] = [list(pair) for pair in self.pairs]
        plain["hidden_map"] = [list(pair) for pair in self.hidden_map]
        return plain
