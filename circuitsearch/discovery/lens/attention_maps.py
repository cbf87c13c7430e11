"""Attention weights of any attention, computed from its parts.

Running a decoder uses fused attention, which never forms the weights. Here they are formed for one
sub-layer and, on request, for some query positions only: of a page of N encoder tokens the map of
one position costs H * N numbers (Donut: 16 * 4,800), that of a whole batch B * T times as many.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import ConfigError
from circuitsearch.teacher.decoders import Affine, Memory, Parts, ResidualDecoder

from .positions import Spots

__all__ = ["attention_map"]


def attention_map(
    decoder: ResidualDecoder,
    sublayer: SubLayer,
    x: Tensor,
    memory: Memory,
    spots: Spots | None = None,
) -> Tensor:
    """Return the attention weights of one sub-layer.

    Rotary positions and grouped keys are handled; a head's weights over the keys sum to one, and
    keys behind a causal query have weight zero.

    Memory: B * H * T * T numbers for a self-attention, K * H * N for a cross-attention.

    Args:
        decoder: the view.
        sublayer: a self- or cross-attention.
        x: [B, T, d] the stream that it reads.
        memory: what cross-attention reads; it must hold this sub-layer's keys.
        spots: K query positions; None means every position of every row.

    Returns:
        [K, H, T] or [K, H, N]; without spots [B, H, T, T] or [B, H, T, N]. At least float32.

    Raises:
        ConfigError: the sub-layer is a feed-forward, or memory lacks its keys.
    """
    parts = decoder.parts(sublayer)
    if parts.query is None:
        raise ConfigError(
            f"Attention map of {sublayer}: a feed-forward has none; choose a self- or "
            "cross-attention"
        )
    if sublayer.kind is Kind.SELF:
        causal = parts.causal_weights(parts.norm(x))
        return causal if spots is None else spots.at(causal.transpose(1, 2))
    if sublayer not in memory.keys_values:
        held = ", ".join(s.name for s in memory.keys_values) or "none"
        raise ConfigError(
            f"Attention map of {sublayer}: the memory holds keys of {held}; make it with "
            f"{sublayer} among its sub-layers"
        )
    keys = memory.keys_values[sublayer][0]
    if spots is not None:
        return _cross(parts, parts.query, spots.at(x), keys, memory.row_pages()[spots.rows])
    rows, tokens = x.shape[:2]
    pages = memory.row_pages().repeat_interleave(tokens)
    weights = _cross(parts, parts.query, x.flatten(0, 1), keys, pages)
    return weights.view(rows, tokens, *weights.shape[1:]).transpose(1, 2)


def _cross(parts: Parts, query_of: Affine, x: Tensor, keys: Tensor, pages: Tensor) -> Tensor:
    """Return [K, H, N] for queries of the vectors x [K, d], keys [P, G, N, hd], pages [K]."""
    query = parts.split(query_of(parts.norm(x)).unsqueeze(1)).squeeze(2)
    grouped = torch.unflatten(query, 1, (keys.shape[1], -1))
    products = query.new_empty(*query.shape[:2], keys.shape[2])
    for page in sorted(set(pages.tolist())):  # keys are read in place, never gathered per query
        here = pages == page
        found = torch.einsum("kgrd,gnd->kgrn", grouped[here], keys[page])
        products[here] = found.flatten(1, 2)
    products = products.to(torch.promote_types(products.dtype, torch.float32))
    return (products * parts.score_scale).softmax(dim=-1)
