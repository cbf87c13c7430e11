"""Where names stand beside points of a plot, so that none covers another and none tells a lie.

Names of points that lie close together along x share a column to the right of them, in the order of
the points' heights, each as near to its point's height as the others allow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import isotonic_regression

__all__ = ["columns", "spread"]


def columns(places: Sequence[float], rooms: Sequence[float]) -> list[list[int]]:
    """Group points along x: one that stands where the names of its left neighbours go joins them.

    Args:
        places: the points along x.
        rooms: how far each point's name reaches to the right of the column's last point.

    Returns:
        The points' positions in `places`, by column from left to right.
    """
    order = sorted(range(len(places)), key=lambda at: places[at])
    found: list[list[int]] = []
    for at in order:
        last = found[-1] if found else []
        if last and places[at] - places[last[-1]] < max(rooms[one] for one in last):
            last.append(at)
        else:
            found.append([at])
    return found


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return heights at least `gap` apart, in the order of the wanted ones and nearest to them.

    Nearest in the sum of squares: with i gaps taken off the i-th height, what must rise by a gap at
    each step must merely not fall, which is isotonic regression. Where not all fit between `low`
    and `high` at that gap, they stand evenly between them.

    Args:
        wanted: heights, in any order and unit.
        gap: the smallest distance, in that unit.
        low: the smallest height.
        high: the largest height.
    """
    if not wanted:
        return []
    order = np.argsort(wanted, kind="stable")
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    steps = gap * np.arange(len(wanted))
    level = isotonic_regression(np.asarray(wanted, dtype=float)[order] - steps).x
    heights = np.clip(level, low, high - steps[-1]) + steps
    found = np.empty(len(wanted))
    found[order] = heights
    return [float(height) for height in found]
