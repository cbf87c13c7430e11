"""How long a training step takes here: a few steps on random features of the right shape.

The examples are real, so that batches have their true lengths and their true number of distinct
pages; states and teacher logits are random numbers, so that no page need be encoded first. Time
does not depend on the numbers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuitsearch.students.features.prepare import kept_teacher_rows
from circuitsearch.students.features.reader import Features
from circuitsearch.students.features.targets import TeacherRows
from circuitsearch.students.training.recipe import DistillRecipe
from circuitsearch.students.training.trainer import PlanOfStep, Trainer, only_layers_train
from circuitsearch.teacher.decoders import ResidualDecoder
from circuitsearch.teacher.documents.collate import examples
from circuitsearch.teacher.documents.records import Page
from circuitsearch.teacher.loading import Teacher

__all__ = ["Pace", "RandomFeatures", "step_seconds"]


@dataclass(frozen=True)
class Pace:
    """A short measurement.

    Attributes:
        seconds: median of the steps.
        n: number of steps.
    """

    seconds: float
    n: int


class RandomFeatures(Features):
    """Features of real questions with random states and logits; nothing is read from disk."""

    def __init__(
        self, teacher: Teacher, pages: Sequence[Page], temperatures: tuple[float, ...]
    ) -> None:
        """Take the questions of pages; the pages themselves are never drawn."""
        self.key = "random"
        self.pages = tuple(pages)
        self.examples = tuple(examples(pages, teacher.tokens))
        self.pad_id = teacher.tokens.pad_id
        generator = torch.Generator().manual_seed(0)
        size = teacher.shape.encoder.tokens, teacher.shape.decoder.encoder_width
        self._state = torch.randn(*size, generator=generator)
        drawn = torch.randn(1, teacher.shape.decoder.vocabulary, generator=generator)
        self._row = kept_teacher_rows(teacher, drawn, temperatures)

    def states(self, page_indices: Sequence[int] | Tensor) -> Tensor:
        """Return [P, N, E], the same random state for every page."""
        return torch.stack([self._state] * len(page_indices))

    def teacher_logits(self, example_indices: Sequence[int] | Tensor) -> TeacherRows:
        """Return as many random rows as the examples have answer tokens."""
        rows = [self.examples[int(i)] for i in example_indices]
        count = sum(len(row.ids) - row.prompt for row in rows)
        one = self._row
        if one.ids is None or one.tails is None:
            return TeacherRows(one.logits.repeat(count, 1))
        return TeacherRows(
            one.logits.repeat(count, 1),
            one.ids.repeat(count, 1),
            one.tails.repeat(count, 1),
            one.temperatures,
        )


def step_seconds(
    view: ResidualDecoder,
    features: Features,
    recipe: DistillRecipe,
    *,
    teacher: ResidualDecoder | None = None,
    plan_of_step: PlanOfStep | None = None,
    steps: int = 5,
    limit: float = 10.0,
) -> Pace:
    """Train a decoder for a few steps and return how long one takes.

    Args:
        view: what trains; its weights change.
        features: pages to train on.
        recipe: how to train.
        teacher: the teacher's decoder, for losses that need it.
        plan_of_step: the plan of each step, for an elastic teacher.
        steps: steps measured, behind a first one that is not.
        limit: seconds after which no further step is begun.
    """
    short = replace(recipe, steps=steps + 1)
    spent: list[float] = []
    started = time.perf_counter()
    with only_layers_train(view) as named:
        trainer = Trainer(view, features, short, 0, plan_of_step, named, teacher=teacher)
        weights = trainer.weights()
        for step in range(steps + 1):
            before = time.perf_counter()
            trainer.step(step, weights)
            spent.append(time.perf_counter() - before)
            if step and time.perf_counter() - started > limit:
                break
    return Pace(statistics.median(spent[1:]), len(spent) - 1)
