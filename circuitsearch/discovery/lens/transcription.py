"""The transcription lens: encoder states read as tokens through one cross-attention.

    logits(v) = lm_head(out_proj(v_proj(v)))        for each encoder state v

(Donut-MINT, arXiv 2509.26235, Prop. 1 and Fig. 4, with the last cross-attention). It asks whether
the encoder has turned pixels into tokens already, up to a linear map. By default biases are kept
and no norm is applied, as the paper's formula has it. With a subset of heads only their columns of
out_proj take part (Fig. 4, right).

`printed_tokens` tells what is really printed on each encoder token's patch of a rendered page, to
judge a transcription (`Transcription.accuracy`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import ConfigError, choice_problem, integer_problems, raise_together
from circuitsearch.core.shapes import patch_grid
from circuitsearch.teacher.decoders import Affine, Parts, ResidualDecoder
from circuitsearch.teacher.documents.render import Layout, characters

from .records import Transcription
from .vocabulary import say_vectors

__all__ = ["CrossLens", "TranscriptionOptions", "cross_lens", "printed_tokens", "transcribe"]

LensNorm = Literal["none", "final"]


@dataclass(frozen=True)
class TranscriptionOptions:
    """How encoder states become tokens. The defaults are the paper's formula.

    Attributes:
        biases: whether value and output projection keep their biases.
        norm: `none`, or `final` to apply the decoder's final norm in front of lm_head.
    """

    biases: bool = True
    norm: LensNorm = "none"

    def __post_init__(self) -> None:
        """Refuse an unknown word."""
        if self.norm not in get_args(LensNorm):
            raise ConfigError(choice_problem("Transcription norm", self.norm, get_args(LensNorm)))


@dataclass(frozen=True)
class CrossLens:
    """One cross-attention as a map from values to logits.

    Attributes:
        decoder: the view.
        sublayer: the cross-attention.
        parts: its pieces.
        value: its value projection.
        heads: the heads that take part.
        options: biases and norm.
    """

    decoder: ResidualDecoder
    sublayer: SubLayer
    parts: Parts
    value: Affine
    heads: tuple[int, ...]
    options: TranscriptionOptions

    @property
    def groups(self) -> list[int]:
        """Key-value group of each head that takes part."""
        return [head * self.parts.groups // self.parts.heads for head in self.heads]

    def values(self, states: Tensor) -> Tensor:
        """Return [..., h, hd], the values of the chosen heads, for states [..., E]."""
        joined = self.value(states) if self.options.biases else self.value.linear(states)
        return joined.view(*joined.shape[:-1], self.parts.groups, -1)[..., self.groups, :]

    def logits(self, values: Tensor) -> Tensor:
        """Return [..., V] of the chosen heads' values or outputs [..., h, hd]."""
        project, width = self.parts.project, values.shape[-1]
        columns = project.weight.view(-1, self.parts.heads, width)[:, list(self.heads)]
        chosen = Affine(columns.flatten(1), project.bias if self.options.biases else None)
        written = chosen(values.flatten(-2))
        if self.options.norm == "final":
            written = self.decoder.final_norm(written)
        return self.decoder.unembed(written)


def transcribe(
    decoder: ResidualDecoder,
    states: Tensor,
    sublayer: str | None = None,
    *,
    heads: Sequence[int] | None = None,
    options: TranscriptionOptions | None = None,
    top: int = 1,
) -> Transcription:
    """Read every encoder state as tokens.

    Args:
        decoder: the view.
        states: [P, N, E] encoder states.
        sublayer: a cross-attention; None means the last one (C3 in Donut).
        heads: its heads that take part; None means all.
        options: biases and norm; None means the paper's formula.
        top: number of top tokens per encoder state.

    Raises:
        ConfigError: no such cross-attention or head, or a number that is not allowed.
    """
    lens = cross_lens(decoder, sublayer, heads, options)
    raise_together(integer_problems("top", top, 1), ConfigError, "Transcription")
    pages, tokens = states.shape[:2]
    with torch.no_grad():
        flat = states.flatten(0, 1)
        said = say_vectors(
            flat,
            torch.arange(tokens, device=states.device).repeat(pages),
            lambda v, _: lens.logits(lens.values(v)),
            torch.zeros(len(flat), 0, dtype=torch.long, device=states.device),
            top,
            decoder.shape.vocabulary,
        )
    fields = ("top", "top_logits", "top_probabilities", "entropies")
    arrays: dict[str, Any] = {n: said[n].reshape(pages, tokens, *said[n].shape[1:]) for n in fields}
    return Transcription(
        sublayer=lens.sublayer.name, heads=lens.heads, options=asdict(lens.options), **arrays
    )


def printed_tokens(
    layout: Layout, size: tuple[int, int], tokens: int, tokenizer: Any
) -> dict[int, frozenset[int]]:
    """Return the tokens printed on each encoder token's patch, for a tokenizer of characters.

    Args:
        layout: the page.
        size: (height, width) in pixels that the encoder sees; pages are drawn in this size.
        tokens: number N of encoder tokens; their patches are square and in row-major order.
        tokenizer: gives one id per character.

    Returns:
        Token ids by encoder token; those without a glyph's centre are left out.

    Raises:
        ConfigError: the page's size is not the encoder's, or N square patches do not tile it.
    """
    grid = patch_grid(*size, tokens)
    if (layout.height, layout.width) != tuple(size) or grid is None:
        raise ConfigError(
            f"Printed tokens: got a page of {layout.height} x {layout.width} pixels, an encoder "
            f"input of {size[0]} x {size[1]} and {tokens} encoder tokens; allowed are equal sizes "
            "that square patches tile"
        )
    side = size[1] // grid[1]
    found: dict[int, set[int]] = {}
    for character, x, y in characters(layout):
        place = int(y // side) * grid[1] + int(x // side)
        if 0 <= x < size[1] and 0 <= y < size[0]:
            found.setdefault(place, set()).add(tokenizer.convert_tokens_to_ids(character))
    return {place: frozenset(ids) for place, ids in sorted(found.items())}


def cross_lens(
    decoder: ResidualDecoder,
    sublayer: str | None,
    heads: Sequence[int] | None,
    options: TranscriptionOptions | None,
) -> CrossLens:
    """Return the lens of a cross-attention; arguments and errors are those of `transcribe`."""
    crosses = [s for s in decoder.sublayers if s.kind is Kind.CROSS]
    names = [s.name for s in crosses]
    if not crosses or (sublayer is not None and sublayer not in names):
        raise ConfigError(
            choice_problem("Transcription sub-layer", sublayer, names)
            if crosses
            else "Transcription: this decoder has no cross-attention, so no encoder state is read; "
            "choose a decoder that has one"
        )
    chosen = crosses[-1 if sublayer is None else names.index(sublayer)]
    parts = decoder.parts(chosen)
    wanted = tuple(range(parts.heads)) if heads is None else tuple(heads)
    wrong = [head for head in wanted if not 0 <= head < parts.heads]
    if wrong or not wanted or len(set(wanted)) < len(wanted) or parts.value is None:
        raise ConfigError(
            f"Transcription heads of {chosen}: got {list(wanted)}, allowed are distinct numbers "
            f"from 0 to {parts.heads - 1}, at least one"
        )
    given = TranscriptionOptions() if options is None else options
    return CrossLens(decoder, chosen, parts, parts.value, wanted, given)
