"""One clean run, linearised: sub-layers as linear maps of the whole decoder stream.

With attention weights, LayerNorm scales and activations fixed at a clean run, every sub-layer is
affine in what it reads:

    S   x -> W_O A W_V LN(x) + constant       A the clean attention weights
    M   x -> W_2 a(LN(x)) + constant          a the neurons as a `neurons.NeuronMap`
    C   encoder states -> W_O A W_V states + constant

A cross-attention reads the decoder stream with its queries only, which are part of A: nothing of
the stream passes through it, and it is an *entry*, where the encoder stream joins. Constants
(biases, and what LayerNorm's bias becomes) are a third source. The run is then a sum over paths: a
source, then for each self-attention and feed-forward behind it the choice to pass by or through,

    clean stream = sum over paths from the embedding, from the encoder states through one entry,
                   and from the constants of one sub-layer,

which for four layers are 256, 128 + 32 + 8 + 2 = 170, and 425 paths (a test adds them all up). A
frozen final norm carries this over to the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.teacher.decoders import Affine, Memory, Norm, Parts, ResidualDecoder
from circuitsearch.teacher.decoders.attention import cross_attention
from circuitsearch.teacher.documents.collate import Batch

from .neurons import NeuronMap, neuron_map

__all__ = [
    "Entry",
    "LinearFeed",
    "LinearRun",
    "LinearSelf",
    "Step",
    "linearise",
]


@dataclass(frozen=True)
class LinearSelf:
    """A self-attention with fixed weights.

    Attributes:
        sublayer: which one.
        parts: its pieces.
        clean: [B, T, d] what it reads in the clean run.
        weights: [B, H, T, T] attention of rows (readers) to columns.
    """

    sublayer: SubLayer
    parts: Parts
    clean: Tensor
    weights: Tensor

    def through(self, x: Tensor) -> Tensor:
        """Return [..., B, T, d], the write of a change x [..., B, T, d] of the stream."""
        normed = _linear_norm(self.parts.norm, x, self.clean)
        value = _spread(_heads(_value(self.parts).linear(normed), self.parts.groups), self.parts)
        return self.parts.project.linear(_joined(self.weights @ value))

    def pull_back(self, gradient: Tensor) -> Tensor:
        """Return [..., B, T, d], the transpose of `through` on [..., B, T, d]."""
        units = _heads(gradient @ self.parts.project.weight, self.parts.heads)
        value = self.weights.transpose(-2, -1) @ units
        normed = _joined(_gathered(value, self.parts)) @ _value(self.parts).weight
        return self.parts.norm.pull_back(self.clean, normed, frozen=True)

    def constant(self) -> Tensor:
        """Return [B, T, d], the write at LayerNorm's bias: what no input accounts for."""
        # weights sum to one, so attention leaves what is equal at all positions as it is
        bias = _norm_bias(self.parts.norm)
        value = _spread(_heads(_value(self.parts)(bias)[None], self.parts.groups), self.parts)
        return self.parts.project(_joined(value)).expand_as(self.clean)


@dataclass(frozen=True)
class LinearFeed:
    """A feed-forward with fixed slopes.

    Attributes:
        sublayer: which one.
        parts: its pieces.
        clean: [B, T, d] what it reads in the clean run.
        neurons: its neurons as an affine map of the normed stream.
    """

    sublayer: SubLayer
    parts: Parts
    clean: Tensor
    neurons: NeuronMap

    def through(self, x: Tensor) -> Tensor:
        """Return [..., B, T, d], the write of a change x [..., B, T, d] of the stream."""
        normed = _linear_norm(self.parts.norm, x, self.clean)
        return self.parts.project.linear(self.neurons.linear(normed))

    def pull_back(self, gradient: Tensor) -> Tensor:
        """Return [..., B, T, d], the transpose of `through` on [..., B, T, d]."""
        normed = self.neurons.pull_back(gradient @ self.parts.project.weight)
        return self.parts.norm.pull_back(self.clean, normed, frozen=True)

    def constant(self) -> Tensor:
        """Return [B, T, d], the write at LayerNorm's bias: what no input accounts for."""
        return self.parts.project(self.neurons(_norm_bias(self.parts.norm))).expand_as(self.clean)


Step = LinearSelf | LinearFeed
"""A self-attention or feed-forward, which paths pass by or through."""


@dataclass(frozen=True)
class Entry:
    """A cross-attention with fixed weights: where the encoder stream joins.

    The weights, T * N numbers per head and row, are not kept but made again from queries and keys.

    Attributes:
        sublayer: which one.
        parts: its pieces.
        clean: [B, T, d] what its queries read in the clean run.
        query: [B, H, T, hd] of the clean run.
        key: [P, G, N, hd] of the clean run.
        pages: [B] page of each row.
    """

    sublayer: SubLayer
    parts: Parts
    clean: Tensor
    query: Tensor
    key: Tensor
    pages: Tensor

    def enter(self, states: Tensor) -> Tensor:
        """Return [B, T, d], the write of a change of the encoder states [B, N, E] of each row."""
        value = _spread(_heads(_value(self.parts).linear(states), self.parts.groups), self.parts)
        key = _spread(self.key[self.pages], self.parts)
        read = cross_attention(self.query, key, value, None, self.parts.score_scale)
        return self.parts.project.linear(_joined(read))

    def constant(self) -> Tensor:
        """Return [B, T, d], what the biases of values and output write."""
        bias = _value(self.parts).bias
        if bias is None:
            return _bias(self.parts.project).expand(self.clean.shape)
        value = _spread(_heads(bias[None], self.parts.groups), self.parts)
        return self.parts.project(_joined(value)).expand(self.clean.shape)


