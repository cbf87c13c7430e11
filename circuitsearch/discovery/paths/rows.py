"""The measures of all paths at every keyword token: what the table averages. See `keyword`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .measures import BatchPaths

__all__ = ["PathRows"]


@dataclass(frozen=True, eq=False)
class PathRows:
    """Measures of n = 2^k paths at K keyword tokens; float64.

    Attributes:
        sublayers: the k sub-layers that a path may pass through, in order.
        examples: [K] example of the sample that each keyword token is part of.
        cosines: [n, K, H] cosine of path query and clean query.
        controls: [n, K] cosine with the clean query of another question, mean over heads; NaN where
            the token's batch asks no other.
        overlaps: [n, K] agreement of the attention maps, 1 = equal.
        top_overlaps: [n, K] share of the most attended encoder tokens in common.
        losses: [n, K] loss (nats) of the first answer token when the target reads the path's
            vector; None when a self-attention follows the target.
        clean_losses: [K] the same in the clean run.
        gap: relative difference between path sum and composition in the linear case.
    """

    sublayers: tuple[str, ...]
    examples: np.ndarray
    cosines: np.ndarray
    controls: np.ndarray
    overlaps: np.ndarray
    top_overlaps: np.ndarray
    losses: np.ndarray | None
    clean_losses: np.ndarray
    gap: float

    @classmethod
    def of(cls, sublayers: tuple[str, ...], measured: Sequence[tuple[int, BatchPaths]]) -> PathRows:
        """Join the measures of batches.

        Args:
            sublayers: what the paths may pass through.
            measured: index of each batch's first example, and its measures; at least one.
        """
        parts = [part for _, part in measured]
        losses = [part.losses for part in parts if part.losses is not None]
        return cls(
            sublayers=sublayers,
            examples=np.concatenate([part.rows.cpu().numpy() + at for at, part in measured]),
            cosines=_joined([part.cosines for part in parts], 1),
            controls=_joined([part.controls for part in parts], 1),
            overlaps=_joined([part.overlaps for part in parts], 1),
            top_overlaps=_joined([part.top_overlaps for part in parts], 1),
            losses=_joined(losses, 1) if losses else None,
            clean_losses=_joined([part.clean_losses for part in parts], 0),
            gap=max(part.gap for part in parts),
        )

    @property
    def effectiveness(self) -> np.ndarray:
        """[n, K] cosine of path query and clean query, mean over heads."""
        found: np.ndarray = self.cosines.mean(axis=2)
        return found

    @property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        """[n] sub-layers that each path passes through; bit i of its place tells of the i-th."""
        return tuple(
            tuple(name for i, name in enumerate(self.sublayers) if index >> i & 1)
            for index in range(2 ** len(self.sublayers))
        )


def _joined(parts: Sequence[Tensor], axis: int) -> np.ndarray:
    found: np.ndarray = torch.cat(list(parts), dim=axis).double().cpu().numpy()
    return found
