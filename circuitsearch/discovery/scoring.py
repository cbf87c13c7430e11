"""Scores and effects of all components as one record, with their agreement (`calibration`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from circuitsearch.core.scores import ComponentScore, Scores
from circuitsearch.teacher.decoders import ResidualDecoder
from circuitsearch.teacher.loading import Teacher

from .ablation import Progress, means_for
from .attribution.engine import component_scores
from .attribution.methods import Method
from .calibration import component_calibration
from .listing import components_of
from .patching.components import Effects, effects, sample_metric
from .sample import Sample
from .tables import mean_interval

__all__ = ["EXACT_PASSES", "METRIC", "score_components"]

METRIC = "answer_loss"
"""Mean cross-entropy (nats) of the answer tokens under teacher forcing, per example."""


EXACT_PASSES = 400
"""Components that are measured exactly, one forward pass each, unless a caller says otherwise.
Donut's decoder has 140; GPT-2 small with 168 is within, models of billions are not."""


def score_components(
    teacher: Teacher,
    sample: Sample,
    *,
    ablation: str = "zero",
    metric: str = METRIC,
    method: str | Method | None = None,
    exact: bool | None = None,
    held_out: Sample | None = None,
    progress: Progress | None = None,
    decoder: ResidualDecoder | None = None,
) -> Scores:
    """Score all sub-layers and heads, and measure their effects.

    Args:
        teacher: whose fingerprint the record carries.
        sample: what to run on.
        ablation: a name in `ablation.ABLATIONS`.
        metric: a name in `metrics.METRICS`.
        method: how scores are estimated, see `attribution.methods`; None takes the defaults.
        exact: whether to measure exact effects and the calibration too; None decides by counted
            cost: yes while one pass per component is at most `EXACT_PASSES`.
        held_out: sample whose averages stand in, for `mean` and `position_mean`; None takes
            `sample` itself.
        progress: called with (stage, done, total).
        decoder: another view to score in the teacher's place (the elastic teacher's).

    Returns:
        Means and standard deviations over examples. `passes` counts decoder passes of one example,
        forward or backward; a pass through a part of the decoder counts as its share.

    Raises:
        ConfigError: ablation, metric or method is unknown, or they do not fit together.
        DataError: the sample lacks what the ablation needs.
    """
    view = teacher.decoder if decoder is None else decoder
    names = [component.name for component in components_of(view)]
    exact = len(names) <= EXACT_PASSES if exact is None else exact
    means = means_for(view, sample, ablation, held_out)
    scores = component_scores(
        view, sample, ablation, means, method=method, metric=metric, progress=progress
    )
    measured: Effects = {}
    if exact:
        measured = effects(view, sample, None, ablation, means, metric=metric, progress=progress)
    passes = scores.passes + (0 if ablation == "zero" else 1)
    components = tuple(
        _entry(name, scores.values[name], measured.get(name), sample.documents) for name in names
    )
    return Scores(
        teacher=teacher.fingerprint,
        metric=metric,
        ablation=ablation,
        method=scores.method,
        examples=sample.examples,
        components=components,
        calibration=component_calibration(scores.values, measured) if exact else {},
        passes=round(sample.examples * (passes + (1 + len(components) if exact else 0))),
        base_metric=float(sample_metric(view, sample, metric).mean()),
    )


def _entry(
    name: str, score: np.ndarray, effect: np.ndarray | None, documents: Sequence[str]
) -> ComponentScore:
    """Summarise one component; deviations are those of the examples, not of the mean."""
    found: dict[str, float] = {}
    for kind, values in (("score", score), ("effect", effect)):
        if values is None:
            continue
        found |= {kind: float(values.mean()), f"{kind}_sd": float(values.std())}
        if len(set(documents)) > 1:  # one document has no spread to draw from
            low, high = mean_interval(values[:, None], documents)
            found |= {f"{kind}_low": float(low[0]), f"{kind}_high": float(high[0])}
    sign = float((np.sign(score) == np.sign(score.mean())).mean())
    return ComponentScore(name, examples=len(score), sign_consistency=sign, **found)
