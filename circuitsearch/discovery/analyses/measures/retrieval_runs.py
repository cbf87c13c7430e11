"""Retrieval trials: which pages a teacher answers right, and what it says with another query.

Pages are drawn block by block and answered; those answered right are kept, with their shuffled
counterparts, until there are enough. What the answers become when queries are exchanged is not
looked at before, so stopping there biases nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuitsearch.core.components import SubLayer
from circuitsearch.teacher.decoders import (
    Memory,
    ResidualDecoder,
    continue_from,
    nearest_tokens,
)
from circuitsearch.teacher.documents.collate import IGNORED, Batch, Example, collate
from circuitsearch.teacher.documents.records import Question
from circuitsearch.teacher.loading import Teacher

from ...ablation import Progress
from ...patching.queries import behind_query, placed, queries, stream_before
from ...sample import Sample, encoded
from .query_losses import answers_at
from .retrieval_pages import Drawer, Lines, Trial, layout_of

__all__ = ["Kept", "Pace", "draw_trials", "right_without", "said"]

_ROWS, _SIDES = 16, ("clean", "pairs", "values")
"""Questions per decoder pass, and the pages of a trial."""


@dataclass(frozen=True)
class Pace:
    """How many pages are drawn.

    Attributes:
        block: pages drawn at a time.
        wanted: pages answered right that are enough.
        most: most pages drawn.
        encode: pages per encoder pass.
    """

    block: int
    wanted: int
    most: int
    encode: int

    @classmethod
    def of(cls, teacher: Teacher) -> Pace:
        """Return the pace: fewer pages where the encoder is dear (10 G multiply-adds a page)."""
        if teacher.shape.encoder.macs < 10**10:
            return cls(block=40, wanted=100, most=240, encode=16)
        return cls(block=8, wanted=24, most=48, encode=1)


@dataclass(frozen=True, eq=False)
class Kept:
    """The trials of one vocabulary that the teacher answers right.

    Attributes:
        drawer: vocabulary and tokenizer.
        drawn: pages that were drawn and answered.
        trials: the n pages answered right.
        states: [n, N, E] encoder states by page: `clean`, `pairs`, `values`.
    """

    drawer: Drawer
    drawn: int
    trials: tuple[Trial, ...]
    states: Mapping[str, Tensor]

    @property
    def sample(self) -> Sample:
        """The kept pages with their right answers, each a document of its own."""
        return Sample(
            rows=tuple(_example(self.drawer, i, trial) for i, trial in enumerate(self.trials)),
            states=self.states["clean"],
            documents=tuple(trial.name for trial in self.trials),
            batch_size=_ROWS,
            pad_id=self.drawer.tokens.pad_id,
            fingerprint="",
        )


def draw_trials(teacher: Teacher, drawer: Drawer, pace: Pace, progress: Progress) -> Kept:
    """Draw pages, answer them, and keep those answered right.

    A vocabulary is left as soon as less than one page in ten is answered right.

    Args:
        teacher: encodes and answers.
        drawer: makes the pages.
        pace: how many.
        progress: called with ("retrieval pages", pages drawn, most pages).
    """
    right: list[Trial] = []
    states: list[Tensor] = []
    drawn = 0
    while drawn < pace.most and len(right) < pace.wanted:
        block = [drawer.trial(i) for i in range(drawn, min(drawn + pace.block, pace.most))]
        block = [trial for trial in block if _fits(trial, drawer)]
        drawn = min(drawn + pace.block, pace.most)
        progress("retrieval pages", drawn, pace.most)
        if block:
            pages = _encode(teacher, [trial.clean for trial in block], pace)
            answered = _right(teacher.decoder, drawer, block, pages)
            right += [trial for trial, good in zip(block, answered, strict=True) if good]
            states.append(pages[torch.tensor(answered, device=pages.device)])
        if 10 * len(right) < drawn:
            break
    sides = {"clean": torch.cat(states)} if states else {}
    if right:
        sides |= {
            side: _encode(teacher, [getattr(trial, side) for trial in right], pace)
            for side in _SIDES[1:]
        }
    return Kept(drawer, drawn, tuple(right), sides)


def _fits(trial: Trial, drawer: Drawer) -> bool:
    """Whether prompt and answer are no longer than the teacher allows."""
    return len(_example(drawer, 0, trial).ids) - 1 <= drawer.tokens.max_length


def _example(drawer: Drawer, page: int, trial: Trial) -> Example:
    """Return question and right answer as tokens."""
    answer = trial.answer(trial.clean)
    prompt = drawer.tokens.prompt_ids(trial.question)
    ids = (*prompt, *drawer.tokens.answer_ids(answer))
    return Example(page, Question(trial.name, trial.question, (answer,)), ids, len(prompt))


def _encode(teacher: Teacher, pages: Sequence[Lines], pace: Pace) -> Tensor:
    """Return the encoder states [n, N, E] of pages drawn in the size that the encoder sees."""
    size = teacher.processor.image_processor.size
    layouts = [layout_of(lines, size["height"], size["width"]) for lines in pages]
    return encoded(teacher, layouts, pace.encode)


def _right(
    decoder: ResidualDecoder,
    drawer: Drawer,
    trials: Sequence[Trial],
    states: Tensor,
    without: Collection[SubLayer] = (),
) -> list[bool]:
    """Return for each trial whether every token of its answer is the decoder's first choice."""
    found: list[bool] = []
    kept = [s for s in decoder.sublayers if s not in without]
    with torch.no_grad():
        for batch, memory, _ in _batches(decoder, drawer, trials, states):
            end = continue_from(decoder, decoder.embed(batch.ids), memory, kept=kept)
            scored = batch.labels != IGNORED
            wrong = torch.zeros_like(scored)
            wrong[scored] = nearest_tokens(decoder, end[scored]) != batch.labels[scored]
            found += (~wrong.any(dim=1)).tolist()
    return found


