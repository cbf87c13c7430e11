"""Cutting attention: some positions no longer see some others in one self-attention.

The weights that a reader gave to what it no longer sees go to the rest of what it sees (attention
knock-out, Geva et al., arXiv 2304.14767). What passed there has to take another way, or is lost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import ConfigError
from circuitsearch.teacher.decoders import ResidualDecoder

__all__ = ["cut_write"]


def cut_write(decoder: ResidualDecoder, sublayer: SubLayer, x: Tensor, unseen: Tensor) -> Tensor:
    """Return [B, T, d], what a self-attention writes when readers do not see some positions.

    Memory: B * H * T * T numbers.

    Args:
        decoder: the view.
        sublayer: a self-attention.
        x: [B, T, d] the stream that it reads.
        unseen: [B, T, T] of bool, reader by position read; what stands behind a reader is unseen
            anyway, and a position always sees itself.

    Raises:
        ConfigError: the sub-layer is no self-attention.
    """
    parts = decoder.parts(sublayer)
    if sublayer.kind is not Kind.SELF or parts.value is None:
        raise ConfigError(
            f"Cut of {sublayer}: positions see each other in self-attentions only; choose one"
        )
    normed = parts.norm(x)
    itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    scores = parts.causal_scores(normed).masked_fill((unseen & ~itself).unsqueeze(1), -torch.inf)
    value = parts.split(parts.value(normed))
    # head h reads value group h // (H / G), so heads unfold into groups first
    weights = torch.unflatten(scores.softmax(dim=-1).to(value.dtype), 1, (value.shape[1], -1))
    units = torch.einsum("bgrqk,bgkd->bqgrd", weights, value).flatten(2, 3)
    return decoder.project(sublayer, units)
