"""Evaluation: the loss of the answers, the answers themselves, and one `Measurement` of both.

Quality is the mean ANLS over questions, the best of their gold answers each, with a 95 % bootstrap
interval that draws documents, because questions about one document share its difficulty. Losses are
in nats per answer token, averaged per example first, then over examples; perplexity is over tokens.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuitsearch.core.answers import AnlsRule, Answer
from circuitsearch.core.components import SubLayer
from circuitsearch.core.cost import Generation, recorded_costs
from circuitsearch.core.errors import ConfigError
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.students.decoding import answer_limits, greedy_ids
from circuitsearch.students.features.reader import Features
from circuitsearch.students.scoring import answer_rows, finite_perplexity, scores_of
from circuitsearch.students.student import plan_of
from circuitsearch.teacher.answering import MOST_TOGETHER, together
from circuitsearch.teacher.decoders import (
    ResidualDecoder,
    continue_from,
    residual_decoder,
    stream_loss,
)
from circuitsearch.teacher.tokens import TeacherTokens

if TYPE_CHECKING:
    from circuitsearch.teacher.loading import Teacher

__all__ = ["answer_loss_of", "examine", "greedy_answers"]


def answer_loss_of(
    view: ResidualDecoder,
    features: Features,
    *,
    kept: Collection[SubLayer] | None = None,
    examples: Sequence[int] | None = None,
    batch_size: int = MOST_TOGETHER,
) -> Tensor:
    """Return the cross-entropy of each example's answer.

    Args:
        view: residual view of the decoder to judge.
        features: cached states of the pages.
        kept: sub-layers that run, for a plan under an elastic teacher; None runs all present.
        examples: indices of the examples to judge; None judges all.
        batch_size: most examples per pass; fewer where pages are large (`teacher.answering`).

    Returns:
        [examples] float32 in nats per answer token, in the order of `examples`.
    """
    chosen = list(range(len(features.examples))) if examples is None else list(examples)
    order = sorted(range(len(chosen)), key=lambda i: len(features.examples[chosen[i]].ids))
    losses = torch.empty(len(chosen))
    batch_size = together(view.shape, features.tokens, batch_size)
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        read = features.read([chosen[place] for place in places])
        with torch.no_grad():
            device = _device(view)
            memory = view.memory(read.states.to(device), read.rows.to(device), kept)
            stream = view.embed(read.batch.ids.to(device))
            stream = continue_from(view, stream, memory, kept=kept)
            losses[places] = stream_loss(view, stream, read.batch.labels.to(device)).cpu()
    return losses


def greedy_answers(
    model: Any,
    features: Features,
    tokens: TeacherTokens,
    *,
    examples: Sequence[int] | None = None,
    batch_size: int = MOST_TOGETHER,
) -> list[str]:
    """Ask a model the questions of cached pages.

    Args:
        model: `VisionEncoderDecoderModel`, teacher or student, in evaluation mode.
        features: cached states of the pages.
        tokens: the teacher's prompt and tokenizer.
        examples: indices of the examples to ask; None asks all.
        batch_size: most questions decoded together; fewer where pages are large
            (`teacher.answering`).

    Returns:
        One answer per question, in the order of `examples`; the same texts as `model.generate`.

    Raises:
        ConfigError: the model's generation config asks for more than greedy decoding.
    """
    chosen = list(range(len(features.examples))) if examples is None else list(examples)
    prompts = [list(row.ids[: row.prompt]) for row in (features.examples[i] for i in chosen)]
    limits = answer_limits(model.generation_config, tokens)
    texts = [""] * len(chosen)
    order = sorted(range(len(chosen)), key=lambda place: len(prompts[place]))
    batch_size = together(residual_decoder(model.decoder).shape, features.tokens, batch_size)
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        asked = torch.tensor([features.examples[chosen[place]].page for place in places])
        pages, rows = torch.unique(asked, return_inverse=True)
        written = greedy_ids(
            model.decoder, features.states(pages), rows, [prompts[p] for p in places], limits
        )
        for place, ids in zip(places, written, strict=True):
            texts[place] = tokens.text(ids)
    return texts


def examine(
    model: Any,
    teacher: Teacher,
    features: Features,
    plan: Plan,
    *,
    phase: str,
    source: str,
    answers: bool = True,
    seed: int = 0,
    steps: int = 0,
    checkpoint: str | None = None,
    generation: Generation | None = None,
    draws: int = 1000,
    batch_size: int = MOST_TOGETHER,
    rule: AnlsRule = "rrc",
) -> tuple[Measurement, tuple[Answer, ...]]:
    """Measure a student (or the teacher) on cached pages and keep what it answered.

    Args:
        model: the `VisionEncoderDecoderModel` to judge.
        teacher: its teacher, for prompt, tokenizer and shape.
        features: cached states of the pages to judge on.
        plan: the model's plan.
        phase: see `core.measurement.PHASES`.
        source: who proposed the plan.
        answers: whether to generate answers; without, only the loss is measured.
        seed: seed of the model's training; also keys the bootstrap.
        steps: steps of its training.
        checkpoint: where the student is kept.
        generation: lengths that the costs are for; the default of `core.cost` when None.
        draws: draws of the bootstrap.
        batch_size: most examples per pass; fewer where pages are large (`teacher.answering`).
        rule: reading of ANLS.

    Returns:
        The measurement, and one row per question (none when no answers were generated).

    Raises:
        ConfigError: if the model was built by another plan.
    """
    started = time.perf_counter()
    plan = plan.fitted(teacher.shape.decoder)
    whole = Plan.full(teacher.shape.decoder.layers)
    held = whole if model is teacher.model else plan_of(model)
    if held != plan:
        raise ConfigError(
            f"Measuring plan {str(plan)!r}: the model was built by {str(held)!r}; give the student "
            "that build_student makes of this plan"
        )
    losses = answer_loss_of(residual_decoder(model), features, batch_size=batch_size)
    scored: Mapping[str, Any] = {}
    rows: tuple[Answer, ...] = ()
    if answers:
        said = greedy_answers(model, features, teacher.tokens, batch_size=batch_size)
        rows = answer_rows(features, said, losses.tolist(), rule=rule)
        scored = scores_of(rows, parses=teacher.tokens.prompt.parses, seed=seed, draws=draws)
    lengths = [len(row.ids) - row.prompt for row in features.examples]
    made = Measurement(
        plan=str(plan),
        plan_hash=plan.hash,
        phase=phase,
        loss=float(losses.double().mean()),
        perplexity=finite_perplexity(losses.tolist(), lengths),
        examples=len(features.examples),
        seed=seed,
        steps=steps,
        source=source,
        cost=recorded_costs(plan, teacher.shape, generation),
        checkpoint=checkpoint,
        seconds=time.perf_counter() - started,
        **scored,
    )
    return made, rows


def _device(view: Any) -> torch.device:
    """Return the device that a view computes on."""
    device: torch.device = next(view.model.parameters()).device
    return device
