"""Losses of next-token distributions: on answer tokens only, averaged over tokens.

With p the teacher's and q the student's next-token distribution, both softened by temperature T:

    cross_entropy   -log q(label) at T = 1
    forward_kl      T^2 * sum p log(p / q)        covers every answer the teacher deems possible
    reverse_kl      T^2 * sum q log(q / p)        settles on what the teacher deems likely
    jensen_shannon  T^2 * (KL(p | m) + KL(q | m)) / 2 with m = (p + q) / 2, at most T^2 ln 2

T^2 keeps gradients of one size when T changes (Hinton et al., arXiv 1503.02531). Every loss is a
mean over answer tokens: a mean over the vocabulary as well would make it V times too small beside
the cross-entropy, a sum over the sequence would let long answers decide.

A loss is a function of the student's logits [n, V] and the `Targets` of the same rows, in nats per
answer token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from circuitsearch.core.errors import DataError
from circuitsearch.students.features.targets import TeacherRows

__all__ = [
    "Targets",
    "answer_rows",
    "cross_entropy",
    "forward_kl",
    "jensen_shannon",
    "reverse_kl",
]


@dataclass(frozen=True)
class Targets:
    """What n answer tokens should be.

    Attributes:
        labels: [n] the tokens of the answers.
        teacher: the teacher's logits for them; None where only labels are learned from.
        temperature: softmax temperature of the losses that read the teacher.
    """

    labels: Tensor
    teacher: TeacherRows | None = None
    temperature: float = 1.0

    def compare(self, student: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities of teacher and student [n, outcomes] at the temperature."""
        if self.teacher is None:
            raise DataError("Loss: it compares with the teacher, but the targets hold labels only")
        ours = self.teacher.log_probabilities_of(student, self.temperature)
        return self.teacher.log_probabilities(self.temperature), ours


def answer_rows(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pick the rows of answer tokens out of padded batches.

    Args:
        logits: [B, T, V].
        labels: [B, T], -100 on prompt and padding.

    Returns:
        Logits [n, V] and labels [n], example by example.
    """
    answers = labels != -100
    return logits[answers], labels[answers]


def cross_entropy(student: Tensor, targets: Targets) -> Tensor:
    """Return the mean of -log q(label); the temperature does not enter."""
    return F.cross_entropy(student.float(), targets.labels)


def forward_kl(student: Tensor, targets: Targets) -> Tensor:
    """Return T^2 * mean of KL(teacher | student)."""
    teacher, ours = targets.compare(student)
    return _mean_kl(teacher, ours) * targets.temperature**2


def reverse_kl(student: Tensor, targets: Targets) -> Tensor:
    """Return T^2 * mean of KL(student | teacher)."""
    teacher, ours = targets.compare(student)
    return _mean_kl(ours, teacher) * targets.temperature**2


def jensen_shannon(student: Tensor, targets: Targets) -> Tensor:
    """Return T^2 * mean Jensen-Shannon divergence; symmetric, between 0 and T^2 ln 2."""
    teacher, ours = targets.compare(student)
    middle = torch.logaddexp(teacher, ours) - math.log(2)
    both = _mean_kl(teacher, middle) + _mean_kl(ours, middle)
    return 0.5 * both * targets.temperature**2


def _mean_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the mean over rows of KL(p | q), for log-probabilities [n, outcomes]."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()
