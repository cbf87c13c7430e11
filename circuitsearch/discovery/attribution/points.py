"""Points: where a method takes gradients, and by which changes it multiplies them.

A score is a sum over points on a way from the clean run (0) to the counterfactual (1),

    score = sum over points k of  weight_k < delta_k , gradient at point k >

    clean        the clean run alone
    ends         the clean run and the counterfactual inputs, half each (trapezoid of two points)
    inputs       the *inputs* move on a straight line: embedding and encoder output. The encoder
                 moves in keys and values, which are affine in it, so nothing is projected again
    activations  one writing sub-layer moves at a time, from its clean to its replaced write
    gates        all sub-layers move together: each adds (1 - a) write + a replacement, with the
                 write that the changed stream gives; inputs stay

and delta is the whole difference between replacement and clean value (`difference`), or, for
`conductance`, the step that the writers themselves make between neighbouring points, differentiated
at both ends of each step (trapezoid). With `inputs`, `difference` is EAP-IG (arXiv 2403.17806) and
`conductance` CEAP (arXiv 2606.16920); `activations` follows sparse feature circuits (arXiv
2403.19647); `gates` from 0 on is the mask-gradient of auto-circuit restricted to sub-layers.

GradDrop (AtP*, arXiv 2403.00745, eq. 11) takes one point per decoder layer, all at the clean run:
the writes of that layer's sub-layers pass no gradient back, and absolute scores are added with
weight 1 / (L - 1). It is L - 1 and not L because a component's score is 0 where its own layer is
dropped, so this is the mean over the other layers. The paper has no edges; here the score of an
edge is 0 where its *reader's* layer is dropped, and the readout, which no layer holds, is averaged
over all L.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from circuitsearch.core.components import SubLayer
from circuitsearch.core.errors import ConfigError
from circuitsearch.teacher.decoders import Memory, ResidualDecoder
from circuitsearch.teacher.documents.collate import Batch

from ..ablation import Replacements
from ..metrics import measure
from ..wiring import EMBEDDING, ENCODER, Wiring
from .methods import Method
from .passes import KeysValues, Pass, PassOptions, run_pass
from .rules import RULES, BackwardRule

__all__ = [
    "Deltas",
    "Point",
    "Work",
    "activation_points",
    "clean_points",
    "end_points",
    "gate_points",
    "input_points",
]


@dataclass(frozen=True)
class Deltas:
    """Replacement minus clean value of every writer of one batch.

    Attributes:
        embedding: [B, T, d].
        units: per sub-layer [B, T, H, hd] or [B, T, F].
        writes: per sub-layer [B, T, d]; under zero ablation with the output bias, which `units`
            leave in place.
        keys_values: per cross-attention, changes of keys and values by row; empty when the encoder
            is not scored.
    """

    embedding: Tensor
    units: Mapping[SubLayer, Tensor]
    writes: Mapping[SubLayer, Tensor]
    keys_values: KeysValues

    def minus(self, other: Deltas, factor: float) -> Deltas:
        """Return factor * (self - other)."""
        return Deltas(
            factor * (self.embedding - other.embedding),
            {s: factor * (self.units[s] - other.units[s]) for s in self.units},
            {s: factor * (self.writes[s] - other.writes[s]) for s in self.writes},
            {
                s: (factor * (k - other.keys_values[s][0]), factor * (v - other.keys_values[s][1]))
                for s, (k, v) in self.keys_values.items()
            },
        )


@dataclass(frozen=True)
class Point:
    """One point on the way.

    Attributes:
        weight: its weight in the sum.
        kept: the pass there.
        deltas: what its gradients are multiplied by.
        only: the sub-layer whose writers it speaks for, or `embedding` or `encoder`
            (`activations`); None for all writers.
        edges: [writers, readers] of bool, the edges it speaks for (`turns`); None for all.
        heads: heads of each attention it speaks for, and no sub-layer (`turns`); None for all.
        whole: whether it speaks for sub-layers but not for their heads (`turns`).
    """

    weight: float
    kept: Pass
    deltas: Deltas
    only: SubLayer | str | None = None
    edges: np.ndarray | None = None
    heads: Mapping[SubLayer, Tensor] | None = None
    whole: bool = False

    def speaks_for(self, writer: SubLayer | str) -> bool:
        """Tell whether the gradients here belong to a writer."""
        return self.only is None or self.only == writer


@dataclass
class Work:
    """One batch, and what its points share.

    Attributes:
        decoder: the view.
        batch: tokens and labels.
        memory: what cross-attention reads.
        replacements: what stands in.
        metric: name of the metric.
        foils: [B, T] the counterfactual's tokens, or None.
        encoder: whether the encoder is a writer to be scored.
        wiring: the edges to be scored; None when components are.
        level: `sublayers` or `heads`, or `both` where components are scored.
        forwards: full-decoder forward passes spent so far.
        backwards: full-decoder backward passes spent so far.
    """

    decoder: ResidualDecoder
    batch: Batch
    memory: Memory
    replacements: Replacements
    metric: str
    foils: Tensor | None
    encoder: bool
    wiring: Wiring | None = None
    level: str = "both"
    forwards: float = 0.0
    backwards: float = 0.0

    @cached_property
    def embedding(self) -> Tensor:
        """[B, T, d] the clean embedding."""
        with torch.no_grad():
            return self.decoder.embed(self.batch.ids)

    @cached_property
    def embedding_delta(self) -> Tensor:
        """[B, T, d] replacement minus clean embedding."""
        return self.replacements.embedding_for(self.embedding) - self.embedding

    @cached_property
    def clean(self) -> Pass:
        """The clean run, without gradients."""
        kept = Pass(self.embedding)
        self.forwards += 1
        with torch.no_grad():
            x = self.embedding
            for sublayer in self.decoder.sublayers:
                kept.reads[sublayer] = x
                kept.units[sublayer] = self.decoder.units(sublayer, x, self.memory)
                kept.writes[sublayer] = self.decoder.project(sublayer, kept.units[sublayer])
                x = x + kept.writes[sublayer]
        kept.final = x
        return kept

    @cached_property
    def clean_rows(self) -> KeysValues:
        """Clean keys and values by row."""
        pages = self.memory.row_pages()
        return {s: (k[pages], v[pages]) for s, (k, v) in self.memory.keys_values.items()}

    @cached_property
    def row_deltas(self) -> KeysValues:
        """Changes of keys and values by row when the encoder's output is replaced."""
        found = {}
        with torch.no_grad():
            for sublayer, (key, value) in self.clean_rows.items():
                new_key, new_value = self._replaced_rows(sublayer)
                found[sublayer] = (new_key - key, new_value - value)
        return found

    def _replaced_rows(self, sublayer: SubLayer) -> tuple[Tensor, Tensor]:
        """Keys and values [B or 1, G, N or 1, hd] of the replaced encoder output."""
        stand_in = self.replacements
        states = stand_in.states
        if states is None:
            states = torch.zeros_like(self.memory.states[:1, :1])
        pages = states if states.ndim == 3 else states.view(1, 1, -1)
        key, value = self.decoder.memory(pages, None, [sublayer]).keys_values[sublayer]
        return (
            (key, value) if stand_in.pages is None else (key[stand_in.pages], value[stand_in.pages])
        )

    def rows_at(self, step: float) -> KeysValues | None:
        """Return keys and values by row at a step of the way; None without encoder edges at 0."""
        if not self.memory.keys_values or (step == 0.0 and not self.encoder):
            return None
        return {
            s: (k + step * self.row_deltas[s][0], v + step * self.row_deltas[s][1])
            for s, (k, v) in self.clean_rows.items()
        }

    def run(self, start: Tensor, options: PassOptions) -> Pass:
        """Run one pass and count it, a suffix as its share of the decoder."""
        order = self.decoder.sublayers
        share = sum(options.after is None or s > options.after for s in order) / len(order)
        self.forwards += share
        self.backwards += share
        measured = partial(self._measured, rule=options.rule)
        return run_pass(self.decoder, start, self.memory, measured, options)

    def _measured(self, x: Tensor, rule: BackwardRule) -> Tensor:
        return measure(
            _RuledReadout(self.decoder, rule), x, self.batch.labels, self.metric, self.foils
        )

    def deltas(self, kept: Pass) -> Deltas:
        """Return replacement minus the values of a pass."""
        stand_in = self.replacements
        with torch.no_grad():
            return Deltas(
                self.embedding_delta,
                {s: stand_in.units_for(s, z) - z for s, z in kept.units.items()},
                {s: stand_in.write_for(s, w) - w for s, w in kept.writes.items()},
                self.row_deltas if self.encoder else {},
            )


