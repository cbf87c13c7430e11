"""Shared by the tests of floor 3: random plans, the ablated teacher as the oracle, small pages."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer, sublayers
from circuitsearch.core.files import content_hash
from circuitsearch.core.keep import REPLACEMENTS
from circuitsearch.core.plan import WHOLE, Keep, Plan
from circuitsearch.core.shapes import DecoderShape
from circuitsearch.students.replacements import Replacements
from circuitsearch.teacher.decoders import Affine, Memory, ResidualDecoder
from circuitsearch.teacher.documents.records import Page, Question

__all__ = ["ablated_teacher", "any_replacements", "noise_pages", "plans"]


@dataclass(frozen=True)
class Noise:
    """A page of random pixels: enough for a random teacher."""

    seed: int

    def image(self) -> Image.Image:
        values = np.random.default_rng(self.seed).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        return Image.fromarray(values)

    def fingerprint(self) -> str:
        return content_hash(["noise", self.seed])


def noise_pages(count: int, seed: int = 0) -> list[Page]:
    """Pages with one to three questions whose prompts and answers differ in length."""
    rng = random.Random(seed)
    made = []
    for index in range(count):
        asked = [
            Question(
                id=f"{index}-{i}",
                text="".join(rng.choice("What is the?") for _ in range(rng.randint(1, 12))),
                answers=("".join(rng.choice("abcXYZ 019.") for _ in range(rng.randint(1, 9))),),
                family=("short", "long")[i % 2],
            )
            for i in range(rng.randint(1, 3))
        ]
        name = f"page-{seed}-{index}"
        made.append(Page(name, f"document-{index // 2}", tuple(asked), Noise(1000 * seed + index)))
    return made


def plans(shape: DecoderShape, *, whole: bool = False) -> st.SearchStrategy[Plan]:
    """Plans for a decoder: each sub-layer skipped, whole, or (unless `whole`) in part, replaced.

    Of what is drawn in front of a replaced beginning (`C0=token`) nothing stays.
    """

    def keeps(sublayer: SubLayer) -> st.SearchStrategy[Keep | None]:
        choices: list[st.SearchStrategy[Keep | None]] = [st.none(), st.just(WHOLE)]
        if not whole and sublayer.kind is Kind.FEED:
            choices.append(st.integers(1, shape.ffn).map(lambda width: Keep(width=width)))
        elif not whole:
            heads = st.sets(st.integers(0, shape.heads - 1), min_size=1)
            choices.append(heads.map(lambda some: Keep(heads=tuple(some))))
        if not whole:
            names = [
                name
                for name, one in REPLACEMENTS.items()
                if sublayer.kind in one.kinds and not one.prefix
            ]
            choices.append(st.sampled_from(names).map(lambda name: Keep(replacement=name)))
        return st.one_of(choices)

    names = sublayers(shape.layers)
    # Replaced beginnings are drawn by themselves: at every sub-layer they would leave little.
    last = st.none() if whole else st.none() | st.sampled_from(names)

    def plan(kept: tuple[Keep | None, ...], end: SubLayer | None) -> Plan:
        entries = [(one, keep) for one, keep in zip(names, kept, strict=True) if keep is not None]
        if end is not None:
            entries = [(one, keep) for one, keep in entries if one > end]
            entries.append((end, Keep(replacement="token")))
        return Plan(tuple(entries)).fitted(shape)

    return st.builds(plan, st.tuples(*map(keeps, names)), last)


def any_replacements(shape: DecoderShape, seed: int = 0) -> Replacements:
    """Random numbers for every sub-layer: building and running a student needs no fit."""
    generator = torch.Generator().manual_seed(seed)
    d = shape.d_model

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    names = sublayers(shape.layers)
    means = {sublayer: draw(d) for sublayer in names}
    maps = {one: Affine(draw(d, d) / d**0.5, draw(d)) for one in names}
    size = (shape.vocabulary,)
    tables = {one: torch.randint(0, *size, size, generator=generator) for one in names}
    return Replacements(means, maps, tables)


def ablated_teacher(
    view: ResidualDecoder,
    plan: Plan,
    units: Mapping[SubLayer, tuple[int, ...]],
    ids: Tensor,
    memory: Memory,
    fitted: Replacements | None = None,
) -> Tensor:
    """The oracle: the teacher's logits with dropped units zero, skipped sub-layers left out.

    Where the plan replaces a sub-layer, its write is that of `fitted`, or the stream behind it.
    """
    fitted = fitted or Replacements()
    x = view.embed(ids)
    for sublayer in view.sublayers:
        keep = plan.keep(sublayer)
        name = None if keep is None else keep.replacement
        if name == "mean":
            x = x + fitted.means[sublayer]
        elif name == "token":
            x = view.embed(fitted.tokens[sublayer][ids])
        elif name == "linear":
            norm, fit = view.parts(sublayer).norm, fitted.maps[sublayer]
            centred = x - x.mean(-1, keepdim=True)
            scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + norm.eps)
            x = x + (scaled * norm.weight + norm.bias) @ fit.weight.T + fit.bias
        elif sublayer in units:
            carried = view.units(sublayer, x, memory)
            dropped = torch.ones(carried.shape[2], dtype=torch.bool)
            dropped[list(units[sublayer])] = False
            carried = carried.clone()
            carried[:, :, dropped] = 0.0
            written = view.project(sublayer, carried)
            x = written if name == "alone" else x + written
    return view.readout(x)
