"""Comparing vectors with token embeddings, in each form that an embedding takes.

    unembedding  the rows of the output projection; the comparison is the logit
    raw          E, the embedding's rows
    scaled       c E, with the factor that the decoder applies (sqrt(d) in mBART)
    positioned   c E + P, with the position's own embedding
    full         what the decoder puts into the stream, for mBART LayerNorm(c E + P)

Only `full` lies in the stream. It needs nothing but the decoder's `embed`, which treats every token
apart from its neighbours; the three forms inside it need the embedding's pieces, which an adapter
shows as `embedding` (a `decoders.Embedding`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from circuitsearch.core.errors import ConfigError
from circuitsearch.teacher.decoders import Embedding, ResidualDecoder

__all__ = [
    "FORMS",
    "SIMILARITIES",
    "Form",
    "Similarity",
    "embedded",
    "similarities",
]

Form = Literal["full", "positioned", "scaled", "raw"]
FORMS: tuple[Form, ...] = get_args(Form)

Similarity = Literal["dot", "cosine", "distance"]
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)

_MOST_NUMBERS = 2**24
"""Numbers of embeddings held at a time, 64 MiB in float32."""


def embedded(decoder: ResidualDecoder, ids: Tensor, form: Form) -> Tensor:
    """Return [B, T, d], tokens ids [B, T] in one form of their embedding.

    Raises:
        ConfigError: the form needs the embedding's pieces, and the adapter does not show them.
    """
    if form == "full":
        return decoder.embed(ids)
    parts = _parts(decoder, form)
    rows = parts.table[ids]
    if form != "raw":
        rows = rows * parts.scale
    if form == "positioned" and parts.positions is not None:
        rows = rows + parts.positions[: ids.shape[1]]
    return rows


def similarities(
    decoder: ResidualDecoder, x: Tensor, positions: Tensor, form: Form, similarity: Similarity
) -> Tensor:
    """Compare vectors with the embedding of every token at their position.

    Memory: K * V similarities, and 64 MiB of embeddings at a time.

    Args:
        decoder: the view.
        x: [K, d].
        positions: [K] position of each.
        form: form of the embeddings.
        similarity: `dot`, `cosine`, or `distance`, minus the squared Euclidean distance.

    Returns:
        [K, V].

    Raises:
        ConfigError: the form needs the embedding's pieces, and the adapter does not show them.
    """
    found = x.new_empty(len(x), decoder.shape.vocabulary)
    everywhere = form in ("raw", "scaled")
    places = [0] if everywhere else sorted(set(positions.tolist()))
    length = max(places) + 1
    for ids in _token_blocks(decoder, length, x.device):
        rows = embedded(decoder, ids[:, None].expand(-1, length), form)
        for place in places:
            here = (
                torch.ones_like(positions, dtype=torch.bool) if everywhere else positions == place
            )
            found[here, int(ids[0]) : int(ids[-1]) + 1] = _compare(
                x[here], rows[:, place], similarity
            )
    return found


def _token_blocks(decoder: ResidualDecoder, length: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the vocabulary in blocks whose embeddings at `length` positions fit into memory."""
    size = max(1, _MOST_NUMBERS // (length * decoder.shape.d_model))
    yield from torch.split(torch.arange(decoder.shape.vocabulary, device=device), size)


def _compare(x: Tensor, rows: Tensor, similarity: Similarity) -> Tensor:
    """Return [K, V] similarities of x [K, d] and rows [V, d]."""
    if similarity == "cosine":
        x, rows = _unit(x), _unit(rows)
    products = x @ rows.T
    if similarity == "distance":
        squares = x.square().sum(dim=-1, keepdim=True) + rows.square().sum(dim=-1)
        return 2 * products - squares
    return products


def _unit(x: Tensor) -> Tensor:
    """Return x [..., d] at length one; a zero vector, as padding often has, stays zero."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp_min(torch.finfo(x.dtype).tiny)


def _parts(decoder: ResidualDecoder, form: Form) -> Embedding:
    """Return the embedding's pieces, or say that the adapter keeps them to itself."""
    parts: Embedding | None = getattr(decoder, "embedding", None)
    if parts is None:
        raise ConfigError(
            f"Embedding form {form}: the adapter {type(decoder).__name__} does not show the pieces "
            "of its embedding; allowed here are full and unembedding, or give the adapter an "
            "`embedding` attribute with table, scale and positions"
        )
    return parts
