"""Losses without sub-layers, one and two at a time, and their estimates; see `skip`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from circuitsearch.core.files import seed_from
from circuitsearch.discovery.attribution.engine import DEFAULT_METHODS, component_scores
from circuitsearch.discovery.calibration import agreement
from circuitsearch.discovery.patching.components import effects, pair_effects, sample_metric
from circuitsearch.discovery.tables import draw_weights

from ..material import Material
from ..shared import Averages, without_end
from .agreement import centred_ranks

__all__ = ["METHODS", "Skipped", "measured", "score_agreement"]

METHODS = (DEFAULT_METHODS["sublayers"], "eap", "eap-absolute")
"""How effects are estimated: the default, gradient times activation, and its size (Taylor)."""

_DRAWS = 1000


@dataclass(frozen=True)
class Skipped:
    """Losses with and without sub-layers, and the scores that estimate the difference.

    Attributes:
        names: sub-layers in execution order.
        averages: of the questions.
        clean: [n] loss of each question, nats per answer token.
        effects: [n] by sub-layer.
        pairs: [n] by pair of sub-layers, the earlier one first.
        scores: [n] by sub-layer, by method.
        bare: averages and effects without closing tags; None where they cannot be told apart.
    """

    names: tuple[str, ...]
    averages: Averages
    clean: np.ndarray
    effects: Mapping[str, np.ndarray]
    pairs: Mapping[tuple[str, str], np.ndarray]
    scores: Mapping[str, Mapping[str, np.ndarray]]
    bare: tuple[Averages, Mapping[str, np.ndarray]] | None

    def mean(self, values: np.ndarray) -> float:
        """Mean over answer tokens."""
        return float(np.average(values, weights=self.averages.tokens))

    def interactions(self) -> dict[tuple[str, str], np.ndarray]:
        """Effect of each pair minus those of its two sub-layers, by question."""
        return {(a, b): v - self.effects[a] - self.effects[b] for (a, b), v in self.pairs.items()}


def measured(material: Material) -> Skipped:
    """Skip every sub-layer and every pair of a material's `pages`, and score them."""
    view, sample, progress = material.view, material.sample, material.progress
    names = tuple(sublayer.name for sublayer in view.sublayers)
    seed = seed_from("skip", sample.fingerprint, material.seed)
    bare = without_end(sample, material.teacher.tokens.answer_ids(""))
    return Skipped(
        names=names,
        averages=Averages.of(sample, seed),
        clean=sample_metric(view, sample),
        effects=effects(view, sample, names, progress=progress),
        pairs=pair_effects(view, sample, progress=progress),
        scores={
            method: component_scores(
                view, sample, method=method, level="sublayers", progress=progress
            ).values
            for method in METHODS
        },
        bare=None
        if bare is None
        else (Averages.of(bare, seed), effects(view, bare, names, progress=progress)),
    )


def score_agreement(found: Skipped, method: str) -> tuple[float | None, float | None, float | None]:
    """Return Spearman of scores with effects over sub-layers, low and high; None if undefined.

    The interval draws documents; scores and effects are averaged over the answer tokens of a draw.
    """
    columns = [
        np.stack([values[name] for name in found.names], axis=1)
        for values in (found.scores[method], found.effects)
    ]
    tokens = np.asarray(found.averages.tokens, dtype=np.float64)
    scores, found_effects = (np.average(column, axis=0, weights=tokens) for column in columns)
    value = agreement(scores, found_effects).get("spearman")
    if value is None or len(set(found.averages.documents)) < 2:
        return value, None, None
    weights = draw_weights(found.averages.documents, _DRAWS, found.averages.seed) * tokens
    weights /= weights.sum(axis=1, keepdims=True)
    centred = [centred_ranks(weights @ column) for column in columns]
    sizes = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
    apart = sizes > 0
    if not apart.any():
        return value, None, None
    drawn = (centred[0] * centred[1]).sum(axis=1)[apart] / sizes[apart]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return value, float(low), float(high)
