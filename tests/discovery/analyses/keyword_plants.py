"""Teachers in which chosen self-attentions carry the keyword, by construction.

Three keywords share no letter, and all letters of one keyword have one embedding. A carrying
self-attention attends everywhere alike and writes a turned copy of the letters it sees, loud; no
other token has a value. So at the last prompt token the stream is the turned keyword, and the value
path of any letter through that self-attention alone points the same way. The last cross-attention
looks sharply where its query says and speaks for capital letters, so the answer hangs on the query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from circuitsearch.discovery.sample import make_sample
from circuitsearch.teacher.decoders import continue_from
from circuitsearch.teacher.documents.records import Page, Question
from circuitsearch.teacher.loading import Teacher
from tests.discovery.analyses.plants import silent
from tests.tiny import tiny_pages

__all__ = ["KEYWORDS", "carrier", "keyword_pages", "taught"]

KEYWORDS = ("city", "fax", "number")
_HALF, _LOUD, _SHARP = 16, 40.0, 6.0
_CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def keyword_pages(count: int, first: int = 0) -> list[Page]:
    """Pages about which all three keywords are asked; every page is a document."""
    pages = []
    for page in tiny_pages(first + count)[first:]:
        asked = tuple(Question(f"{page.id} {word}", f"{word}?", ("A",)) for word in KEYWORDS)
        pages.append(replace(page, document=page.id, questions=asked))
    return pages


def carrier(teacher: Teacher, names: Sequence[str], cross: Sequence[str] = ("C3",)) -> Teacher:
    """A teacher of four layers in which these self-attentions carry the keyword."""
    made = silent(teacher, [], _embeddings(teacher))
    layers = made.model.decoder.model.decoder.layers
    with torch.no_grad():
        for i, name in enumerate(names):
            _carry(layers[int(name[1])].self_attn, _turn(i))
        for i, name in enumerate(cross):
            _look(layers[int(name[1])].encoder_attn, seed=100 + i)
        head = torch.zeros_like(made.model.decoder.lm_head.weight)
        ids = teacher.tokens.tokenizer.convert_tokens_to_ids(list(_CAPITALS))
        head[ids] = 3 * torch.randn(len(ids), head.shape[1], generator=_generator(7))
        made.model.decoder.lm_head.weight = nn.Parameter(head, requires_grad=False)
    return made


def taught(teacher: Teacher, pages: Sequence[Page]) -> list[Page]:
    """The pages with the teacher's own first tokens as the right answers."""
    sample, view = make_sample(teacher, pages), teacher.decoder
    said: list[str] = []
    with torch.no_grad():
        for batch, states in sample.batches:
            memory = view.memory(states, batch.pages)
            logits = view.readout(continue_from(view, view.embed(batch.ids), memory))
            for row, example in enumerate(batch.examples):
                best = int(logits[row, example.prompt - 1].argmax())
                said.append(teacher.tokens.tokenizer.convert_ids_to_tokens(best))
    answers = iter(said)
    return [
        replace(page, questions=tuple(replace(q, answers=(next(answers),)) for q in page.questions))
        for page in pages
    ]


def _embeddings(teacher: Teacher) -> Tensor:
    """Letters in the first half of the channels, one row per keyword; all else in the second."""
    shape = teacher.decoder.shape
    rows = torch.zeros(shape.vocabulary, shape.d_model)
    rows[:, _HALF:] = _unit(torch.randn(shape.vocabulary, _HALF, generator=_generator(1)))
    words = _unit(torch.randn(len(KEYWORDS), _HALF, generator=_generator(2)))
    for word, row in zip(KEYWORDS, words, strict=True):
        ids = teacher.tokens.tokenizer.convert_tokens_to_ids(list(word))
        rows[ids] = 0
        rows[ids, :_HALF] = row
    return rows


def _carry(attention: Any, turn: Tensor) -> None:
    """Attend everywhere alike, and write the letters' half, turned."""
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
        projection.weight.zero_()
        projection.bias.zero_()
    attention.v_proj.weight[:_HALF, :_HALF] = turn
    attention.out_proj.weight[:_HALF, :_HALF] = _LOUD * torch.eye(_HALF)


def _look(attention: Any, seed: int) -> None:
    """Look sharply where the query says, and write loudly what is there."""
    generator = _generator(seed)
    for projection, size in (
        (attention.q_proj, _SHARP),
        (attention.k_proj, 1.0),
        (attention.v_proj, 1.0),
        (attention.out_proj, _LOUD),
    ):
        width = projection.weight.shape[1]
        drawn = torch.randn(projection.weight.shape, generator=generator)
        projection.weight.copy_(size * drawn / width**0.5)
        projection.bias.zero_()


def _turn(seed: int) -> Tensor:
    """A random rotation."""
    return torch.linalg.qr(torch.randn(_HALF, _HALF, generator=_generator(seed)))[0]


def _unit(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(dim=1, keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
