"""Metrics: the number per example that effects and scores are about.

Every metric is loss-like: larger is worse, so a positive effect means that the component helps.
A metric maps the logits of scored positions to one number each; an example's value is the mean over
its scored positions. The cross-entropy of a converged teacher sits at its minimum, where gradients
say little about removals; margins and logit differences do not saturate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from circuitsearch.core.errors import ConfigError, DataError, choice_problem
from circuitsearch.teacher.decoders import token_loss
from circuitsearch.teacher.documents.collate import IGNORED

__all__ = ["METRICS", "Readout", "first_difference", "measure"]


_SOFT = 4.0
"""Temperature of `soft_loss`."""

TokenMetric = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _wide(logits: Tensor) -> Tensor:
    """Half precision is too coarse for sums over the vocabulary; float64 stays what it is."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _soft_loss(logits: Tensor, labels: Tensor, foils: Tensor | None) -> Tensor:
    """Cross-entropy at temperature 4: a sure answer still has a slope."""
    return cross_entropy(_wide(logits) / _SOFT, labels, reduction="none")


def _margin(logits: Tensor, labels: Tensor, foils: Tensor | None) -> Tensor:
    """Largest other logit minus the right one."""
    right = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.max(dim=1).values - right.squeeze(1)


def _logit(logits: Tensor, labels: Tensor, foils: Tensor | None) -> Tensor:
    """Mean logit minus the right one; the mean takes out a shift of all logits."""
    return logits.mean(dim=1) - logits.gather(1, labels[:, None]).squeeze(1)


def _logit_difference(logits: Tensor, labels: Tensor, foils: Tensor | None) -> Tensor:
    """Logit of the counterfactual's token minus that of the right one."""
    if foils is None:
        raise DataError(
            "Metric logit_difference: the sample has no counterfactual answers; make it with "
            "`make_pair_sample`, or choose margin"
        )
    pair = logits.gather(1, torch.stack([foils, labels], dim=1))
    return pair[:, 0] - pair[:, 1]


def _error(logits: Tensor, labels: Tensor, foils: Tensor | None) -> Tensor:
    """One minus the right token's probability."""
    return 1 - _wide(logits).softmax(dim=1).gather(1, labels[:, None]).squeeze(1)


METRICS: Mapping[str, TokenMetric] = {
    "answer_loss": lambda logits, labels, _: token_loss(logits, labels),
    "soft_loss": _soft_loss,
    "margin": _margin,
    "logit": _logit,
    "logit_difference": _logit_difference,
    "error": _error,
}
"""By name: (logits [n, V], labels [n], foils [n] or None) -> [n]. Units: nats for the first two,
logits for the next three, probability for the last."""


class Readout(Protocol):
    """What a metric needs of a decoder."""

    def readout(self, x: Tensor) -> Tensor:
        """Return logits [..., V] of the stream x [..., d]."""
        ...


def measure(
    decoder: Readout,
    x: Tensor,
    labels: Tensor,
    metric: str = "answer_loss",
    foils: Tensor | None = None,
) -> Tensor:
    """Return [B], the metric of each example.

    A logit difference counts at one position, where clean and counterfactual answer part: further
    on the foil need not be what the counterfactual calls for. It is 0 where the answers are equal.
    Only scored positions meet the vocabulary matrix, the largest of the decoder.

    Args:
        decoder: the view, or anything else that reads the stream out.
        x: [B, T, d] the stream before the readout.
        labels: [B, T] next tokens, -100 where nothing is scored.
        metric: a name in `METRICS`.
        foils: [B, T] the counterfactual's tokens, for `logit_difference`.

    Raises:
        ConfigError: the metric is unknown.
        DataError: `logit_difference` without foils.
    """
    if metric not in METRICS:
        raise ConfigError(choice_problem("metric", metric, tuple(METRICS)))
    scored = labels != IGNORED
    if metric == "logit_difference" and foils is not None:
        scored = _fair(labels, foils)
    wrong = None if foils is None else foils[scored]
    values = METRICS[metric](decoder.readout(x[scored]), labels[scored], wrong)
    table = values.new_zeros(labels.shape).masked_scatter(scored, values)
    return table.sum(dim=1) / scored.sum(dim=1)


def first_difference(labels: Tensor, foils: Tensor) -> Tensor:
    """Mark the position of each row at which clean and counterfactual answer part.

    Args:
        labels: [B, T] clean answer tokens, -100 elsewhere.
        foils: [B, T] counterfactual answer tokens, -100 elsewhere.

    Returns:
        [B, T] boolean; at most one position per row, none where the answers are equal.
    """
    differs = labels != foils
    return differs & (differs.cumsum(dim=1) == 1)


def _fair(labels: Tensor, foils: Tensor) -> Tensor:
    """Mark where a foil is a fair rival; the first scored position where there is no difference."""
    scored = labels != IGNORED
    parting = first_difference(labels, foils) & scored
    first = scored & (scored.cumsum(dim=1) == 1)
    return torch.where(parting.any(dim=1, keepdim=True), parting, first)
