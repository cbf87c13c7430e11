"""What all adapters share: a decoder run from its sub-layers' parts.

An adapter says where the pieces are (`parts`, `embed`, `final_norm`); how a sub-layer runs follows
from them and is written here once. The output projection is `model.lm_head` unless `unembed` says
otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.shapes import DecoderShape

from .attention import causal_attention, cross_attention
from .parts import Norm, Parts
from .protocol import Memory

__all__ = ["StreamDecoder"]


class StreamDecoder(ABC):
    """A `ResidualDecoder` made of parts.

    Attributes:
        model: the Hugging Face decoder; the view holds its modules, no copies, so that gradients
            reach its parameters and changes of weights show at once.
        shape: sizes by the config (those of the full decoder).
        sublayers: sub-layers present, in execution order.
    """

    model: Any
    shape: DecoderShape
    sublayers: tuple[SubLayer, ...]

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Return [B, T, d], the stream before the first sub-layer, for ids [B, T]."""

    @abstractmethod
    def parts(self, sublayer: SubLayer) -> Parts:
        """Return the sub-layer's pieces."""

    @property
    @abstractmethod
    def final_norm(self) -> Norm:
        """The norm in front of the output projection."""

    def unembed(self, normed: Tensor) -> Tensor:
        """Return logits [..., V] = lm_head of the normed stream [..., d]."""
        logits: Tensor = self.model.lm_head(normed)
        return logits

    def memory(
        self,
        states: Tensor,
        rows: Tensor | None = None,
        sublayers: Collection[SubLayer] | None = None,
    ) -> Memory:
        """Return keys and values [P, H, N, hd] of the cross-attentions, once per page."""
        pairs = {}
        for sublayer in self.sublayers:
            wanted = sublayers is None or sublayer in sublayers
            if sublayer.kind is Kind.CROSS and wanted:
                parts = self.parts(sublayer)
                if parts.key is not None and parts.value is not None:
                    pairs[sublayer] = (
                        parts.split(parts.key(states)),
                        parts.split(parts.value(states)),
                    )
        return Memory.of(states, pairs, rows)

    def units(self, sublayer: SubLayer, x: Tensor, memory: Memory) -> Tensor:
        """Return head outputs [B, T, H, hd] (S, C) or activated neurons [B, T, F] (M)."""
        parts = self.parts(sublayer)
        normed = parts.norm(x)
        if parts.query is None or parts.key is None or parts.value is None:
            return parts.neurons(normed)
        query = parts.split(parts.query(normed))
        if sublayer.kind is Kind.CROSS:
            key, value = memory.keys_values[sublayer]
            heads = cross_attention(query, key, value, memory.readers, parts.score_scale)
        else:
            key, value = parts.split(parts.key(normed)), parts.split(parts.value(normed))
            if parts.rotate is not None:
                query, key = parts.rotate(query), parts.rotate(key)
            heads = causal_attention(query, key, value, parts.score_scale)
        return heads.transpose(1, 2)

    def project(self, sublayer: SubLayer, units: Tensor) -> Tensor:
        """Return the write [B, T, d]: the output projection of joined heads, or of neurons."""
        joined = units if sublayer.kind is Kind.FEED else units.flatten(-2)
        return self.parts(sublayer).project(joined)

    def readout(self, x: Tensor) -> Tensor:
        """Return logits [..., V] of the stream x [..., d] (final norm included)."""
        return self.unembed(self.final_norm(x))
