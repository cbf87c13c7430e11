"""How far plans are from the teacher on the calibration questions, many plans at a time.

With z the teacher's logits at an answer token, s the plan's, p and q their softmax:

    norm      |z - s|, over all answer tokens of a question together (Frobenius)
    angular   arccos of the cosine of z and s, the cosine clamped to [0, 1]
    kl        sum p log(p / q)
    js        (KL(p | m) + KL(q | m)) / 2 with m = (p + q) / 2, at most ln 2
    loss      -log q(label): no distance, the teacher is not asked

`norm` is a sum over a question's tokens, the others are means; all are averaged over questions.
Logits are compared at answer tokens alone: no other logits are ever used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from circuitsearch.core.errors import ConfigError, choice_problem
from circuitsearch.core.plan import Plan
from circuitsearch.students.features.targets import TeacherRows
from circuitsearch.students.plan_view import NeuronOrder
from circuitsearch.students.walk import Walk
from circuitsearch.teacher.decoders import continue_from, token_loss
from circuitsearch.teacher.documents.collate import IGNORED

from .base import Case

__all__ = ["DISTANCES", "Distance", "PlanDistances"]


class Distance(NamedTuple):
    """A distance.

    Attributes:
        token: values [R] from logits [R, V], the teacher's rows and labels [R].
        question: a question's value from the mean over its tokens and their number.
        logits: whether it needs the teacher's logits of the whole vocabulary.
    """

    token: Callable[[Tensor, TeacherRows, Tensor], Tensor]
    question: Callable[[Tensor, Tensor], Tensor] = lambda mean, tokens: mean
    logits: bool = True


def _kl(logits: Tensor, teacher: TeacherRows, labels: Tensor) -> Tensor:
    p = teacher.log_probabilities(1.0)
    q = teacher.log_probabilities_of(logits, 1.0)
    return (p.exp() * (p - q)).sum(dim=-1)


def _js(logits: Tensor, teacher: TeacherRows, labels: Tensor) -> Tensor:
    p = teacher.log_probabilities(1.0)
    q = teacher.log_probabilities_of(logits, 1.0)
    middle = torch.logaddexp(p, q) - math.log(2)
    both = p.exp() * (p - middle) + q.exp() * (q - middle)
    return both.sum(dim=-1) / 2


def _angle(logits: Tensor, teacher: TeacherRows, labels: Tensor) -> Tensor:
    cosine = cosine_similarity(logits.double(), teacher.logits.double(), dim=-1)
    return cosine.clamp(0, 1).arccos()


DISTANCES: dict[str, Distance] = {
    "norm": Distance(
        lambda logits, teacher, _: (logits.double() - teacher.logits.double()).square().sum(-1),
        lambda mean, tokens: (mean * tokens).sqrt(),
    ),
    "angular": Distance(_angle),
    "kl": Distance(_kl, logits=False),
    "js": Distance(_js, logits=False),
    "loss": Distance(lambda logits, _, labels: token_loss(logits, labels), logits=False),
}
"""Distances by name; those of whole logits ask the teacher's decoder, the others its cache."""


class PlanDistances:
    """Values of plans, and the passes that they took.

    Args:
        case: teacher and questions.
        name: of the distance.
        neurons: neurons by which widths are cut; None ranks as `build_student` does.

    Attributes:
        passes: forward passes of one question so far.

    Raises:
        ConfigError: the distance is unknown.
    """

    def __init__(self, case: Case, name: str, neurons: NeuronOrder | None = None) -> None:
        if name not in DISTANCES:
            raise ConfigError(choice_problem("distance", name, list(DISTANCES)))
        self.passes = 0
        self._case = case
        self._distance = DISTANCES[name]
        self._walk = Walk(case.teacher.decoder, case.features, neurons=neurons)
        self._logits: dict[int, Tensor] = {}

    def __call__(self, plans: Sequence[Plan], questions: Sequence[int]) -> list[float]:
        """Return the value of each plan, averaged over some questions."""
        self.passes += len(plans) * len(questions)
        sums = dict.fromkeys(plans, 0.0)
        for chosen in self._walk.chunks(plans, questions):
            teacher = self._teacher(chosen)
            self._walk.judge = _Rows(self._distance.token, teacher)
            chunk = self._walk.chunk(chosen, plans)
            met = [
                plan for plan, _ in self._case.sweep(plans, chunk.root, chunk.expand, chunk.leaf)
            ]
            examples = [self._case.features.examples[index] for index in chosen]
            tokens = torch.tensor([float(len(one.ids) - one.prompt) for one in examples])
            values = self._distance.question(chunk.values(), tokens.double())
            for plan, value in zip(met, values.sum(dim=1).tolist(), strict=True):
                sums[plan] += value
        return [sums[plan] / len(questions) for plan in plans]

    def _teacher(self, questions: Sequence[int]) -> TeacherRows:
        """Return the teacher's rows of some questions, on the device."""
        case, device = self._case, self._case.teacher.device
        if not self._distance.logits:
            return case.features.teacher_logits(questions).to(device)
        view = case.teacher.decoder
        for index in questions:
            if index in self._logits:
                continue
            read = case.features.read([index])
            with torch.no_grad():
                memory = view.memory(read.states.to(device), read.rows.to(device))
                stream = continue_from(view, view.embed(read.batch.ids.to(device)), memory)
                answers = (read.batch.labels != IGNORED).to(device)
                self._logits[index] = view.readout(stream[answers])
            self.passes += 1
        return TeacherRows(torch.cat([self._logits[index] for index in questions]))


class _Rows:
    """A judge of answer rows that knows the teacher's: rows come plan by plan, in one order."""

    def __init__(
        self, token: Callable[[Tensor, TeacherRows, Tensor], Tensor], teacher: TeacherRows
    ) -> None:
        self._token = token
        self._teacher = teacher
        self._place = 0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return values [R]."""
        count = len(self._teacher.logits)
        places = (torch.arange(len(logits), device=logits.device) + self._place) % count
        self._place = (self._place + len(logits)) % count
        known = self._teacher
        rows = TeacherRows(
            known.logits[places],
            None if known.ids is None else known.ids[places],
            None if known.tails is None else known.tails[places],
            known.temperatures,
        )
        return self._token(logits, rows, labels)
