"""What is printed on the patches that encoder tokens see, and whether a map reads it.

Rendered pages know where each glyph's centre lies, so every encoder token with text on its patch is
a question with a known answer: the token says something (`lens.transcription`, or a map fitted
here), and it is right if that is printed there. Patches without text ask nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitsearch.core.errors import ConfigError
from circuitsearch.teacher.decoders import ResidualDecoder
from circuitsearch.teacher.documents.records import Page
from circuitsearch.teacher.documents.render import Layout
from circuitsearch.teacher.loading import Teacher

from ...lens.records import Transcription
from ...lens.transcription import LensNorm, TranscriptionOptions, printed_tokens, transcribe
from ...sample import Sample

__all__ = ["Printed", "fitted_map", "printed_on"]

_PENALTY, _STEPS = 1e-3, 100
"""Of the fitted map: weight of its squared entries, and the most steps of its fit."""


@dataclass(frozen=True, eq=False)
class Printed:
    """The K encoder tokens of a sample that have text on their patches.

    Attributes:
        states: [K, E] their states.
        tokens: [K] ids of the characters printed on each.
        documents: [K] document of each.
        pages: [K] page of each, an index into the sample's states.
        places: [K] its number among the page's encoder tokens.
    """

    states: Tensor
    tokens: tuple[frozenset[int], ...]
    documents: tuple[str, ...]
    pages: np.ndarray
    places: np.ndarray

    def right(self, said: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return [K], 1 where the id that was said [K] is printed there, else 0."""
        pairs = zip(said, self.tokens, strict=True)
        return np.array([float(int(one) in printed) for one, printed in pairs])

    def read(
        self,
        decoder: ResidualDecoder,
        sublayer: str,
        heads: Collection[int] | None = None,
        norm: LensNorm = "none",
    ) -> np.ndarray:
        """Return [K], 1 where the transcription lens reads the patch right.

        Args:
            decoder: the view.
            sublayer: the cross-attention whose value and output projection read.
            heads: its heads that take part; None means all.
            norm: whether the `final` norm is applied in front of the output matrix.
        """
        chosen = None if heads is None else sorted(heads)
        options = TranscriptionOptions(norm=norm)
        found = transcribe(decoder, self.states[None], sublayer, heads=chosen, options=options)
        return self.right(found.top[0, :, 0])

    def sure(self, found: Transcription) -> np.ndarray:
        """Return [K] of bool: among the quarter of its page's tokens of lowest entropy."""
        chosen: np.ndarray = found.confident()[self.pages, self.places]
        return chosen

    def commonest(self) -> np.ndarray:
        """Return [K], 1 where the character printed on most patches would be right."""
        ids, counts = np.unique([i for ids in self.tokens for i in ids], return_counts=True)
        return self.right([ids[counts.argmax()]] * len(self.tokens))


def printed_on(teacher: Teacher, pages: Sequence[Page], sample: Sample) -> Printed | str:
    """Return the encoder tokens with text, or the reason why nobody can know them.

    Args:
        teacher: whose encoder and tokenizer it is.
        pages: the pages that the sample was made of.
        sample: questions about them, with the encoded states.
    """
    size = teacher.processor.image_processor.size
    tokenizer = teacher.tokens.tokenizer
    asked = [page for page in pages if page.questions]
    layouts = [(g, p, p.source) for g, p in enumerate(asked) if isinstance(p.source, Layout)]
    if not layouts:
        return "the pages are images whose text is not known patch by patch; render pages instead"
    found: list[tuple[int, int, frozenset[int], str]] = []
    for index, page, layout in layouts:
        if not _by_character(layout, tokenizer):
            return "the tokenizer's tokens are not single characters, as the patches' text is"
        try:
            printed = printed_tokens(
                layout, (size["height"], size["width"]), sample.states.shape[1], tokenizer
            )
        except ConfigError as error:
            return str(error)
        found += [(index, place, ids, page.document) for place, ids in printed.items()]
    if not found:
        return "no page has text on a patch"
    where, places, ids, documents = zip(*found, strict=True)
    states = sample.states[list(where), list(places)]
    return Printed(states, ids, documents, np.array(where), np.array(places))


def fitted_map(printed: Printed, others: Printed) -> np.ndarray:
    """Return [K], 1 where a linear map fitted on other pages reads the patch right.

    The map is a multinomial logistic regression from states to characters (cross-entropy with a
    small squared penalty), so it shows what is linearly there, whoever reads it: a lower bound that
    grows with the pages it is fitted on.

    Args:
        printed: patches to read.
        others: patches to fit on, of other documents.
    """
    ids = sorted(frozenset().union(*others.tokens))
    column = {token: i for i, token in enumerate(ids)}
    wanted = torch.zeros(len(others.tokens), len(ids), dtype=torch.float64)
    for row, tokens in enumerate(others.tokens):
        wanted[row, [column[token] for token in tokens]] = 1 / len(tokens)
    mean, spread = others.states.double().mean(dim=0), others.states.double().std(dim=0)
    inputs = _standard(others.states, mean, spread)
    weights = torch.zeros(inputs.shape[1], len(ids), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weights], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        fit = torch.nn.functional.cross_entropy(inputs @ weights, wanted)
        total = fit + _PENALTY * weights.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    search.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        best = (_standard(printed.states, mean, spread) @ weights).argmax(dim=1)
    return printed.right([ids[i] for i in best.tolist()])


def _standard(states: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Return states [K, E] of mean 0 and deviation 1, with a column of ones, on the CPU."""
    scaled = (states.double() - mean) / spread.clamp_min(1e-12)
    return torch.cat([scaled, scaled.new_ones(len(scaled), 1)], dim=1).cpu()


def _by_character(layout: Layout, tokenizer: Any) -> bool:
    """Whether each character of a page is one token that the vocabulary knows."""
    characters = sorted({c for line in layout.lines for c in line.text if c != " "})
    ids = [tokenizer.convert_tokens_to_ids(character) for character in characters]
    if tokenizer.unk_token_id in ids or None in ids:
        return False
    pieces = (tokenizer(line.text, add_special_tokens=False) for line in layout.lines)
    lengths = [len(line.text) for line in layout.lines]
    return all(len(p["input_ids"]) == n for p, n in zip(pieces, lengths, strict=True))
