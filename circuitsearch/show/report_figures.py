"""The report's own figures: the course of the search, and scores against effects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from circuitsearch.core.components import Head, parse_component
from circuitsearch.core.scores import Scores
from circuitsearch.show.report_canvas import (
    BASELINE,
    BEST,
    INK,
    TRIALS,
    canvas,
    drawing,
    inline_svg,
    label,
)
from circuitsearch.show.report_found import Step

__all__ = ["calibration_svg", "incumbent_svg", "pairs"]

_LABELLED = 0.1  # of the largest; below it names would cover each other


def incumbent_svg(steps: Sequence[Step], teacher: float | None, name: str, words: str) -> str:
    """Draw the best quality against the number of trainings, every training by its source.

    Args:
        steps: the course; one with a quality or more.
        teacher: the teacher's quality as a line; None leaves it out.
        name: prefix of the figure's identifiers.
        words: what it shows, for readers who do not see it.
    """
    with drawing():
        axes = canvas(size=(8.0, 3.8))
        if teacher is not None:
            axes.axhline(teacher, color=INK, linewidth=1.2, linestyle=(0, (5, 3)), label="teacher")
        known = [step for step in steps if step.best is not None]
        axes.step(
            [step.trainings for step in known],
            [step.best for step in known],
            where="post",
            color=BEST,
            linewidth=1.8,
            label="best so far",
        )
        for place, source in enumerate(sorted({step.source for step in steps})):
            color, marker = TRIALS[place % len(TRIALS)]
            group = [s for s in steps if s.source == source and s.quality is not None]
            axes.plot(
                [step.trainings for step in group],
                [step.quality for step in group],
                marker,
                color=color,
                markersize=6,
                markeredgecolor="white",
                label=label(source),
            )
        axes.set_xlabel("Trainings")
        axes.set_ylabel("ANLS (higher is better)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        # Beside the axes: the course fills them from left to right.
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
        return inline_svg(axes.figure, name, words)


def pairs(scores: Scores, *, heads: bool) -> list[tuple[str, float, float]]:
    """Return components with a score and an effect: name, effect, score; sub-layers or heads."""
    return [
        (one.component, one.effect, one.score)
        for one in scores.components
        if one.effect is not None
        and one.score is not None
        and isinstance(parse_component(one.component), Head) == heads
    ]


def calibration_svg(scores: Scores, name: str, words: str) -> str:
    """Draw scores against effects; on the dashed line an estimate equals what was measured.

    Args:
        scores: with one component or more that has both.
        name: prefix of the figure's identifiers.
        words: what it shows, for readers who do not see it.
    """
    with drawing():
        axes = canvas(size=(6.4, 4.6))
        _scatter(axes, pairs(scores, heads=True), "heads", BASELINE, "o", 4)
        rows = pairs(scores, heads=False)
        _scatter(axes, rows, "sub-layers", BEST, "D", 7)
        largest = max((max(abs(e), abs(s)) for _, e, s in rows), default=0.0)
        for component, effect, score in rows:
            if max(abs(effect), abs(score)) < _LABELLED * largest:
                continue
            axes.annotate(
                label(component),
                (effect, score),
                xytext=(6, 4),
                textcoords="offset points",
                fontsize=8,
            )
        axes.axline((0, 0), slope=1, color=INK, linewidth=1, linestyle=(0, (5, 3)), label="equal")
        axes.set_xlabel(f"Effect: measured rise of {label(scores.metric)}")
        axes.set_ylabel("Score: estimated rise")
        axes.legend(loc="best", fontsize=9)
        return inline_svg(axes.figure, name, words)


def _scatter(
    axes: Any,
    points: Sequence[tuple[str, float, float]],
    words: str,
    color: str,
    marker: str,
    size: float,
) -> None:
    """Draw points, when there are any."""
    if points:
        axes.plot(
            [effect for _, effect, _ in points],
            [score for _, _, score in points],
            marker,
            color=color,
            markersize=size,
            markeredgecolor="white",
            markeredgewidth=0.6,
            label=words,
        )
