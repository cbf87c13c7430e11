"""Whether a place of the stream holds tokens in their lowercase form. No torch.

Donut-MINT (arXiv 2509.26235, Prop. 3) says that M0 maps tokens to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .records import Reading

__all__ = ["CaseHits", "case_hits", "case_rates"]


@dataclass(frozen=True)
class CaseHits:
    """What the tokens of a reading read as; L places, K positions.

    Attributes:
        places: names of the places.
        cased: [K] whether the lowercase form of the token is another token of the vocabulary.
        caseless: [K] whether the token is its own lowercase form; special tokens are neither, nor
            are tokens whose lowercase form the vocabulary lacks.
        lowered: [L, K] whether it reads as its lowercase form; False where it is not `cased`.
        kept: [L, K] whether it reads as itself.
    """

    places: tuple[str, ...]
    cased: np.ndarray
    caseless: np.ndarray
    lowered: np.ndarray
    kept: np.ndarray


def case_hits(reading: Reading, tokenizer: Any) -> CaseHits:
    """Tell of every token whether it reads as its lowercase form, or as itself.

    Args:
        reading: of `nearest_tokens` or the stream lens.
        tokenizer: the teacher's.
    """
    present = np.unique(reading.inputs).tolist()
    lower, caseless = _lower_forms(present, tokenizer)
    forms = np.array([lower.get(int(i), -1) for i in reading.inputs], dtype=np.int64)
    nearest = reading.top[:, :, 0]
    return CaseHits(
        places=tuple(reading.places),
        cased=forms >= 0,
        caseless=np.isin(reading.inputs, caseless),
        lowered=nearest == forms,
        kept=nearest == reading.inputs,
    )


def case_rates(reading: Reading, tokenizer: Any) -> dict[str, dict[str, float]]:
    """Tell at every place whether cased tokens read as their lowercase form.

    If M0 lowers case, `lowered` jumps there. Tokens without case are the control: what
    happens to them too has nothing to do with case.

    Args:
        reading: of `nearest_tokens` or the stream lens.
        tokenizer: the teacher's.

    Returns:
        Per place the shares of cased tokens (those whose lowercase form is another token of the
        vocabulary) that read as it, `lowered`, or as themselves, `kept`, and the share of all other
        tokens that read as themselves, `control`. A share of nothing is left out.
    """
    hits = case_hits(reading, tokenizer)
    found = {}
    for place, lowered, kept in zip(hits.places, hits.lowered, hits.kept, strict=True):
        shares = {
            "lowered": lowered[hits.cased],
            "kept": kept[hits.cased],
            "control": kept[~hits.cased],
        }
        found[place] = {name: float(v.mean()) for name, v in shares.items() if len(v)}
    return found


def _lower_forms(ids: Sequence[int], tokenizer: Any) -> tuple[Mapping[int, int], list[int]]:
    """Return the id of the lowercase form of tokens that have another one, and those without."""
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    pieces = dict(zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True))
    words = {i: (piece, piece.lower()) for i, piece in pieces.items() if i not in special}
    lower = {
        i: vocabulary[low]
        for i, (piece, low) in words.items()
        if low != piece and low in vocabulary
    }
    return lower, [i for i, (piece, low) in words.items() if low == piece]
