"""Queries of a cross-attention: taken from one run, put into another.

What a cross-attention asks the page for is its query. With the query of one run and the page and
stream of another, the answer tells what the query holds: a place, a meaning, or the answer itself
(activation patching of one port, Donut-MINT, arXiv 2509.26235, Prop. 5). The query is that behind
the query projection, of all heads, in front of the scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import ConfigError
from circuitsearch.teacher.decoders import Affine, Memory, ResidualDecoder, continue_from

from .runs import attend

__all__ = ["behind_query", "placed", "queries", "stream_before"]


def stream_before(
    decoder: ResidualDecoder, ids: Tensor, memory: Memory, sublayer: SubLayer
) -> Tensor:
    """Return [B, T, d], the stream that a sub-layer reads, for ids [B, T]."""
    earlier = [s for s in decoder.sublayers if s < sublayer]
    return continue_from(decoder, decoder.embed(ids), memory, kept=earlier)


def queries(decoder: ResidualDecoder, sublayer: SubLayer, x: Tensor) -> Tensor:
    """Return [B, H, T, hd], the queries that a cross-attention makes of the stream x [B, T, d].

    Raises:
        ConfigError: the sub-layer is no cross-attention.
    """
    parts = decoder.parts(sublayer)
    return parts.split(_query_of(decoder, sublayer)(parts.norm(x)))


def placed(query: Tensor, positions: Tensor, given: Tensor) -> Tensor:
    """Return queries [B, H, T, hd] with those at one position of each row replaced.

    Args:
        query: [B, H, T, hd].
        positions: [B] where.
        given: [B, H, hd] what stands there instead.
    """
    changed = query.clone()
    changed[torch.arange(len(query), device=query.device), :, positions] = given
    return changed


def behind_query(
    decoder: ResidualDecoder, sublayer: SubLayer, x: Tensor, memory: Memory, query: Tensor
) -> Tensor:
    """Return [B, T, d], the stream behind a cross-attention that asks with given queries.

    Args:
        decoder: the view.
        sublayer: the cross-attention.
        x: [B, T, d] the stream in front of it, to which it adds.
        memory: the pages it reads.
        query: [B, H, T, hd] as `queries` gives them.

    Raises:
        ConfigError: the sub-layer is no cross-attention.
    """
    _query_of(decoder, sublayer)
    key, value = memory.keys_values[sublayer]
    parts = decoder.parts(sublayer)
    units = attend(parts, sublayer, query, key, value, memory.row_pages())
    return x + decoder.project(sublayer, units)


def _query_of(decoder: ResidualDecoder, sublayer: SubLayer) -> Affine:
    """Return the query projection of a cross-attention."""
    query = decoder.parts(sublayer).query
    if sublayer.kind is not Kind.CROSS or query is None:
        crosses = [s.name for s in decoder.sublayers if s.kind is Kind.CROSS]
        raise ConfigError(
            f"Queries of {sublayer}: only cross-attentions ask the page; allowed are "
            f"{', '.join(crosses) or 'none here'}"
        )
    return query
