"""How the tokens of a chunk of questions are laid out while it is walked (`walk`).

The stream is a table of rows, one per token, question by question, without padding. Maps that work
on each row alone (norms, projections, feed-forwards) need nothing else. Attention does:

* self-attention reads keys of one question: rows are laid out as [questions, longest];
* cross-attention reads the keys of one page: rows are laid out as [pages, most rows of a page].
  Pages stand in the order of their number of rows and are met in groups of like size, so that keys
  and values are read where they are (never copied per row) and little of a layout is padding.

Padding slots repeat some row; what is computed for them is never read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from circuitsearch.core.components import SubLayer
from circuitsearch.students.features.reader import Features
from circuitsearch.teacher.decoders import Memory, Parts, ResidualDecoder
from circuitsearch.teacher.documents.collate import IGNORED, collate

__all__ = ["Questions", "attend_pages", "attend_tokens"]

_PADDING = 1.3
"""A group of pages ends where a layout would grow by this factor through padding."""


@dataclass(frozen=True)
class _Group:
    """Pages of like size.

    Attributes:
        pages: which of the chunk's pages.
        slots: [pages * most] row of the stream in each slot of the layout.
    """

    pages: slice
    slots: Tensor


@dataclass(frozen=True)
class Readers:
    """Which row of a stream reads which page.

    Attributes:
        groups: see `_Group`.
        places: [rows] slot of each row, groups one behind the other.
    """

    groups: tuple[_Group, ...]
    places: Tensor

    @classmethod
    def of(cls, pages: Tensor, count: int) -> Readers:
        """Arrange rows that read `pages` [rows] of `count` pages."""
        sizes = torch.bincount(pages, minlength=count).tolist()
        order = torch.argsort(pages, stable=True)
        ends = torch.tensor(sizes).cumsum(0).tolist()
        groups, places, filled = [], torch.empty_like(pages), 0
        for first, last in _cuts(sizes):
            most = max(sizes[first:last])
            slots = torch.zeros(last - first, max(most, 1), dtype=torch.long, device=pages.device)
            for page in range(first, last):
                rows = order[ends[page] - sizes[page] : ends[page]]
                slots[page - first, : len(rows)] = rows
                begin = filled + (page - first) * slots.shape[1]
                places[rows] = torch.arange(begin, begin + len(rows), device=pages.device)
            filled += slots.numel()
            groups.append(_Group(slice(first, last), slots.flatten()))
        return cls(tuple(groups), places)


def _cuts(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return (first, last + 1) pages of each group."""
    cuts, first = [], 0
    for page in range(1, len(sizes) + 1):
        done = page == len(sizes)
        if not done:
            group = sizes[first : page + 1]
            done = len(group) * max(group) > _PADDING * sum(group)
        if done:
            cuts.append((first, page))
            first = page
    return cuts


@dataclass(frozen=True)
class Questions:
    """The questions of a chunk: b questions, k tokens, n answer rows, p pages.

    Attributes:
        count: b.
        view: the decoder.
        ids: [b, longest] tokens with padding.
        present: [b, longest] where there is no padding.
        embedded: [k, d] the stream before the first sub-layer.
        memory: the pages with their keys and values.
        answers: [n] rows of the stream at which an answer token is predicted.
        labels: [n] these tokens.
        owners: [n] question of each of them.
        lengths: [b] how many each question has.
        table: [b, longest] row of the stream at each position; padding repeats the first row.
        places: [k] slot of each row in `table`.
        asking: [b, most answers] position of each answer row; padding repeats position 0.
        answer_places: [n] slot of each answer row in `asking`.
        by_token: which row of all tokens reads which page.
        by_answer: which answer row reads which page.
    """

    count: int
    view: ResidualDecoder
    ids: Tensor
    present: Tensor
    embedded: Tensor
    memory: Memory
    answers: Tensor
    labels: Tensor
    owners: Tensor
    lengths: Tensor
    table: Tensor
    places: Tensor
    asking: Tensor
    answer_places: Tensor
    by_token: Readers
    by_answer: Readers

    @classmethod
    def of(
        cls,
        view: ResidualDecoder,
        features: Features,
        questions: Sequence[int],
        reading: Collection[SubLayer],
    ) -> Questions:
        """Read questions and lay them out.

        Args:
            view: the decoder, for embedding, keys and values.
            features: cached states of the pages.
            questions: indices of examples.
            reading: sub-layers that run; cross-attentions among them get keys and values.
        """
        model: Any = view
        device = next(model.model.parameters()).device
        batch = collate([features.examples[index] for index in questions], features.pad_id)
        lengths = torch.tensor([len(example.ids) - 1 for example in batch.examples])
        answered = (batch.labels != IGNORED).sum(dim=1)
        # pages by their number of answer rows, then of tokens: groups of like size are slices
        sizes: dict[int, tuple[int, int]] = {}
        for page, n, k in zip(
            batch.pages.tolist(), answered.tolist(), lengths.tolist(), strict=True
        ):
            old = sizes.get(page, (0, 0))
            sizes[page] = (old[0] + n, old[1] + k)
        pages = sorted(sizes, key=lambda page: (sizes[page], page))
        page_of = torch.tensor([pages.index(page) for page in batch.pages.tolist()])
        present = torch.arange(batch.ids.shape[1]) < lengths[:, None]
        owners, positions = present.nonzero(as_tuple=True)
        table = torch.zeros_like(batch.ids)
        table[present] = torch.arange(len(owners))
        labelled = batch.labels != IGNORED
        answer_owners, answer_positions = labelled.nonzero(as_tuple=True)
        slots = torch.arange(int(answered.max())) < answered[:, None]
        asking = torch.zeros(slots.shape, dtype=torch.long)
        asking[slots] = answer_positions

        def to(tensor: Tensor) -> Tensor:
            return tensor.to(device)

        return cls(
            count=len(questions),
            view=view,
            ids=to(batch.ids),
            present=to(present),
            embedded=view.embed(to(batch.ids))[to(present)],
            memory=_memory(view, to(features.states(pages)), reading),
            answers=to(table[labelled]),
            labels=to(batch.labels[labelled]),
            owners=to(answer_owners),
            lengths=to(answered.double()),
            table=to(table),
            places=to(owners * table.shape[1] + positions),
            asking=to(asking),
            answer_places=to(slots.flatten().nonzero().flatten()),
            by_token=Readers.of(to(page_of[owners]), len(pages)),
            by_answer=Readers.of(to(page_of[answer_owners]), len(pages)),
        )

    def embed(self, table: Tensor) -> Tensor:
        """Return [k, d], the embeddings of other tokens: those of a table [V] for the tokens."""
        return self.view.embed(table.to(self.ids.device)[self.ids])[self.present]

    def readers(self, attended: bool) -> Readers:
        """Return who reads which page, for the rows of all tokens or of answers alone."""
        return self.by_token if attended else self.by_answer


