"""What a model's answers are worth, question by question and together.

Rows carry the answers with everything that scores need (gold answers, documents, losses), so every
figure of a measurement can be made again from its rows, also under the other reading of ANLS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from circuitsearch.core.answers import AnlsRule, Answer
from circuitsearch.students.features.reader import Features
from circuitsearch.teacher.metrics import (
    anls,
    bootstrap_interval,
    corpus_perplexity,
    exact_match,
    field_f1,
    nted_accuracy,
)
from circuitsearch.teacher.parses import parse_of

__all__ = ["answer_rows", "finite_perplexity", "rescored", "scores_of"]


def answer_rows(
    features: Features,
    answers: Sequence[str],
    losses: Sequence[float],
    *,
    examples: Sequence[int] | None = None,
    rule: AnlsRule = "rrc",
) -> tuple[Answer, ...]:
    """Return one row per question, in the order of `examples`.

    Args:
        features: names the questions, their gold answers and documents.
        answers: one per example.
        losses: cross-entropy of each example's first gold answer, in nats per token.
        examples: indices of the examples that were asked; None means all.
        rule: reading of ANLS.
    """
    chosen = range(len(features.examples)) if examples is None else examples
    made = []
    for index, answer, loss in zip(chosen, answers, losses, strict=True):
        row = features.examples[index]
        page, question = features.pages[row.page], row.question
        made.append(
            Answer(
                question=question.id,
                page=page.id,
                document=page.document,
                family=question.family,
                answer=answer,
                golds=question.answers,
                anls=anls(answer, question.answers, strict=rule == "strict"),
                exact=exact_match(answer, question.answers),
                loss=float(loss),
                tokens=len(row.ids) - row.prompt,
            )
        )
    return tuple(made)


def rescored(rows: Sequence[Answer], rule: AnlsRule) -> tuple[Answer, ...]:
    """Return the rows with their ANLS by another rule; nothing else changes."""
    return tuple(
        replace(row, anls=anls(row.answer, row.golds, strict=rule == "strict")) for row in rows
    )


def scores_of(
    rows: Sequence[Answer], *, parses: bool = False, seed: int = 0, draws: int = 1000
) -> dict[str, Any]:
    """Return the fields of a `Measurement` that answers decide.

    Args:
        rows: the answers.
        parses: whether they are tag sequences of whole pages (`PromptFormat.parses`).
        seed: seed of the bootstrap.
        draws: draws of the bootstrap.
    """
    scores = [row.anls for row in rows]
    interval = bootstrap_interval(scores, [row.document for row in rows], seed, draws=draws)
    low, high = interval if interval is not None else (None, None)
    families: dict[str, list[float]] = {}
    for row in rows:
        families.setdefault(row.family, []).append(row.anls)
    return {
        "quality": _mean(scores),
        "quality_low": low,
        "quality_high": high,
        "exact": _mean([float(row.exact) for row in rows]),
        "families": {name: _mean(each) for name, each in sorted(families.items()) if name},
        **(_parse_scores(rows) if parses else {}),
    }


def finite_perplexity(losses: Sequence[float], tokens: Sequence[int]) -> float | None:
    """Return `corpus_perplexity`, None when it is beyond what a float holds."""
    value = corpus_perplexity(losses, tokens)
    return value if math.isfinite(value) else None


def _parse_scores(rows: Sequence[Answer]) -> dict[str, float]:
    """Return nTED accuracy and field F1 against the first gold parse, the one trained on."""
    said = [parse_of(row.answer) for row in rows]
    true = [parse_of(row.golds[0]) for row in rows]
    return {
        "nted": _mean([nted_accuracy(a, b) for a, b in zip(said, true, strict=True)]),
        "field_f1": field_f1(said, true),
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
