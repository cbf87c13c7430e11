"""What the teacher says at each answer token, whole or as its best tokens and a tail.

A small vocabulary is kept whole. Of a large one the k best logits are kept, and of all the others
only the probability that they share: log(sum of exp(logit / T)) over them, for each temperature T
that training may ask for. Teacher and student are then compared as distributions over k + 1
outcomes, "one of these k tokens, or any other". Merging outcomes can only lower a divergence (data
processing inequality), so the comparison is a lower bound of the full one, and it is exact about
how much probability leaves the k tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitsearch.core.errors import ConfigError

__all__ = ["TeacherRows"]


@dataclass(frozen=True)
class TeacherRows:
    """Teacher logits of n answer tokens.

    Attributes:
        logits: [n, V], or [n, k] of the k best tokens, in descending order.
        ids: [n, k] these tokens; None when `logits` covers the vocabulary.
        tails: [n, len(temperatures)] log sum exp(logit / T) over all other tokens, per T.
        temperatures: the temperatures of `tails`.
    """

    logits: Tensor
    ids: Tensor | None = None
    tails: Tensor | None = None
    temperatures: tuple[float, ...] = ()

    @classmethod
    def of(
        cls, logits: Tensor, top: int | None = None, temperatures: Sequence[float] = ()
    ) -> TeacherRows:
        """Keep teacher logits [n, V], all of them or the `top` best.

        Args:
            logits: [n, V].
            top: how many tokens to keep; None keeps all.
            temperatures: temperatures at which the tail's share is kept.
        """
        if top is None or top >= logits.shape[-1]:
            return cls(logits)
        values, ids = logits.float().topk(top, dim=-1)
        rest = logits.float().scatter(-1, ids, -torch.inf)
        tails = torch.stack([torch.logsumexp(rest / t, dim=-1) for t in temperatures], dim=-1)
        return cls(values, ids, tails, tuple(temperatures))

    def to(self, device: torch.device | str) -> TeacherRows:
        """Return the rows on another device."""
        ids = None if self.ids is None else self.ids.to(device)
        tails = None if self.tails is None else self.tails.to(device)
        return TeacherRows(self.logits.to(device), ids, tails, self.temperatures)

    def log_probabilities(self, temperature: float) -> Tensor:
        """Return the teacher's log-probabilities [n, V], or [n, k + 1] with the tail last.

        Raises:
            ConfigError: if the tail was not kept for this temperature.
        """
        scaled = self.logits.float() / temperature
        if self.tails is None:
            return scaled.log_softmax(dim=-1)
        if temperature not in self.temperatures:
            kept = ", ".join(f"{t:g}" for t in self.temperatures)
            raise ConfigError(
                f"temperature: got {temperature:g}, the cached teacher logits allow {kept}; choose "
                "one of these, or prepare the features for this temperature"
            )
        tail = self.tails[:, self.temperatures.index(temperature), None].float()
        return torch.cat([scaled, tail], dim=-1).log_softmax(dim=-1)

    def log_probabilities_of(self, student: Tensor, temperature: float) -> Tensor:
        """Return a student's log-probabilities over the same outcomes, [n, V] or [n, k + 1].

        Args:
            student: [n, V] logits.
            temperature: softmax temperature.
        """
        scaled = student.float() / temperature
        if self.ids is None:
            return scaled.log_softmax(dim=-1)
        tail = scaled.scatter(-1, self.ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
        return torch.cat([scaled.gather(-1, self.ids), tail], dim=-1).log_softmax(dim=-1)
