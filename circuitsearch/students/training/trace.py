"""What happens inside a decoder during one pass: its stream everywhere, its attention weights.

A *place* names a point of the residual stream: a sub-layer (`C3`) means the stream behind it, `end`
the stream that the readout's norm reads (before that norm; the last entry of Hugging Face's
`hidden_states` is behind it). On the residual view a place exists in every student of a teacher,
also where the sub-layer itself was removed: the stream that passes by there. So a *layer map*,
pairs of (student's place, teacher's place), needs no counting of layers after deletion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import PlanError
from circuitsearch.teacher.decoders import Memory, Parts, ResidualDecoder
from circuitsearch.teacher.decoders.protocol import step

__all__ = ["END", "Trace", "parse_place"]

END = "end"
"""The place that the readout's norm reads."""


def parse_place(text: str) -> SubLayer | None:
    """Return the sub-layer of a place; None is the end.

    Raises:
        PlanError: it is neither `end` nor a sub-layer.
    """
    if text == END:
        return None
    try:
        return SubLayer.parse(text)
    except PlanError as error:
        raise PlanError(f"place {text!r}: write {END!r}, or a sub-layer ({error})") from error


@dataclass(frozen=True)
class Trace:
    """One pass through a decoder.

    Attributes:
        view: the decoder.
        memory: what its cross-attentions read.
        reads: [B, T, d] the stream that each sub-layer present reads, in execution order.
        end: [B, T, d] the stream before `readout`.
    """

    view: ResidualDecoder
    memory: Memory
    reads: dict[SubLayer, Tensor]
    end: Tensor

    @classmethod
    def of(cls, view: ResidualDecoder, x: Tensor, memory: Memory) -> Trace:
        """Run the stream x [B, T, d] before the first sub-layer through a decoder."""
        reads = {}
        for sublayer in view.sublayers:
            reads[sublayer] = x
            x = step(view, sublayer, x, memory)
        return cls(view, memory, reads, x)

    def behind(self, place: SubLayer | None) -> Tensor:
        """Return the stream [B, T, d] behind a sub-layer (present or not); None is the end."""
        if place is None:
            return self.end
        later = (x for sublayer, x in self.reads.items() if sublayer > place)
        return next(later, self.end)

    def log_weights(self, sublayer: SubLayer, answers: Tensor) -> Tensor:
        """Return the logarithm of the attention weights of an attention that is present.

        Memory: n * H * K numbers, and B * H * T * T for a self-attention.

        Args:
            sublayer: a self- or cross-attention.
            answers: [B, T] the query positions, n of them true.

        Returns:
            [n, H, K] in float32 or wider, K keys: tokens (-inf behind the query) or encoder tokens.
            Rows come in the order of `answers` for a self-attention, page by page for a
            cross-attention.
        """
        parts = self.view.parts(sublayer)
        normed = parts.norm(self.reads[sublayer])
        if sublayer.kind is Kind.SELF:
            scores = parts.causal_scores(normed).transpose(1, 2)[answers]
        else:
            keys = self.memory.keys_values[sublayer][0]
            scores = _cross_scores(parts, normed, keys, self.memory.row_pages(), answers)
        return scores.log_softmax(dim=-1)


def _cross_scores(
    parts: Parts, normed: Tensor, keys: Tensor, pages: Tensor, answers: Tensor
) -> Tensor:
    """Return [n, H, N] for the LN'd stream [B, T, d], keys [P, G, N, hd] and pages [B] of rows."""
    if parts.query is None:
        raise TypeError("a feed-forward has no attention weights")
    query = parts.split(parts.query(normed)).transpose(1, 2)[answers]
    grouped = torch.unflatten(query, 1, (keys.shape[1], -1))
    page_of = pages[:, None].expand_as(answers)[answers]
    # keys are read in place, page by page: a copy per query would be N * d numbers each
    products = torch.cat(
        [
            torch.einsum("ngrd,gkd->ngrk", grouped[page_of == page], keys[page]).flatten(1, 2)
            for page in sorted(set(page_of.tolist()))
        ]
    )
    return products.to(torch.promote_types(products.dtype, torch.float32)) * parts.score_scale
