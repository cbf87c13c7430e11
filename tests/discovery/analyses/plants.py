"""Teachers whose behaviour is set by hand, for tests of analyses.

`silent` is the tiny teacher with norms that change nothing but the size, no positions, and
sub-layers that write nothing. Its stream is the token's own embedding, of one size for all tokens.
The last `BEYOND` channels hold no token; what a sub-layer puts there (`speak`) speaks for the
`answers` alone, through the output projection.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.cost import Generation
from circuitsearch.discovery.analyses.material import Material
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.documents.records import Page
from circuitsearch.teacher.loading import Teacher

__all__ = [
    "BEYOND",
    "PATTERN",
    "answer_ids",
    "material_of",
    "silent",
    "speak",
    "unit_rows",
    "without",
]

BEYOND = 8
PATTERN = torch.tensor([1.0, -1.0] * (BEYOND // 2))
"""What the last channels hold when a sub-layer speaks for the answers; its mean is zero."""


def silent(teacher: Teacher, pages: Iterable[Page], rows: Tensor | None = None) -> Teacher:
    """A copy whose sub-layers write nothing; `rows` [V, d] are its embeddings, random if None."""
    model = copy.deepcopy(teacher.model)
    decoder = model.decoder
    view = residual_decoder(decoder)
    vocabulary, width = decoder.lm_head.weight.shape
    if rows is None:
        rows = unit_rows(vocabulary, width, width - BEYOND)
    said = rows.clone()
    said[answer_ids(teacher, pages), -BEYOND:] = PATTERN
    with torch.no_grad():
        for module in decoder.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1)
                module.bias.zero_()
        for sublayer in view.sublayers:
            project = view.parts(sublayer).project
            project.weight.zero_()
            bias_of(view, sublayer).zero_()
        stack = decoder.model.decoder
        stack.embed_positions.weight.zero_()
        stack.embed_tokens.weight.copy_(rows)
        # embedding and output projection are tied in the tiny teacher
        decoder.lm_head.weight = nn.Parameter(said, requires_grad=False)
    return replace(teacher, model=model, decoder=residual_decoder(decoder))


def unit_rows(count: int, width: int, used: int, seed: int = 0) -> Tensor:
    """Random rows [count, width] of length one and mean zero, in the first `used` channels."""
    drawn = torch.randn(count, used, generator=torch.Generator().manual_seed(seed))
    centred = drawn - drawn.mean(dim=1, keepdim=True)
    rows = torch.zeros(count, width)
    rows[:, :used] = centred / centred.norm(dim=1, keepdim=True)
    return rows


def answer_ids(teacher: Teacher, pages: Iterable[Page]) -> list[int]:
    """All tokens of all answers, closing tags included."""
    questions = [question for page in pages for question in page.questions]
    return sorted({i for q in questions for i in teacher.tokens.answer_ids(q.answers[0])})


def speak(teacher: Teacher, name: str, strength: float) -> None:
    """Let a sub-layer speak for the answers, at every position and for every page."""
    with torch.no_grad():
        bias_of(teacher.decoder, SubLayer.parse(name))[-BEYOND:] = strength * PATTERN


def bias_of(view: Any, sublayer: SubLayer) -> Tensor:
    """The bias that a sub-layer writes."""
    bias = view.parts(sublayer).project.bias
    assert bias is not None
    found: Tensor = bias
    return found


def material_of(teacher: Teacher, pages: Iterable[Page], others: Iterable[Page] = ()) -> Material:
    """What an analysis is given."""
    return Material(teacher, tuple(pages), tuple(others), Generation())


def without(teacher: Teacher, kind: Kind) -> Teacher:
    """A copy whose decoder lacks every sub-layer of a kind."""
    model = copy.deepcopy(teacher.model)
    for layer in model.decoder.model.decoder.layers:
        for part in _PARTS[kind]:
            setattr(layer, part, None)
    return replace(teacher, model=model, decoder=residual_decoder(model.decoder))


_PARTS = {
    Kind.SELF: ("self_attn", "self_attn_layer_norm"),
    Kind.CROSS: ("encoder_attn", "encoder_attn_layer_norm"),
    Kind.FEED: ("fc1", "fc2", "final_layer_norm"),
}
