"""Where heads look on a page, as `discovery.lens.page_maps` finds it and the circuit page shows it.

A page image may show somebody's document, and the circuit page is a file that people mail around:
nothing of a page enters it unless a caller hands over these records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["PageMaps"]


@dataclass(frozen=True, kw_only=True)
class PageMaps:
    """One question about one page, and where heads look when it is answered.

    Attributes:
        question: the question.
        position: which position of the decoder looks, in words ("first answer token").
        image: the page, a PNG file's bytes.
        grid: rows and columns of patches, in row-major order.
        maps: head name (`C3.H11`) to its weight on every patch, [rows * columns], not negative.
        readings: cross-attention (`C3`) to what its transcription lens reads on every patch: the
            token's text and its probability.
    """

    question: str
    position: str
    image: bytes
    grid: tuple[int, int]
    maps: Mapping[str, Sequence[float]]
    readings: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)
