"""Where heads look on a page: attention over the patches of a page image, as the viewer embeds it.

Weights are kept in 255 steps of a head's largest weight, one byte per patch.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from circuitsearch.core.errors import DataError, raise_together
from circuitsearch.core.page_maps import PageMaps
from circuitsearch.show.text import one_line, rounded

__all__ = ["pages_data"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_STEPS = 255


def pages_data(
    pages: Sequence[PageMaps], components: Container[str]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the pictures (data addresses, each once) and one JSON object per question.

    Args:
        pages: the records.
        components: names that the graph has.

    Raises:
        DataError: an image is no PNG, a map or reading does not fit the grid, holds what is no
            weight, or names a component that the graph lacks; all faults together.
    """
    problems: list[str] = []
    pictures: dict[bytes, int] = {}
    entries = []
    for place, page in enumerate(pages):
        found = _problems(page, components)
        problems += [f"pages[{place}]: {problem}" for problem in found]
        if not found:
            picture = pictures.setdefault(page.image, len(pictures))
            entries.append(_entry(page, picture))
    raise_together(problems, DataError, "Pages of the circuit page")
    addresses = [
        f"data:image/png;base64,{base64.b64encode(image).decode('ascii')}" for image in pictures
    ]
    return addresses, entries


def _problems(page: PageMaps, components: Container[str]) -> list[str]:
    """Return what is wrong with one record."""
    patches = page.grid[0] * page.grid[1]
    problems = []
    if not page.image.startswith(_SIGNATURE) or page.image[12:16] != b"IHDR":
        problems.append("image is no PNG file; give the bytes of one")
    if min(page.grid) < 1:
        problems.append(f"grid is {page.grid}, allowed are at least one row and one column")
    for kind, sets in (("map", page.maps), ("reading", page.readings)):
        for name, values in sets.items():
            if name not in components:
                problems.append(f"{kind} {name}: the graph has no such component")
            if len(values) != patches:
                problems.append(
                    f"{kind} {name} has {len(values)} entries, the grid has {patches} patches"
                )
    for name, weights in page.maps.items():
        array = np.asarray(weights, dtype=float)
        if not np.isfinite(array).all() or (array < 0).any():
            problems.append(f"map {name}: allowed are finite weights of at least 0")
    return problems


def _entry(page: PageMaps, picture: int) -> dict[str, Any]:
    """Return one question's JSON object."""
    width, height = struct.unpack(">II", page.image[16:24])
    return {
        "grid": list(page.grid),
        "maps": {name: _steps(weights) for name, weights in page.maps.items()},
        "picture": picture,
        "position": one_line(page.position),
        "question": one_line(page.question),
        "readings": {
            name: [[one_line(text), rounded(probability, 2)] for text, probability in reading]
            for name, reading in page.readings.items()
        },
        "size": [width, height],
    }


def _steps(weights: Sequence[float]) -> list[Any]:
    """Return a head's largest weight and, in base64, every weight in steps of it."""
    array = np.asarray(weights, dtype=float)
    # Rounded first, so that the last bits of another machine's sums do not show.
    largest = rounded(float(array.max()), 4)
    steps = np.rint(array.round(9) / (largest or 1.0) * _STEPS).clip(0, _STEPS).astype(np.uint8)
    return [largest, base64.b64encode(steps.tobytes()).decode("ascii")]
