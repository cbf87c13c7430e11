"""The residual-stream view of a decoder: the one interface that everything else is written on.

A pre-LayerNorm decoder is a stream that sub-layers read and add to:

    x = embed(tokens);   for f in sublayers: x = x + f(x, memory);   logits = readout(x)

`ResidualDecoder` states exactly this for a Hugging Face decoder. Each sub-layer is split once more,
into `units` (what an attention's heads or a feed-forward's neurons carry) and `project` (the linear
map that writes them to the stream), because heads and neurons are what gets scored and pruned:

    write = project(units)        attention: units [B, T, H, hd], project = out_proj
                                  feed-forward: units [B, T, F],   project = fc2

Skipping a sub-layer is leaving its write out, patching is replacing units or a write, attribution
is a gradient at either, and a student is the same list with fewer, narrower sub-layers.

One exception: a student may hold a cross-attention whose write becomes the stream instead of being
added to it (plan `C3=alone`). Its adapter names such sub-layers in `alone`, and `step` runs any
sub-layer rightly; code that adds writes by itself is for decoders that have none.

The view is deterministic: it applies no dropout, also in training mode, so a loss under it depends
on weights and inputs only. Distillation through it therefore trains without dropout. It needs no
padding mask: batches are padded on the right, attention is causal, and padded rows carry the label
-100.

Shapes: B batch rows, T tokens, d stream width, H heads, hd head width, F neurons, V vocabulary,
P pages, N encoder tokens per page, E width of the encoder states that cross-attention reads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from circuitsearch.core.components import SubLayer
from circuitsearch.core.shapes import DecoderShape

from .attention import Readers
from .parts import Norm, Parts

__all__ = [
    "Memory",
    "ResidualDecoder",
    "answer_loss",
    "continue_from",
    "nearest_tokens",
    "run",
    "step",
    "stream_loss",
    "token_loss",
    "write",
]

_READ_OUT = 1024
"""Vectors of the stream that meet the vocabulary together: 235 MB of Donut's logits in float32."""

_IGNORED = -100
"""Label of positions that no loss counts."""


@dataclass(frozen=True)
class Memory:
    """What cross-attention reads: one entry per *page*, shared by all batch rows that ask about it.

    Attributes:
        states: [P, N, E] encoder states, already projected to the width that the decoder reads.
        keys_values: cross-attention keys and values, each [P, H, N, hd], computed once per page.
        rows: [B] page that each batch row reads; None means that row i reads page i (B = P).
        readers: the same information as `rows`, arranged for attention (see `attention.Readers`).
    """

    states: Tensor
    keys_values: Mapping[SubLayer, tuple[Tensor, Tensor]]
    rows: Tensor | None
    readers: Readers | None

    @classmethod
    def of(
        cls,
        states: Tensor,
        keys_values: Mapping[SubLayer, tuple[Tensor, Tensor]],
        rows: Tensor | None,
    ) -> Memory:
        """Build a memory and arrange its rows once."""
        readers = None if rows is None else Readers.of(rows, states.shape[0])
        return cls(states, keys_values, rows, readers)

    def row_pages(self) -> Tensor:
        """Return [B] the page of each batch row, also where `rows` is None."""
        if self.rows is not None:
            return self.rows
        return torch.arange(self.states.shape[0], device=self.states.device)

    def read_by(self, rows: Tensor) -> Memory:
        """Return the same pages read by other batch rows; nothing is recomputed.

        Args:
            rows: [B'] page of each new batch row.
        """
        return replace(self, rows=rows, readers=Readers.of(rows, self.states.shape[0]))

    def repeated(self, times: int) -> Memory:
        """Return the memory of `times` copies of the batch, stacked one after the other."""
        return self if times == 1 else self.read_by(self.row_pages().repeat(times))