def _memory(view: ResidualDecoder, states: Tensor, reading: Collection[SubLayer]) -> Memory:
    """Return the pages with keys and values laid out head by head, one sub-layer after another.

    Attention reads them thousands of times, so it pays to copy them into its order once.
    """
    pairs = {}
    for sublayer in sorted(reading):
        for key, value in view.memory(states, None, [sublayer]).keys_values.values():
            pairs[sublayer] = (key.contiguous(), value.contiguous())
    return Memory.of(states, pairs, None)


def attend_tokens(parts: Parts, x: Tensor, asked: Questions, answers: bool) -> Tensor:
    """Return heads [rows, H, hd] of a self-attention.

    Args:
        parts: its pieces.
        x: [k, d] the stream at all tokens.
        asked: the questions.
        answers: whether only answer rows are asked for; all rows are read nevertheless.
    """
    if parts.query is None or parts.key is None or parts.value is None:
        raise TypeError("a feed-forward does not attend")
    normed = parts.norm(x)
    key = _laid_out(parts, parts.key(normed), asked)
    value = _laid_out(parts, parts.value(normed), asked)
    grouped = parts.groups != parts.heads
    seen = None
    if answers and parts.rotate is None:
        chosen = asked.table.gather(1, asked.asking)
        asking = normed.index_select(0, chosen.flatten()).view(*chosen.shape, -1)
        query = parts.split(parts.query(asking))
    else:
        query = _laid_out(parts, parts.query(normed), asked)
    if parts.rotate is not None:
        query, key = parts.rotate(query), parts.rotate(key)
    if answers:
        if parts.rotate is not None:
            index = asked.asking[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
            query = query.gather(2, index)
        positions = torch.arange(asked.table.shape[1], device=x.device)
        seen = (positions <= asked.asking[:, :, None])[:, None]
    read = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=seen,
        is_causal=not answers,
        scale=parts.score_scale,
        enable_gqa=grouped,
    )
    heads = read.transpose(1, 2).flatten(0, 1)
    return heads.index_select(0, asked.answer_places if answers else asked.places)


def _laid_out(parts: Parts, rows: Tensor, asked: Questions) -> Tensor:
    """Return [b, H, longest, hd] of projected rows [k, H * hd]."""
    laid_out = rows.index_select(0, asked.table.flatten())
    return parts.split(laid_out.view(*asked.table.shape, -1))


def attend_pages(
    parts: Parts, normed: Tensor, key: Tensor, value: Tensor, readers: Readers
) -> Tensor:
    """Return heads [rows, H, hd] of a cross-attention.

    Args:
        parts: its pieces.
        normed: [rows, d] the LN'd stream.
        key: [p, H, N, hd] keys of the pages.
        value: [p, H, N, hd] values of the pages.
        readers: which row reads which page.
    """
    if parts.query is None:
        raise TypeError("a feed-forward does not attend")
    query = parts.query(normed)
    read = []
    for group in readers.groups:
        pages = group.pages.stop - group.pages.start
        laid_out = query.index_select(0, group.slots).view(pages, -1, query.shape[1])
        heads = scaled_dot_product_attention(
            parts.split(laid_out), key[group.pages], value[group.pages], scale=parts.score_scale
        )
        read.append(heads.transpose(1, 2).flatten(0, 1))
    return torch.cat(read).index_select(0, readers.places)
