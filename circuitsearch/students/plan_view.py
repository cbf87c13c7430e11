"""A plan run inside a whole decoder: the student's computation on the whole decoder's weights.

`build_student` copies the weights that a plan keeps; a `PlanView` slices them anew whenever they
are read. It computes what the student computes, gradients reach the whole decoder's parameters, and
nothing is computed for heads or neurons that the plan drops.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import ConfigError
from circuitsearch.core.plan import Plan
from circuitsearch.students.replacements import FITTED, Replacements, token_map
from circuitsearch.students.student import NeuronOrder, kept_units, rank_neurons
from circuitsearch.teacher.decoders import Memory, Norm, Parts, ResidualDecoder
from circuitsearch.teacher.decoders.parts import Affine
from circuitsearch.teacher.decoders.stream import StreamDecoder

__all__ = ["NeuronOrder", "PlanView", "columns", "neuron_order", "sliced"]


def neuron_order(view: ResidualDecoder) -> dict[SubLayer, list[int]]:
    """Return the neurons of every feed-forward of a decoder, ranked as `build_student` does."""
    model: Any = view
    feeds = [sublayer for sublayer in view.sublayers if sublayer.kind is Kind.FEED]
    return {sublayer: rank_neurons(model.model, sublayer) for sublayer in feeds}


class PlanView(StreamDecoder):
    """The view of a plan's student, on the weights of a whole decoder.

    Attributes:
        plan: the plan, fitted to the decoder.
        sublayers: what runs; a beginning that is replaced by `token` is part of `embed`.
        alone: cross-attentions whose write is the stream behind them (see `protocol.step`).
    """

    def __init__(
        self,
        view: ResidualDecoder,
        plan: Plan,
        *,
        neurons: NeuronOrder | None = None,
        replacements: Replacements | None = None,
    ) -> None:
        """Look up what the plan keeps; copies nothing.

        Args:
            view: the whole decoder.
            plan: what runs.
            neurons: neurons by which widths are cut, for feed-forwards that it names; the others
                are ranked by the weights as they are now (`rank_neurons`).
            replacements: numbers for the sub-layers that the plan replaces, but for `alone`.

        Raises:
            PlanError: the plan does not fit the decoder.
            ConfigError: the decoder lacks a sub-layer of the plan, or `replacements` lacks what the
                plan needs.
        """
        whole: Any = view
        self.shape = view.shape
        self.plan = plan.fitted(view.shape)
        self.model = whole.model
        self.sublayers = tuple(s for s, keep in self.plan.kept if not keep.prefix)
        missing = [str(sublayer) for sublayer in self.sublayers if sublayer not in view.sublayers]
        if missing:
            raise ConfigError(
                f"Plan {str(plan)!r}: the decoder has no {', '.join(missing)}; give the view of a "
                "whole decoder"
            )
        self._view = view
        self._fitted = replacements or Replacements()
        self._fitted.check(self.plan, view.shape)
        self._token_map = token_map(self.plan, self._fitted)
        self._names = {s: keep.replacement for s, keep in self.plan.kept if keep.replacement}
        self.alone = frozenset(s for s, name in self._names.items() if name == "alone")
        partial = Plan(
            tuple((s, keep) for s, keep in self.plan.kept if keep.heads or keep.width is not None)
        )
        self._units = kept_units(whole.model, partial, view.shape, neurons)
        self._parts: dict[SubLayer, Parts] = {}

    def embed(self, ids: Tensor) -> Tensor:
        """Return [B, T, d], the whole decoder's embedding, of other tokens under `token`."""
        if self._token_map is not None:
            ids = self._token_map.to(ids.device)[ids]
        return self._view.embed(ids)

    @property
    def final_norm(self) -> Norm:
        """The whole decoder's last norm."""
        return self._view.final_norm

    def unembed(self, normed: Tensor) -> Tensor:
        """Return logits [..., V] of the normed stream [..., d]."""
        return self._view.unembed(normed)

    def parts(self, sublayer: SubLayer) -> Parts:
        """Return the sub-layer's pieces, sliced to what the plan keeps."""
        if sublayer not in self._parts:
            parts = self._view.parts(sublayer)
            if sublayer in self._units:
                parts = sliced(parts, self._units[sublayer])
            self._parts[sublayer] = parts
        return self._parts[sublayer]

    def memory(
        self,
        states: Tensor,
        rows: Tensor | None = None,
        sublayers: Collection[SubLayer] | None = None,
    ) -> Memory:
        """Return keys and values [P, H, N, hd] of the kept heads; replacements read no page."""
        wanted = self.sublayers if sublayers is None else sublayers
        reading = [s for s in wanted if self._names.get(s) not in FITTED]
        return super().memory(states, rows, reading)

    def units(self, sublayer: SubLayer, x: Tensor, memory: Memory) -> Tensor:
        """Return kept heads or neurons; of a replacement the LN'd stream [B, T, d] or [B, T, 0]."""
        name = self._names.get(sublayer)
        if name == "mean":
            return x[..., :0]
        if name == "linear":
            return self.parts(sublayer).norm(x)
        return super().units(sublayer, x, memory)

    def project(self, sublayer: SubLayer, units: Tensor) -> Tensor:
        """Return the write [B, T, d]: by the output projection, or by the replacement."""
        name = self._names.get(sublayer)
        if name == "mean":
            mean = self._fitted.means[sublayer]
            return mean.expand(*units.shape[:-1], len(mean))
        if name == "linear":
            return self._fitted.maps[sublayer](units)
        return super().project(sublayer, units)


def sliced(parts: Parts, kept: Sequence[int]) -> Parts:
    """Return a sub-layer's pieces with the given heads or neurons only; gradients pass.

    With grouped queries every kept head gets its group's keys and values as its own.
    """
    project = columns(parts, kept)
    place = parts.project.weight.device
    if parts.query is None or parts.key is None or parts.value is None:
        index = torch.tensor(kept, device=place)
        up = None if parts.up is None else _rows(parts.up, index)
        gate = None if parts.gate is None else _rows(parts.gate, index)
        return replace(parts, project=project, up=up, gate=gate)
    width = parts.project.weight.shape[1] // parts.heads
    sharing = parts.heads // parts.groups
    queries = _spread(kept, width, place)
    groups = _spread([head // sharing for head in kept], width, place)
    return replace(
        parts,
        project=project,
        query=_rows(parts.query, queries),
        key=_rows(parts.key, groups),
        value=_rows(parts.value, groups),
        heads=len(kept),
        groups=len(kept),
    )


def columns(parts: Parts, kept: Sequence[int]) -> Affine:
    """Return the output projection of the given heads or neurons; the bias stays whole."""
    weight = parts.project.weight
    width = weight.shape[1] // parts.heads if parts.heads else 1
    return Affine(weight.index_select(1, _spread(kept, width, weight.device)), parts.project.bias)


def _rows(affine: Affine, index: Tensor) -> Affine:
    bias = None if affine.bias is None else affine.bias.index_select(0, index)
    return Affine(affine.weight.index_select(0, index), bias)


def _spread(units: Sequence[int], width: int, device: torch.device) -> Tensor:
    """Return the rows of units that take `width` rows each."""
    index = torch.tensor(units, device=device)
    return (index[:, None] * width + torch.arange(width, device=device)).flatten()