@runtime_checkable
class ResidualDecoder(Protocol):
    """A decoder as a residual stream.

    Every adapter passes the suite in `tests/conformance/test_residual_decoder.py`.

    Attributes:
        shape: sizes of the *full* decoder (a narrower student has the shape of its teacher).
        sublayers: the sub-layers that are present, in execution order.
    """

    @property
    def shape(self) -> DecoderShape:
        """Sizes of the full decoder."""
        ...

    @property
    def sublayers(self) -> tuple[SubLayer, ...]:
        """Sub-layers present, in execution order."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Return [B, T, d], the stream before the first sub-layer, for ids [B, T]."""
        ...

    def memory(
        self,
        states: Tensor,
        rows: Tensor | None = None,
        sublayers: Collection[SubLayer] | None = None,
    ) -> Memory:
        """Compute cross-attention keys and values once per page.

        Args:
            states: [P, N, E] encoder states.
            rows: [B] page of each batch row, or None when row i reads page i.
            sublayers: restrict to these (others are ignored); None means every cross-attention
                present.
        """
        ...

    def units(self, sublayer: SubLayer, x: Tensor, memory: Memory) -> Tensor:
        """Return head outputs [B, T, H, hd] or activated neurons [B, T, F] for x [B, T, d]."""
        ...

    def project(self, sublayer: SubLayer, units: Tensor) -> Tensor:
        """Return the write [B, T, d] of units, bias included."""
        ...

    def parts(self, sublayer: SubLayer) -> Parts:
        """Return the sub-layer's pieces."""
        ...

    @property
    def final_norm(self) -> Norm:
        """The norm in front of the output projection."""
        ...

    def unembed(self, normed: Tensor) -> Tensor:
        """Return logits [..., V] of the normed stream [..., d]."""
        ...

    def readout(self, x: Tensor) -> Tensor:
        """Return logits [..., V] of the stream x [..., d]: `unembed` of its final norm."""
        ...


def write(decoder: ResidualDecoder, sublayer: SubLayer, x: Tensor, memory: Memory) -> Tensor:
    """Return [B, T, d], what a sub-layer adds to the stream x [B, T, d]."""
    return decoder.project(sublayer, decoder.units(sublayer, x, memory))


def step(decoder: ResidualDecoder, sublayer: SubLayer, x: Tensor, memory: Memory) -> Tensor:
    """Return [B, T, d], the stream behind a sub-layer that reads x [B, T, d].

    It is x + write, or the write where the decoder's `alone` (a set of sub-layers, which only
    adapters of students have) names the sub-layer.
    """
    written = write(decoder, sublayer, x, memory)
    alone: Collection[SubLayer] = getattr(decoder, "alone", ())
    return written if sublayer in alone else x + written


def nearest_tokens(decoder: ResidualDecoder, x: Tensor) -> Tensor:
    """Return [...], the token of the largest logit for each vector of the stream x [..., d].

    Equal logits go to the lowest token. The vocabulary meets 1,024 vectors at a time.
    """
    blocks = torch.split(x.reshape(-1, x.shape[-1]), _READ_OUT)
    found = [decoder.readout(block).argmax(dim=-1) for block in blocks]
    return torch.cat(found).view(x.shape[:-1])


def continue_from(
    decoder: ResidualDecoder,
    x: Tensor,
    memory: Memory,
    after: SubLayer | None = None,
    kept: Collection[SubLayer] | None = None,
) -> Tensor:
    """Run the stream through the rest of the decoder.

    Args:
        decoder: the view.
        x: [B, T, d] the stream behind `after`.
        memory: what cross-attention reads.
        after: the last sub-layer already applied; None starts before the first.
        kept: sub-layers that run; None means all present.

    Returns:
        [B, T, d], the stream before `readout`.
    """
    for sublayer in decoder.sublayers:
        if (after is None or sublayer > after) and (kept is None or sublayer in kept):
            x = step(decoder, sublayer, x, memory)
    return x


def run(
    decoder: ResidualDecoder,
    ids: Tensor,
    memory: Memory,
    kept: Collection[SubLayer] | None = None,
) -> Tensor:
    """Return logits [B, T, V] for ids [B, T]; only `kept` sub-layers run (None: all present)."""
    return decoder.readout(continue_from(decoder, decoder.embed(ids), memory, kept=kept))


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return [n], the cross-entropy (nats) of labels [n] under logits [n, V]."""
    # half precision is too coarse for a log-sum over the vocabulary; float64 stays what it is
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(logits, labels, reduction="none")


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return [B], the mean cross-entropy (nats) of each example over its answer tokens.

    Args:
        logits: [B, T, V].
        labels: [B, T] next tokens, -100 where nothing is scored. A row without any label gives NaN.
    """
    answers = labels != _IGNORED
    return _per_example(logits[answers], labels, answers)


def stream_loss(decoder: ResidualDecoder, x: Tensor, labels: Tensor) -> Tensor:
    """Return [B], `answer_loss` of the stream x [B, T, d], reading out the labelled rows only.

    The vocabulary matrix is the largest of the decoder; prompt and padding rows never meet it here.
    """
    answers = labels != _IGNORED
    return _per_example(decoder.readout(x[answers]), labels, answers)


def _per_example(logits: Tensor, labels: Tensor, answers: Tensor) -> Tensor:
    """Average token losses [n] of the labelled rows, logits [n, V], per example."""
    losses = token_loss(logits, labels[answers])
    table = losses.new_zeros(labels.shape).masked_scatter(answers, losses)
    return table.sum(dim=1) / answers.sum(dim=1)
