"""The pieces of one sub-layer: LayerNorm, projections, attention or activation, output projection.

Everything that looks inside a sub-layer (running it, splitting q, k and v, pulling gradients back
to the stream, linearising it) is written on these pieces, so an adapter only has to hand them over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Affine", "Embedding", "Norm", "Parts"]


@dataclass(frozen=True)
class Affine:
    """x -> x W^T + b on the last dimension; the tensors are the model's own, not copies.

    Attributes:
        weight: [out, in].
        bias: [out], or None.
    """

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return [..., out] for x [..., in]."""
        return functional.linear(x, self.weight, self.bias)

    def linear(self, x: Tensor) -> Tensor:
        """Return [..., out], the map without its bias: how a *change* of x passes."""
        return functional.linear(x, self.weight)


@dataclass(frozen=True)
class Embedding:
    """The tables that the token embedding is made of; the tensors are the model's own.

    Where tokens go through a table first (`C0=token`), `table` is a copy in that order.

    Attributes:
        table: [V, d] token rows.
        scale: factor on them.
        positions: [positions, d] learned position rows from position 0 on, or None.
    """

    table: Tensor
    scale: float = 1.0
    positions: Tensor | None = None


@dataclass(frozen=True)
class Norm:
    """LayerNorm, or RMSNorm where `centred` is False.

    Attributes:
        weight: [d].
        bias: [d], or None.
        eps: added to the variance (mean square) before the root.
        centred: whether the mean is subtracted.
    """

    weight: Tensor
    bias: Tensor | None
    eps: float
    centred: bool = True

    def __call__(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return the norm of x [..., d]; a given scale [..., 1] replaces x's own."""
        if scale is None:
            if self.centred:
                return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
            scale = self.scale(x)
        normed = (self._centre(x) * scale).to(x.dtype) * self.weight
        return normed if self.bias is None else normed + self.bias

    def scale(self, x: Tensor) -> Tensor:
        """Return [..., 1], the reciprocal deviation (root mean square) that x is divided by."""
        # half precision is too coarse for a sum of squares over the stream's width
        wide = self._centre(x.to(torch.promote_types(x.dtype, torch.float32)))
        return torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)

    def pull_back(self, x: Tensor, gradient: Tensor, *, frozen: bool = False) -> Tensor:
        """Return the gradient at x of a gradient at the norm's output.

        Args:
            x: [..., d] where the norm is differentiated.
            gradient: [..., d], broadcasting against x.
            frozen: take the scale as a constant.
        """
        scaled = gradient * self.weight * self.scale(x)
        if not frozen:
            normed = self._centre(x) * self.scale(x)
            scaled = scaled - normed * (normed * scaled).mean(dim=-1, keepdim=True)
        return self._centre(scaled).to(gradient.dtype)

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=-1, keepdim=True) if self.centred else x


@dataclass(frozen=True)
class Parts:
    """The pieces of one sub-layer. Attention has query, key and value; a feed-forward has `up`.

    Attributes:
        norm: what the sub-layer applies to the stream it reads.
        project: [..., H * hd] or [..., F] -> [..., d], the write.
        query: LN'd stream -> [..., H * hd] (attention), before `score_scale`.
        key: LN'd stream (self) or encoder states (cross) -> [..., G * hd].
        value: LN'd stream (self) or encoder states (cross) -> [..., G * hd].
        rotate: turns queries or keys [..., T, hd] by their positions (rotary embedding), or None.
        heads: heads present, H (0 for a feed-forward).
        groups: key-value heads G; head h reads group h // (H / G). Equal to H without grouping.
        score_scale: factor on query-key products (1 / sqrt(hd) in mBART).
        up: LN'd stream -> [..., F] (feed-forward).
        gate: second map of a gated feed-forward, LN'd stream -> [..., F], or None.
        activation: elementwise; units are activation(up(x)), or activation(gate(x)) * up(x).
    """

    norm: Norm
    project: Affine
    query: Affine | None = None
    key: Affine | None = None
    value: Affine | None = None
    rotate: Callable[[Tensor], Tensor] | None = None
    heads: int = 0
    groups: int = 0
    score_scale: float = 1.0
    up: Affine | None = None
    gate: Affine | None = None
    activation: Callable[[Tensor], Tensor] | None = None

    def split(self, joined: Tensor) -> Tensor:
        """[B, T, n * hd] -> [B, n, T, hd], for queries, keys or values."""
        width = self.project.weight.shape[1] // self.heads
        return joined.view(*joined.shape[:-1], -1, width).transpose(1, 2)

    def causal_weights(self, normed: Tensor) -> Tensor:
        """Return the weights [B, H, T, T] of a self-attention that reads the LN'd stream [B, T, d].

        Rows are readers, and what stands behind them has weight zero. At least float32. Running a
        decoder uses fused attention, which never forms them.
        """
        return self.causal_scores(normed).softmax(dim=-1)

    def causal_scores(self, normed: Tensor) -> Tensor:
        """Return what `causal_weights` is the softmax of, [B, H, T, T]; -inf behind a reader."""
        if self.query is None or self.key is None:
            raise TypeError("a feed-forward has no attention weights")
        query, key = self.split(self.query(normed)), self.split(self.key(normed))
        if self.rotate is not None:
            query, key = self.rotate(query), self.rotate(key)
        # head h reads key group h // (H / G), so heads unfold into groups first
        grouped = torch.unflatten(query, 1, (key.shape[1], -1))
        products = torch.einsum("bgrqd,bgkd->bgrqk", grouped, key).flatten(1, 2)
        products = products.to(torch.promote_types(products.dtype, torch.float32))
        later = torch.ones(products.shape[-2:], dtype=torch.bool, device=normed.device).triu(1)
        return (products * self.score_scale).masked_fill(later, -torch.inf)

    def neurons(self, normed: Tensor) -> Tensor:
        """Return activated neurons [..., F] of the LN'd stream."""
        if self.up is None or self.activation is None:
            raise TypeError("an attention has no neurons")
        if self.gate is None:
            return self.activation(self.up(normed))
        return self.activation(self.gate(normed)) * self.up(normed)