@dataclass(frozen=True)
class _RuledReadout:
    """A decoder's readout under a backward rule."""

    decoder: ResidualDecoder
    rule: BackwardRule

    def readout(self, x: Tensor) -> Tensor:
        return self.rule.readout(self.decoder, x)


def _at_inputs(
    work: Work, step: float, method: Method, dropped: frozenset[SubLayer] = frozenset()
) -> Pass:
    """Run with inputs moved by a step of the way."""
    rows = work.rows_at(step)
    start = work.embedding if step == 0.0 else work.embedding + step * work.embedding_delta
    return work.run(start, PassOptions(RULES[method.rule], rows=rows, dropped=dropped))


def clean_points(method: Method, work: Work) -> Iterator[Point]:
    """Yield the clean run, or one for each dropped layer."""
    if method.dropping:
        yield from _dropped(method, work)
        return
    kept = _at_inputs(work, 0.0, method)
    yield Point(1.0, kept, work.deltas(kept))


def _dropped(method: Method, work: Work) -> Iterator[Point]:
    layers = sorted({s.layer for s in work.decoder.sublayers})
    others = len(layers) - 1
    if others < 1:
        raise ConfigError(
            f"Method {method.name}: got a decoder of {len(layers)} layer, allowed are two layers "
            "and more, since each is dropped in turn and the others are averaged; choose eap"
        )
    deltas: Deltas | None = None
    for layer in layers:
        dropped = frozenset(s for s in work.decoder.sublayers if s.layer == layer)
        kept = _at_inputs(work, 0.0, method, dropped)
        deltas = work.deltas(kept) if deltas is None else deltas
        # no layer holds the readout: it is reached in every pass, one more than the weight is for
        kept.read_gradients[None] = kept.read_gradients[None] * (others / len(layers))
        yield Point(1 / others, kept, deltas)


