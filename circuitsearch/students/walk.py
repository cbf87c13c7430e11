"""The losses of many plans under one decoder, without building a student for any of them.

A plan's loss is that of its untrained student (`build_student`) on cached questions, and equals it
to float tolerance. What is shared or left out:

* every distinct beginning of the plans runs once (`search.exhaustive.sweep` leads the walk);
* heads and neurons of a sub-layer are computed once for all ways to keep it;
* keys and values of a page are computed once per cross-attention, for all plans and questions;
* padding is met by attention alone: the stream holds one row per token;
* behind the last self-attention of a branch only the answer rows go on, because no other position
  can reach a loss any more. That is most of the tree;
* plans are read out together, so that the vocabulary matrix meets many rows at a time.

Questions are walked in chunks, whole pages together where they fit. A chunk of q questions about p
pages, of at most t tokens each, takes at most

    4 bytes * [ (L + 1) q t d            the streams of a branch of L sub-layers
              + q t sum(u)               heads or neurons, over sub-layers kept in several ways
              + 6 q t max(u)             the sub-layer that runs
              + p N (E + 2 (C + 1) H hd) ]   encoder states; keys and values of C
                                             cross-attentions, one of them also as it is made

and the readout of R rows 12 R V bytes; u is the number of head channels or neurons of a sub-layer.
The readout gets a quarter of the limit and the chunk the rest. A question that needs more than that
by itself is a chunk of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.keep import Keep
from circuitsearch.core.plan import Plan
from circuitsearch.core.shapes import DecoderShape
from circuitsearch.students.features.reader import Features
from circuitsearch.students.plan_view import NeuronOrder, columns, neuron_order, sliced
from circuitsearch.students.replacements import FITTED, Replacements, replaced
from circuitsearch.students.student import kept_units
from circuitsearch.students.walk_rows import Questions, attend_pages, attend_tokens
from circuitsearch.teacher.decoders import Parts, ResidualDecoder, token_loss

__all__ = ["Judge", "Walk", "WalkChunk"]

Judge = Callable[[Tensor, Tensor], Tensor]
"""Values [R] of answer rows from their logits [R, V] and labels [R]; `token_loss` gives nats."""

_READOUT_ROWS = 4096
"""Rows read out together at most: more gains no speed."""


class Walk:
    """Values of plans under one decoder on cached questions, chunk by chunk.

    Args:
        view: a whole decoder; its weights must not change meanwhile.
        features: cached states of the pages.
        memory_bytes: what a chunk may take beside weights and libraries (module docstring).
        neurons: neurons by which widths are cut; feed-forwards that it does not name are ranked as
            `build_student` ranks them.
        replacements: numbers for plans that replace sub-layers, but for `alone`.
        judge: what is averaged over the answer tokens of a question.
    """

    def __init__(
        self,
        view: ResidualDecoder,
        features: Features,
        *,
        memory_bytes: float = 2**30,
        neurons: NeuronOrder | None = None,
        replacements: Replacements | None = None,
        judge: Judge = token_loss,
    ) -> None:
        self.view = view
        self.features = features
        self.judge = judge
        self.fitted = replacements or Replacements()
        self._memory = memory_bytes
        self._neurons = neurons
        self._order: NeuronOrder | None = None
        self._parts: dict[SubLayer, Parts] = {}
        vocabulary = view.shape.vocabulary
        self.readout_rows = max(1, min(_READOUT_ROWS, int(memory_bytes / 4 / (12 * vocabulary))))

    def chunks(
        self, plans: Sequence[Plan], questions: Sequence[int] | None = None
    ) -> list[tuple[int, ...]]:
        """Return the questions of each chunk, as indices of the features' examples.

        Pages of like length share a chunk, so that attention meets little padding.

        Args:
            plans: what will be walked.
            questions: indices of the examples to ask; None asks all.
        """
        examples = self.features.examples
        by_page: dict[int, list[int]] = {}
        for index in range(len(examples)) if questions is None else questions:
            by_page.setdefault(examples[index].page, []).append(index)
        longest = {p: max(len(examples[i].ids) for i in some) for p, some in by_page.items()}
        cost = _Cost(self.view.shape, plans, self.features)
        limit = self._memory * 3 / 4
        chunks: list[list[int]] = [[]]
        for page in sorted(by_page, key=lambda page: (longest[page], page)):
            if chunks[-1] and cost(chunks[-1] + by_page[page]) > limit:
                chunks.append([])
            if cost(by_page[page]) <= limit:
                chunks[-1] += by_page[page]
                continue
            for question in by_page[page]:  # the page alone is too much
                if chunks[-1] and cost([*chunks[-1], question]) > limit:
                    chunks.append([])
                chunks[-1].append(question)
        return [tuple(chunk) for chunk in chunks]

    def chunk(self, questions: Sequence[int], plans: Sequence[Plan]) -> WalkChunk:
        """Return root, expand and leaf of a walk over the plans on some questions.

        Raises:
            PlanError: a plan does not fit the decoder.
            ConfigError: a replacement of the plans is not fitted.
        """
        entries = {entry for plan in plans for entry in plan.kept}
        for entry in sorted(entries, key=lambda entry: (entry[0], str(entry[1]))):
            self.fitted.check(Plan((entry,)).fitted(self.view.shape), self.view.shape)
        reading = {sublayer for sublayer, keep in entries if keep.replacement not in FITTED}
        with torch.no_grad():
            return WalkChunk(self, Questions.of(self.view, self.features, questions, reading))

    def parts(self, sublayer: SubLayer) -> Parts:
        """Return the pieces of a whole sub-layer."""
        if sublayer not in self._parts:
            self._parts[sublayer] = self.view.parts(sublayer)
        return self._parts[sublayer]

    def kept(self, sublayer: SubLayer, keep: Keep) -> tuple[int, ...] | None:
        """Return the heads or neurons that a part of a sub-layer has; None means all."""
        if keep.heads is None and keep.width is None:
            return None
        if self._order is None:
            self._order = {**neuron_order(self.view), **(self._neurons or {})}
        model: Any = self.view
        plan = Plan(((sublayer, keep),))
        return kept_units(model.model, plan, self.view.shape, self._order)[sublayer]


class _Cost:
    """Bytes that a chunk of questions takes (module docstring)."""

    def __init__(self, shape: DecoderShape, plans: Sequence[Plan], features: Features) -> None:
        forms: dict[SubLayer, set[Keep]] = {}
        for plan in plans:
            for sublayer, keep in plan.kept:
                forms.setdefault(sublayer, set()).add(keep)
        attention = shape.heads * shape.head_dim
        widths = {s: shape.ffn if s.kind is Kind.FEED else attention for s in forms}
        crossing = sum(s.kind is Kind.CROSS for s in forms)
        depth = max((len(plan.kept) for plan in plans), default=0)
        several = sum(widths[s] for s, keeps in forms.items() if len(keeps) > 1)
        self._token = (depth + 1) * shape.d_model + several + 6 * max(widths.values(), default=0)
        tokens, width = features.states([0]).shape[1:]
        self._page = tokens * (width + 2 * (crossing + (crossing > 0)) * attention)
        self._examples = features.examples

    def __call__(self, questions: Sequence[int]) -> int:
        """Return the bytes."""
        rows = [self._examples[index] for index in questions]
        longest = max(len(row.ids) - 1 for row in rows)
        pages = len({row.page for row in rows})
        return 4 * (len(rows) * longest * self._token + pages * self._page)


class _Stream:
    """The stream behind some sub-layers: rows [k, d] of all tokens, or [n, d] of answers alone."""

    def __init__(self, asked: Questions, tokens: Tensor | None, answers: Tensor | None) -> None:
        self._asked = asked
        self._tokens = tokens
        self._answers = answers

    def rows(self, attended: bool) -> Tensor:
        """Return the rows of all tokens when a self-attention follows, else those of answers."""
        if attended or self._answers is None:
            if self._tokens is None:
                raise RuntimeError("positions were dropped before a self-attention")
            if attended:
                return self._tokens
            self._answers = self._tokens.index_select(0, self._asked.answers)
        return self._answers


class WalkChunk:
    """Root, expand and leaf of one walk (`search.exhaustive.sweep`), and the values it leaves.

    Attributes:
        root: the stream before the first sub-layer.
    """

    def __init__(self, walk: Walk, asked: Questions) -> None:
        self._walk = walk
        self._asked = asked
        self._waiting: list[Tensor] = []
        self._read: list[Tensor] = []
        self._leaves = 0
        self.root = _Stream(asked, asked.embedded, None)

    def expand(
        self, state: _Stream, sublayer: SubLayer, keeps: tuple[Keep, ...], attended: bool
    ) -> Callable[[Keep], _Stream]:
        """Run a sub-layer; see `search.exhaustive.Expand`."""
        with torch.no_grad():
            if len(keeps) == 1:  # nothing to share: compute what is kept, and nothing else
                new = self._behind(state, sublayer, keeps[0], attended, None)
                return lambda keep: new
            own = any(keep.replacement not in FITTED for keep in keeps)
            parts = self._walk.parts(sublayer)
            units = self._units(state, sublayer, parts, None, attended) if own else None

        def pick(keep: Keep) -> _Stream:
            with torch.no_grad():
                return self._behind(state, sublayer, keep, attended, units)

        return pick

    def leaf(self, state: _Stream) -> int:
        """Take the end of a plan; return its place in `values`."""
        rows = state.rows(attended=False)
        self._waiting.append(rows)
        if len(rows) * len(self._waiting) >= self._walk.readout_rows:
            self._read_out()
        self._leaves += 1
        return self._leaves - 1

    def values(self) -> Tensor:
        """Return [plans, questions] float64 on the CPU: the judge's mean over answer tokens.

        Plans are in the order in which `leaf` took them, questions in that of the chunk.
        """
        self._read_out()
        return torch.cat([torch.empty(0, self._asked.count, dtype=torch.float64), *self._read])

    def _behind(
        self,
        state: _Stream,
        sublayer: SubLayer,
        keep: Keep,
        attended: bool,
        units: Tensor | None,
    ) -> _Stream:
        """Return the stream behind one way to keep a sub-layer.

        Args:
            state: the stream before it.
            sublayer: what runs.
            keep: in which form.
            attended: whether a self-attention follows.
            units: all heads or neurons of the sub-layer, where they have been computed.
        """
        walk = self._walk
        if keep.prefix:
            return _Stream(self._asked, self._asked.embed(walk.fitted.tokens[sublayer]), None)
        x = state.rows(attended)
        if keep.replacement in FITTED:
            memory = self._asked.memory
            x = replaced(walk.view, sublayer, str(keep.replacement), walk.fitted, x[None], memory)
            return self._stream(x[0], attended)
        kept = walk.kept(sublayer, keep)
        parts = walk.parts(sublayer)
        if units is not None:
            project = parts.project if kept is None else columns(parts, kept)
            units = units if kept is None else _chosen(units, kept)
        else:
            parts = parts if kept is None else sliced(parts, kept)
            project = parts.project
            units = self._units(state, sublayer, parts, kept, attended)
        written = project(units.flatten(1))
        return self._stream(written if keep.replacement == "alone" else x + written, attended)

    def _stream(self, x: Tensor, attended: bool) -> _Stream:
        return _Stream(self._asked, x if attended else None, None if attended else x)

    def _units(
        self,
        state: _Stream,
        sublayer: SubLayer,
        parts: Parts,
        heads: Sequence[int] | None,
        attended: bool,
    ) -> Tensor:
        """Return heads [rows, H, hd] or neurons [rows, F] of the stream that goes on."""
        if sublayer.kind is Kind.FEED:
            return parts.neurons(parts.norm(state.rows(attended)))
        if sublayer.kind is Kind.SELF:
            return attend_tokens(parts, state.rows(attended=True), self._asked, not attended)
        key, value = self._asked.memory.keys_values[sublayer]
        if heads is not None:
            key, value = key[:, list(heads)], value[:, list(heads)]
        normed = parts.norm(state.rows(attended))
        return attend_pages(parts, normed, key, value, self._asked.readers(attended))

    def _read_out(self) -> None:
        """Judge the rows that wait and average them per question."""
        if not self._waiting:
            return
        walk, asked, plans = self._walk, self._asked, len(self._waiting)
        rows, self._waiting = torch.cat(self._waiting), []
        labels = asked.labels.repeat(plans)
        with torch.no_grad():
            starts = range(0, len(rows), walk.readout_rows)
            judged = [
                walk.judge(walk.view.readout(rows[some]), labels[some])
                for some in (slice(start, start + walk.readout_rows) for start in starts)
            ]
            table = torch.cat(judged).double().view(plans, -1)
            sums = table.new_zeros(plans, asked.count).index_add_(1, asked.owners, table)
        self._read.append((sums / asked.lengths).cpu())


def _chosen(units: Tensor, kept: Sequence[int]) -> Tensor:
    """Return some heads of [rows, H, hd] or neurons of [rows, F]."""
    return units.index_select(1, torch.tensor(kept, device=units.device))