def right_without(
    decoder: ResidualDecoder, kept: Kept, without: Collection[SubLayer]
) -> np.ndarray:
    """Return [n], 1 where a kept page is still answered right without some sub-layers, else 0."""
    answered = _right(decoder, kept.drawer, kept.trials, kept.states["clean"], without)
    return np.array(answered, dtype=np.float64)


def said(decoder: ResidualDecoder, kept: Kept, target: SubLayer) -> dict[str, np.ndarray]:
    """Return the token [n] that each run says first.

    The query of one run at the last prompt token is put into another run, all heads together; the
    stream that the cross-attention adds to stays that of the run.

    Args:
        decoder: the view.
        kept: the trials, at least one.
        target: the cross-attention whose query is exchanged.

    Returns:
        By run: `pairs`, `values` without exchange; `clean>pairs`, `clean>values`, `pairs>clean`
        with the first page's query; `even>pairs` with none, which looks everywhere alike.
    """
    found: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for batch, _, block in _batches(decoder, kept.drawer, kept.trials, kept.states["clean"]):
            runs = {
                side: _Run.of(decoder, batch, kept.states[side][block], target) for side in _SIDES
            }
            own = {side: run.query_at for side, run in runs.items()}
            for side in _SIDES[1:]:
                found.setdefault(side, []).append(runs[side].first(own[side]))
            for origin, side in (("clean", "pairs"), ("clean", "values"), ("pairs", "clean")):
                found.setdefault(f"{origin}>{side}", []).append(runs[side].first(own[origin]))
            blank = torch.zeros_like(own["pairs"])
            found.setdefault("even>pairs", []).append(runs["pairs"].first(blank))
    return {name: torch.cat(parts).cpu().numpy() for name, parts in found.items()}


def _batches(
    decoder: ResidualDecoder, drawer: Drawer, trials: Sequence[Trial], states: Tensor
) -> Iterator[tuple[Batch, Memory, slice]]:
    """Yield batches of questions with their pages, one page per row, and which trials they are."""
    for start in range(0, len(trials), _ROWS):
        block = slice(start, min(start + _ROWS, len(trials)))
        rows = [_example(drawer, i, trial) for i, trial in enumerate(trials[block])]
        batch = collate(rows, drawer.tokens.pad_id)
        there = [t.to(states.device) for t in (batch.pages, batch.ids, batch.labels)]
        batch = Batch(batch.examples, *there)
        yield batch, decoder.memory(states[block]), block


@dataclass(frozen=True)
class _Run:
    """One batch on one page each, up to the target.

    Attributes:
        decoder: the view.
        target: the cross-attention.
        memory: the pages.
        stream: [B, T, d] in front of the target.
        query: [B, H, T, hd] its own queries.
        answers: [B] the last prompt token's position.
    """

    decoder: ResidualDecoder
    target: SubLayer
    memory: Memory
    stream: Tensor
    query: Tensor
    answers: Tensor

    @classmethod
    def of(cls, decoder: ResidualDecoder, batch: Batch, states: Tensor, target: SubLayer) -> _Run:
        """Run a batch on pages [B, N, E]."""
        memory = decoder.memory(states)
        stream = stream_before(decoder, batch.ids, memory, target)
        query = queries(decoder, target, stream)
        return cls(decoder, target, memory, stream, query, answers_at(batch))

    @property
    def query_at(self) -> Tensor:
        """Queries [B, H, hd] at the last prompt token."""
        rows = torch.arange(len(self.query), device=self.query.device)
        return self.query[rows, :, self.answers]

    def first(self, given: Tensor) -> Tensor:
        """Return [B], what is said first when the target asks with given queries [B, H, hd]."""
        query = placed(self.query, self.answers, given)
        behind = behind_query(self.decoder, self.target, self.stream, self.memory, query)
        end = continue_from(self.decoder, behind, self.memory, after=self.target)
        rows = torch.arange(len(end), device=end.device)
        return nearest_tokens(self.decoder, end[rows, self.answers])
