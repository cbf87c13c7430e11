"""Teachers that look values up in one way, by construction: by place, by meaning, or by memory.

A fourth, `past`, says what its first cross-attention finds; the last one does nothing.

A page is seen as four lines of six encoder tokens: the first holds what the line's key is, the last
what its value is, all of them where the line stands. The decoder has two cross-attentions that look
sharply, with one head each, and a stream of labelled channels instead of learned ones:

    asked    which key the question names (given by the embedding)
    place    where the first cross-attention found that key
    memory   what value it found there
    said     logits, which the second one fills with the value that it looks up
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from circuitsearch.core.components import SubLayer
from circuitsearch.discovery.analyses.measures.retrieval_pages import LINES, VOCABULARIES
from circuitsearch.teacher.decoders import Affine, Norm, Parts
from circuitsearch.teacher.decoders.stream import StreamDecoder
from circuitsearch.teacher.documents.render import Layout
from circuitsearch.teacher.loading import Teacher

__all__ = ["WAYS", "scripted"]

COLUMNS = 6
_SHARP, _SURE = 1000.0, 10.0
_KEYS = sorted({k for v in VOCABULARIES for k in (v.keys or v.values)}, key=lambda k: (-len(k), k))


@dataclass(frozen=True)
class Identity(Norm):
    """A norm that changes nothing."""

    def __call__(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return x

    def scale(self, x: Tensor) -> Tensor:
        return torch.ones_like(x[..., :1])


class Channels:
    """Names for ranges of channels."""

    def __init__(self, **widths: int) -> None:
        self.ranges: dict[str, slice] = {}
        self.width = 0
        for name, width in widths.items():
            self.ranges[name] = slice(self.width, self.width + width)
            self.width += width

    def affine(self, into: int, pairs: Mapping[str, slice], size: float = 1.0) -> Affine:
        """Carry named ranges to the given ones."""
        weight = torch.zeros(into, self.width)
        for name, target in pairs.items():
            rows = torch.arange(target.start, target.stop)
            weight[rows, torch.arange(self.ranges[name].start, self.ranges[name].stop)] = size
        return Affine(weight, torch.zeros(into))


WAYS = {
    "place": ("place", "place, last"),
    "meaning": ("asked", "key, first"),
    "memory": ("memory", "value, last"),
    "past": ("asked", "key, first"),
}
"""What the last cross-attention's query holds, and which page channels it is compared with."""


class ScriptedDecoder(StreamDecoder):
    """Two cross-attentions, C0 and C1; C1 looks values up in one of `WAYS`."""

    def __init__(self, teacher: Teacher, way: str) -> None:
        self.tokens, self.way = teacher.tokens, way
        self.vocabulary = teacher.decoder.shape.vocabulary
        self.shape = replace(teacher.decoder.shape, heads=1)
        self.sublayers = (SubLayer.parse("C0"), SubLayer.parse("C1"))
        count = len(_KEYS)
        said = self.vocabulary
        self.stream = Channels(asked=count, place=LINES, memory=said, said=said)
        self.page = page_channels(said)
        self.model = SimpleNamespace(lm_head=lambda x: x[..., self.stream.ranges["said"]])

    def embed(self, ids: Tensor) -> Tensor:
        x = torch.zeros(*ids.shape, self.stream.width)
        said = self.stream.ranges["said"].start
        end = self.tokens.answer_ids("")
        for row, line in enumerate(ids.tolist()):
            text = self.tokens.tokenizer.decode(line)
            asked = next((i for i, key in enumerate(_KEYS) if f" {key}?" in text), None)
            if asked is not None:
                x[row, :, asked] = 1
            start = line.index(self.tokens.prompt_ids("")[-1])
            for position, token in enumerate(line):
                if position > start:  # behind the value comes what closes an answer
                    after = end[end.index(token) + 1 :] if token in end else end
                    x[row, position, said + (after or end)[0]] = 2 * _SURE
        return x

    def parts(self, sublayer: SubLayer) -> Parts:
        width = self.stream.width
        ranges = self.stream.ranges
        if sublayer.name == "C0":
            query, key = "asked", "key, first"
            value = {"place": ranges["place"], "value, first": ranges["memory"]}
            size = 1.0
            if self.way == "past":
                value, size = {"value, first": ranges["said"]}, _SURE
        else:
            query, key = WAYS[self.way]
            value, size = {"value, last": ranges["said"], "value, first": ranges["said"]}, _SURE
            if self.way == "past":
                value = {}
        compared = slice(0, ranges[query].stop - ranges[query].start)
        identity = Affine(torch.eye(width), torch.zeros(width))
        return Parts(
            norm=Identity(torch.ones(width), None, 0.0),
            project=identity,
            query=self.stream.affine(width, {query: compared}, _SHARP),
            key=self.page.affine(width, {key: compared}),
            value=self.page.affine(width, value, size),
            heads=1,
            groups=1,
        )

    @property
    def final_norm(self) -> Norm:
        return Identity(torch.ones(self.stream.width), None, 0.0)


def page_channels(vocabulary: int) -> Channels:
    """What an encoder state holds."""
    named: dict[str, int] = {"key, first": len(_KEYS), "place": LINES, "place, last": LINES}
    return Channels(**named, **{"value, first": vocabulary, "value, last": vocabulary})


class ScriptedTeacher(Teacher):
    """Sees the text of a page instead of its pixels."""

    def pixel_values(self, images: Sequence[Image.Image]) -> Tensor:
        pages = [image.info["lines"] for image in images]
        channels = page_channels(self.decoder.shape.vocabulary)
        states = torch.zeros(len(pages), LINES * COLUMNS, channels.width)
        for page, lines in enumerate(pages):
            for row, text in enumerate(lines):
                key, value = text.split(": ")
                first, last = row * COLUMNS, (row + 1) * COLUMNS - 1
                token = self.tokens.answer_ids(value)[0]
                ranges = channels.ranges
                states[page, first, ranges["key, first"].start + _KEYS.index(key)] = 1
                states[page, first : last + 1, ranges["place"].start + row] = 1
                states[page, last, ranges["place, last"].start + row] = 1
                states[page, first, ranges["value, first"].start + token] = 1
                states[page, last, ranges["value, last"].start + token] = 1
        return states

    def encode(self, pixel_values: Tensor) -> Tensor:
        return pixel_values


def scripted(teacher: Teacher, way: str, patch: pytest.MonkeyPatch) -> Teacher:
    """A teacher that looks values up in one way; pages carry their text while `patch` lasts.

    Its encoder counts as dear, so few pages are drawn.
    """

    def image(layout: Layout) -> Image.Image:
        drawn = Image.new("RGB", (1, 1))
        drawn.info["lines"] = [line.text for line in layout.lines]
        return drawn

    patch.setattr(Layout, "image", image)
    fields: dict[str, Any] = {name: getattr(teacher, name) for name in teacher.__dataclass_fields__}
    fields["shape"] = replace(teacher.shape, encoder=replace(teacher.shape.encoder, macs=10**12))
    return ScriptedTeacher(**{**fields, "decoder": ScriptedDecoder(teacher, way)})
