"""Transforms of single sub-layers on vectors, and all their chains; `paths` is made of them.

Between a start vector and a reader every listed sub-layer is passed by (identity) or passed through
(its transform T_i), which makes 2^k chains. Chains share prefixes, so they are grown by doubling:
from the vectors of all chains over the first i sub-layers, one call of T_{i+1} gives those of the
chains that pass through it. 2^k - 1 vectors are transformed in k calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import (
    ConfigError,
    choice_problem,
    integer_problems,
    raise_together,
)
from circuitsearch.teacher.decoders import Parts, ResidualDecoder

from .neurons import neuron_map

__all__ = [
    "PathOptions",
    "Spots",
    "Transform",
    "chains",
    "identity_gap",
    "linear_options",
    "reader",
    "transform",
]

Transform = Callable[[Tensor], Tensor]
"""Maps vectors [..., K, d] to vectors [..., K, d]; entry K belongs to one spot."""

Feed = Literal["linear", "activation", "gate", "jacobian"]
Norm = Literal["frozen", "recomputed", "none"]
Attention = Literal["one", "measured"]
Start = Literal["embedding", "stream"]
Place = Literal["keyword", "answer"]
_CHOICES = {
    "feed": get_args(Feed),
    "norm": get_args(Norm),
    "attention": get_args(Attention),
    "start": get_args(Start),
    "scale_at": get_args(Place),
}


@dataclass(frozen=True)
class PathOptions:
    """How a path's vector is computed. The defaults are the literal reading of the paper.

    Attributes:
        feed: `linear` leaves the activation out, `activation` applies it, `gate` multiplies by the
            clean run's activation(a) / a, `jacobian` takes the tangent at the clean run; see
            `neurons` (also for gated feed-forwards).
        norm: `frozen` divides by the clean run's deviation, `recomputed` by the vector's own,
            `none` leaves LayerNorm out altogether.
        attention: weight of the value from keyword to `<s_answer>`: `one`, or as `measured` per
            head.
        start: `embedding` starts from the keyword's embedding, `stream` from the residual stream at
            the keyword in front of the first listed sub-layer.
        scale_at: position whose clean deviation and gate are frozen, `keyword` or `answer`.
        biases: whether transforms keep their additive constants.
        top: how many most attended encoder tokens `PathScore.top_overlap` compares.
    """

    feed: Feed = "linear"
    norm: Norm = "frozen"
    attention: Attention = "one"
    start: Start = "embedding"
    scale_at: Place = "keyword"
    biases: bool = True
    top: int = 10

    def __post_init__(self) -> None:
        """Refuse unknown words and numbers, all together."""
        problems = integer_problems("top", self.top, 1)
        problems += [
            choice_problem(name, str(getattr(self, name)), allowed)
            for name, allowed in _CHOICES.items()
            if getattr(self, name) not in allowed
        ]
        raise_together(problems, ConfigError, "Path options")


@dataclass(frozen=True)
class Spots:
    """Where the paths of one batch begin and end: one entry per keyword token.

    Attributes:
        rows: [K] batch row.
        keywords: [K] position of the keyword token.
        answers: [K] position of the last prompt token, `<s_answer>`.
    """

    rows: Tensor
    keywords: Tensor
    answers: Tensor

    def at_keyword(self, x: Tensor) -> Tensor:
        """Return [K, d], x [B, T, d] at the keywords."""
        return x[self.rows, self.keywords]

    def at_answer(self, x: Tensor) -> Tensor:
        """Return [K, d], x [B, T, d] at `<s_answer>`."""
        return x[self.rows, self.answers]


def transform(
    decoder: ResidualDecoder,
    sublayer: SubLayer,
    stream: Tensor,
    spots: Spots,
    options: PathOptions,
) -> Transform:
    """Return the transform of one sub-layer at the given spots.

    Args:
        decoder: the view.
        sublayer: a self-attention or feed-forward.
        stream: [B, T, d] what the sub-layer reads in the clean run.
        spots: keyword and answer positions.
        options: how LayerNorm, activation and attention enter.
    """
    parts = decoder.parts(sublayer)
    place = spots.at_keyword if options.scale_at == "keyword" else spots.at_answer
    clean = place(stream)
    normed = _norm(parts, clean, options)
    inner: Transform
    if sublayer.kind is Kind.FEED:
        inner = _feed(parts, normed(clean), options)
    else:
        inner = _attend(parts, stream, spots, options)

    def through(x: Tensor) -> Tensor:
        return parts.project(inner(normed(x)))

    return through if options.biases else _without_constant(through)


def reader(parts: Parts, clean: Tensor, options: PathOptions) -> Transform:
    """Return the map from vectors [..., K, d] to queries [..., K, H, hd] of a cross-attention.

    Args:
        parts: pieces of the cross-attention.
        clean: [K, d] what it reads at `<s_answer>` in the clean run.
        options: how LayerNorm and biases enter.
    """
    normed, query = _norm(parts, clean, options), parts.query
    if query is None:
        raise ConfigError("Path reader: a feed-forward has no queries; choose a cross-attention")

    def read(x: Tensor) -> Tensor:
        return query(normed(x))

    chosen = read if options.biases else _without_constant(read)
    return lambda x: _split(chosen(x), parts.heads)


def chains(start: Tensor, transforms: Sequence[Transform]) -> Tensor:
    """Return the vectors of all chains.

    Args:
        start: [K, d].
        transforms: T_1 ... T_k in order of application.

    Returns:
        [2^k, K, d]; bit i of the first index tells whether the chain passes through transforms[i].
    """
    vectors = start.unsqueeze(0)
    for through in transforms:
        vectors = torch.cat([vectors, through(vectors)])
    return vectors


def identity_gap(start: Tensor, transforms: Sequence[Transform]) -> float:
    """Return |sum of all chains - composition of (I + T_i)| / |composition|, largest entries.

    Zero up to rounding when the transforms are linear; anything else is a fault of the enumeration.
    """
    total = chains(start, transforms).sum(dim=0)
    composed = start
    for through in transforms:
        composed = composed + through(composed)
    return float((total - composed).abs().max() / composed.abs().max())


def _norm(parts: Parts, clean: Tensor, options: PathOptions) -> Transform:
    """Return LayerNorm as the options want it."""
    if options.norm == "none":
        return lambda x: x
    if options.norm == "recomputed":
        return lambda x: parts.norm(x)
    scale = parts.norm.scale(clean)
    return lambda x: parts.norm(x, scale)


def _feed(parts: Parts, clean: Tensor, options: PathOptions) -> Transform:
    """Return the map from normed vectors to neurons; `clean` [K, d] is normed too."""
    if options.feed == "activation":
        return parts.neurons
    return neuron_map(parts, clean, options.feed)


def _attend(parts: Parts, stream: Tensor, spots: Spots, options: PathOptions) -> Transform:
    """Return the map from normed vectors to head outputs: the value, weighted per head."""
    value = parts.value
    if value is None:
        raise ConfigError("Path transform: this attention's adapter gives no value projection")
    if options.attention == "one":
        return value
    # [K, H], the clean run's weight of each keyword at its answer
    whole = parts.causal_weights(parts.norm(stream)).to(stream.dtype)
    weights = whole[spots.rows, :, spots.answers, spots.keywords]

    def weighted(x: Tensor) -> Tensor:
        return (_split(value(x), parts.heads) * weights.unsqueeze(-1)).flatten(-2)

    return weighted


def _split(joined: Tensor, heads: int) -> Tensor:
    """[..., H * hd] -> [..., H, hd]."""
    return joined.view(*joined.shape[:-1], heads, -1)


def _without_constant(through: Transform) -> Transform:
    """Return x -> f(x) - f(0), the linear part of an affine f."""
    return lambda x: through(x) - through(torch.zeros_like(x))


def linear_options(options: PathOptions) -> PathOptions:
    """Return the linear variant of the options, for which `identity_gap` must vanish."""
    return PathOptions(
        feed="linear" if options.feed == "activation" else options.feed,
        norm="none" if options.norm == "none" else "frozen",
        attention=options.attention,
        start=options.start,
        scale_at=options.scale_at,
        biases=False,
        top=options.top,
    )
