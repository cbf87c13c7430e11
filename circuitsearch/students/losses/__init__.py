"""Distillation losses: one function each, and one row of `LOSSES` that says what it reads.

Every loss is a mean over answer tokens; prompt and padding never count, and neither the number of
examples in a batch nor the size of the vocabulary enters. `docs/distillation.md` has the table. A
new loss is a function in a module here and a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor

from .attention import attention_kl
from .hidden import hidden_cosine, hidden_mse
from .logits import (
    Targets,
    answer_rows,
    cross_entropy,
    forward_kl,
    jensen_shannon,
    reverse_kl,
)

__all__ = [
    "LOSSES",
    "Loss",
    "Reads",
    "Targets",
    "answer_rows",
    "attention_kl",
    "cross_entropy",
    "forward_kl",
    "hidden_cosine",
    "hidden_mse",
    "jensen_shannon",
    "reverse_kl",
]


class Reads(StrEnum):
    """What a loss compares."""

    LABELS = "labels"
    """The student's logits with the answer's tokens."""
    LOGITS = "teacher logits"
    """The student's logits with the teacher's, which are cached."""
    STREAM = "stream"
    """Residual streams; the teacher's decoder runs in the same step."""
    SELF = "self-attention"
    """Weights of self-attention heads; the teacher's decoder runs in the same step."""
    CROSS = "cross-attention"
    """Weights of cross-attention heads; the teacher's decoder runs in the same step."""

    @property
    def inside(self) -> bool:
        """Whether the teacher's decoder has to run for it."""
        return self not in (Reads.LABELS, Reads.LOGITS)


@dataclass(frozen=True)
class Loss:
    """A loss as a recipe names it.

    Attributes:
        function: (what the student says, what it should say) -> scalar; see `reads`.
        reads: decides both arguments: logits [n, V] and `Targets` (labels, teacher logits), streams
            [n, d] (stream), or log-weights [n, H, K] (attention).
    """

    function: Callable[[Tensor, Any], Tensor]
    reads: Reads

    def __call__(self, student: Tensor, target: Targets | Tensor) -> Tensor:
        """Return the loss, a scalar."""
        return self.function(student, target)


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(cross_entropy, Reads.LABELS),
    "forward_kl": Loss(forward_kl, Reads.LOGITS),
    "reverse_kl": Loss(reverse_kl, Reads.LOGITS),
    "jensen_shannon": Loss(jensen_shannon, Reads.LOGITS),
    "hidden_mse": Loss(hidden_mse, Reads.STREAM),
    "hidden_cosine": Loss(hidden_cosine, Reads.STREAM),
    "self_attention_kl": Loss(attention_kl, Reads.SELF),
    "cross_attention_kl": Loss(attention_kl, Reads.CROSS),
}
"""Losses by name, as a recipe names them."""