def end_points(method: Method, work: Work) -> Iterator[Point]:
    """Yield the clean run and the one on the counterfactual inputs."""
    kept = _at_inputs(work, 0.0, method)
    deltas = work.deltas(kept)
    yield Point(0.5, kept, deltas)
    yield Point(0.5, _at_inputs(work, 1.0, method), deltas)


def input_points(method: Method, work: Work) -> Iterator[Point]:
    """Yield runs whose inputs are on the way."""
    if method.delta == "conductance":
        yield from _conductance(method, work)
        return
    deltas = work.deltas(work.clean)
    for step, weight in method.steps():
        yield Point(weight, _at_inputs(work, step, method), deltas)


def _conductance(method: Method, work: Work) -> Iterator[Point]:
    """Each pass is contracted with half of the steps on both of its sides."""
    count = method.points
    before: tuple[Pass, Deltas] | None = None
    kept = _at_inputs(work, 0.0, method)
    here = (kept, _moved(work, kept, 0.0))
    for k in range(count + 1):
        after = None
        if k < count:
            kept = _at_inputs(work, (k + 1) / count, method)
            after = (kept, _moved(work, kept, (k + 1) / count))
        left, right = here if before is None else before, here if after is None else after
        yield Point(1.0, here[0], right[1].minus(left[1], 0.5))
        if after is not None:
            before, here = here, after


def _moved(work: Work, kept: Pass, step: float) -> Deltas:
    """Return the values of a pass as if they were deltas from zero; their differences are steps."""
    rows = work.row_deltas if work.encoder else {}
    moved = {s: (step * k, step * v) for s, (k, v) in rows.items()}
    return Deltas(step * work.embedding_delta, kept.units, kept.writes, moved)


def activation_points(method: Method, work: Work) -> Iterator[Point]:
    """Yield the points at which one writing sub-layer is moved at a time."""
    rule = RULES[method.rule]
    clean = work.clean
    deltas = work.deltas(clean)
    for step, weight in method.steps() if work.wiring is not None else ():
        start = work.embedding + step * work.embedding_delta
        kept = work.run(start, PassOptions(rule, rows=work.rows_at(0.0)))
        yield Point(weight, kept, deltas, EMBEDDING)
        if work.encoder:
            kept = work.run(work.embedding, PassOptions(rule, rows=work.rows_at(step)))
            yield Point(weight, kept, deltas, ENCODER)
    for sublayer in work.decoder.sublayers:
        behind = clean.reads[sublayer] + clean.writes[sublayer]
        for step, weight in method.steps():
            at = behind + step * deltas.writes[sublayer]
            yield Point(weight, work.run(at, PassOptions(rule, sublayer)), deltas, sublayer)


def gate_points(method: Method, work: Work) -> Iterator[Point]:
    """Yield runs in which all sub-layers are on the way."""
    for step, weight in method.steps():

        def blend(sublayer: SubLayer, units: Tensor, written: Tensor, step: float = step) -> Tensor:
            stand_in = work.replacements.write_for(sublayer, written)
            return (1 - step) * written + step * stand_in

        options = PassOptions(RULES[method.rule], blend=blend, rows=work.rows_at(0.0))
        kept = work.run(work.embedding, options)
        yield Point(weight, kept, work.deltas(kept))
