"""Tables of distilled plans, as `distilled.py` writes them: one per training seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from circuitsearch.core.files import read_json
from circuitsearch.core.plan import Plan


class Truth(NamedTuple):
    """Distilled plans with their means over training seeds.

    Attributes:
        plans: the plans that every table holds, in the order of the first.
        quality: ANLS, one value per plan.
        loss: loss per answer token, nats, one value per plan.
        by_seed: ANLS `[tables, plans]`.
        feasible: plans that the search's budget allows.
    """

    plans: list[Plan]
    quality: np.ndarray
    loss: np.ndarray
    by_seed: np.ndarray
    feasible: int


def read_truth(paths: Sequence[Path]) -> Truth:
    """Read tables of the same plans, each distilled with another seed."""
    tables = [read_json(path) for path in paths]
    rows: list[dict[str, Any]] = [{row["plan"]: row for row in one["plans"]} for one in tables]
    texts = [text for text in rows[0] if all(text in table for table in rows)]
    quality, loss = (
        np.array([[table[text][name] for text in texts] for table in rows])
        for name in ("quality", "loss")
    )
    plans = [Plan.parse(text) for text in texts]
    return Truth(plans, quality.mean(axis=0), loss.mean(axis=0), quality, tables[0]["feasible"])