@dataclass(frozen=True)
class LinearRun:
    """The linear model of one batch's clean run.

    Attributes:
        embedding: [B, T, d] the token source.
        final: [B, T, d] clean stream before the readout.
        steps: self-attentions and feed-forwards, in execution order.
        entries: cross-attentions, in execution order.
    """

    embedding: Tensor
    final: Tensor
    steps: tuple[Step, ...]
    entries: tuple[Entry, ...]

    def chain(
        self, after: SubLayer | None = None, before: SubLayer | None = None
    ) -> tuple[Step, ...]:
        """Return the steps between two sub-layers, both left out; None stands for an end."""
        return tuple(
            step
            for step in self.steps
            if (after is None or step.sublayer > after)
            and (before is None or step.sublayer < before)
        )

    def constants(self) -> Mapping[SubLayer, Tensor]:
        """Return the constant write [B, T, d] of every sub-layer, in execution order."""
        parts = sorted([*self.steps, *self.entries], key=lambda part: part.sublayer)
        return {part.sublayer: part.constant() for part in parts}


def linearise(
    decoder: ResidualDecoder, batch: Batch, memory: Memory, feed: str = "gate"
) -> LinearRun:
    """Run a batch and fix attention weights, LayerNorm scales and activations.

    Kept: B * H * T * T numbers per self-attention, B * T * F (`jacobian`: twice) per feed-forward,
    B * T * d per sub-layer.

    Args:
        decoder: the view.
        batch: tokens.
        memory: what cross-attention reads.
        feed: `gate`, `jacobian` or `linear`; see `neurons`. With `linear` the sum over paths is
            *not* the clean stream.

    Raises:
        ConfigError: an unknown feed.
    """
    steps: list[Step] = []
    entries: list[Entry] = []
    with torch.no_grad():
        x = embedding = decoder.embed(batch.ids)
        for sublayer in decoder.sublayers:
            parts = decoder.parts(sublayer)
            normed = parts.norm(x)
            if sublayer.kind is Kind.FEED:
                neurons = neuron_map(parts, normed, feed)
                steps.append(LinearFeed(sublayer, parts, x, neurons))
            elif sublayer.kind is Kind.SELF:
                weights = parts.causal_weights(normed).to(normed.dtype)
                steps.append(LinearSelf(sublayer, parts, x, weights))
            else:
                key = memory.keys_values[sublayer][0]
                query = parts.split(_query(parts)(normed))
                pages = memory.row_pages()
                entries.append(Entry(sublayer, parts, x, query, key, pages))
            x = x + decoder.project(sublayer, decoder.units(sublayer, x, memory))
    return LinearRun(embedding, x, tuple(steps), tuple(entries))


def _linear_norm(norm: Norm, x: Tensor, clean: Tensor) -> Tensor:
    """Return the norm of a change x [..., B, T, d], its scale that of the clean stream."""
    return replace(norm, bias=None)(x, norm.scale(clean))


def _norm_bias(norm: Norm) -> Tensor:
    """Return the norm of zero, [d]."""
    return torch.zeros_like(norm.weight) if norm.bias is None else norm.bias


def _heads(joined: Tensor, heads: int) -> Tensor:
    """[..., T, n * hd] -> [..., n, T, hd]."""
    return joined.reshape(*joined.shape[:-1], heads, -1).transpose(-3, -2)


def _joined(heads: Tensor) -> Tensor:
    """[..., n, T, hd] -> [..., T, n * hd]."""
    return heads.transpose(-3, -2).flatten(-2)


def _spread(grouped: Tensor, parts: Parts) -> Tensor:
    """[..., G, T, hd] -> [..., H, T, hd], each group repeated for its heads."""
    if parts.groups == parts.heads:
        return grouped
    return grouped.repeat_interleave(parts.heads // parts.groups, dim=-3)


def _gathered(spread: Tensor, parts: Parts) -> Tensor:
    """[..., H, T, hd] -> [..., G, T, hd], the transpose of `_spread`."""
    if parts.groups == parts.heads:
        return spread
    *front, _, tokens, width = spread.shape
    return spread.reshape(*front, parts.groups, -1, tokens, width).sum(dim=-3)


def _bias(affine: Affine) -> Tensor:
    """Return the bias, zeros where there is none."""
    return affine.weight.new_zeros(len(affine.weight)) if affine.bias is None else affine.bias


def _query(parts: Parts) -> Affine:
    return _needed(parts.query)


def _value(parts: Parts) -> Affine:
    return _needed(parts.value)


def _needed(affine: Affine | None) -> Affine:
    if affine is None:
        raise TypeError("a feed-forward has no queries, keys and values")
    return affine
