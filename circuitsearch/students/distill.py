"""Distillation: the one trainer of every student and of the elastic teacher.

What trains are the decoder layers, sub-layers with their LayerNorms, as in Donut-MINT
(arXiv 2509.26235). Encoder, token and position embeddings, the embedding's LayerNorm, the final
LayerNorm and the output projection (tied to the embeddings) stay the teacher's: students read and
write the same stream, and no student can buy quality in a part that its plan does not pay for.

A step runs the `ResidualDecoder` view on cached features (`features`): no encoder, no teacher, keys
and values of a page once for all its questions, and output logits at answer tokens only. The view
applies no dropout.

In *elastic* mode a plan is drawn per step and only what it keeps runs and trains (LayerDrop,
arXiv 1909.11556, and once-for-all, arXiv 1908.09791, train their super-networks alike):

* A sub-layer that the plan skips or replaces has no gradient, and AdamW passes over it: weights,
  moments and step count stay as they are.
* A sub-layer that the plan keeps in part has a gradient of zero at the heads or neurons that it
  drops. They are not computed, but they share their tensors with those that are: their moments
  decay as at any step, they still move by what is left of them, and weight decay reaches them.
* Which neurons a width means is settled before the first step and stays so.

Batches, learning rate and plans are functions of the step, and the saved state holds weights and
moments bit for bit, so a resumed run ends with the weights of an uninterrupted one.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

from circuitsearch.core.errors import DataError
from circuitsearch.core.files import record_fields
from circuitsearch.teacher.decoders import ResidualDecoder
from circuitsearch.teacher.state import load_state, save_state

from .features import Features
from .plan_view import NeuronOrder
from .recipe import DistillRecipe
from .replacements import Replacements
from .trainer import PlanOfStep, Trainer, only_layers_train

__all__ = ["DistillRecipe", "DistillResult", "PlanOfStep", "StepReport", "distill"]

log = logging.getLogger("circuitsearch")

_WINDOW = 20
"""Steps at the end whose mean loss is reported."""


@dataclass(frozen=True)
class StepReport:
    """One training step and the pace so far.

    Attributes:
        step: steps done.
        steps: steps of the recipe.
        loss: weighted sum of the losses in this step.
        losses: each loss by name.
        seconds_per_step: mean since training began or was resumed.
    """

    step: int
    steps: int
    loss: float
    losses: Mapping[str, float]
    seconds_per_step: float


@dataclass(frozen=True)
class DistillResult:
    """The end of a distillation.

    Attributes:
        loss: weighted sum of the losses, mean over the last 20 steps.
        losses: each loss by name, mean over the same steps.
        kd_weight: weight of the losses that read the teacher.
        steps: optimiser steps, those before a resumption included.
        seconds: time spent, that before a resumption included.
    """

    loss: float
    losses: Mapping[str, float]
    kd_weight: float
    steps: int
    seconds: float


@dataclass
class _Progress:
    """What a resumed run needs beside weights and moments."""

    step: int = 0
    kd_weight: float = 1.0
    seconds: float = 0.0
    window: list[dict[str, float]] = field(default_factory=list)

    def facts(self, identity: str) -> dict[str, str]:
        """Return the progress as short texts; floats survive JSON exactly."""
        return {"identity": identity, "progress": json.dumps(asdict(self))}


def distill(
    view: ResidualDecoder,
    features: Features,
    recipe: DistillRecipe,
    *,
    seed: int,
    state_file: Path | None = None,
    save_every: int = 100,
    plan_of_step: PlanOfStep | None = None,
    ranking: NeuronOrder | None = None,
    replacements: Replacements | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> DistillResult:
    """Train a student's decoder layers in place.

    Args:
        view: residual view of the student's decoder (or of an elastic teacher's).
        features: cached states and teacher logits of the training pages.
        recipe: how to train.
        seed: seed of the data order; give all students that are compared the same one.
        state_file: where to keep the training state; one of the same run is resumed.
        save_every: steps between two saved states.
        plan_of_step: elastic mode: the plan that runs and trains in each step.
        ranking: elastic mode: neurons by which widths are cut; by default those of the weights
            before training, as `build_student` ranks them.
        replacements: elastic mode: numbers for sub-layers that plans replace; they do not train.
        on_step: called after every step.

    Raises:
        TrainingError: if loss or gradient stop being finite numbers.
        ConfigError: if nothing can be trained, the features lack the recipe's temperature, or a
            plan of a step is empty or needs replacements that are not given.
        PlanError: if a plan of a step does not fit the decoder.
        DataError: if `state_file` is damaged or belongs to another run.
    """
    with only_layers_train(view) as named:
        trainer = Trainer(view, features, recipe, seed, plan_of_step, named, ranking, replacements)
        progress = _begin(trainer, state_file)
        first, before, started = progress.step, progress.seconds, time.perf_counter()
        for step in range(first, recipe.steps):
            report = trainer.step(step, progress.kd_weight)
            progress.step = step + 1
            progress.window = [*progress.window, report][-_WINDOW:]
            elapsed = time.perf_counter() - started
            progress.seconds = before + elapsed
            last = progress.step == recipe.steps
            if state_file is not None and (last or progress.step % save_every == 0):
                save_state(state_file, named, trainer.optimizer, progress.facts(trainer.identity))
            if on_step is not None:
                losses = {name: report[name] for name in recipe.losses}
                pace = elapsed / (progress.step - first)
                on_step(StepReport(progress.step, recipe.steps, report["loss"], losses, pace))
    means = {
        name: math.fsum(one[name] for one in progress.window) / len(progress.window)
        for name in ("loss", *recipe.losses)
    }
    return DistillResult(
        loss=means.pop("loss"),
        losses=means,
        kd_weight=progress.kd_weight,
        steps=progress.step,
        seconds=progress.seconds,
    )


def _begin(trainer: Trainer, state_file: Path | None) -> _Progress:
    """Resume a saved run, or weigh the losses for a new one."""
    if state_file is None or not state_file.exists():
        return _Progress(kd_weight=trainer.balanced_weight())
    # looked at before loading, which overwrites the weights
    if _facts(state_file).get("identity") != trainer.identity:
        raise DataError(
            f"{str(state_file)!r}: it belongs to another run (student, features, recipe or seed "
            "differ); delete it or choose another state file"
        )
    facts = load_state(state_file, trainer.named, trainer.optimizer)
    try:
        progress = _Progress(**record_fields(_Progress, json.loads(facts["progress"])))
    except (KeyError, ValueError) as error:
        raise DataError(f"{str(state_file)!r}: its progress cannot be read; delete it") from error
    log.info("resuming %s at step %d", state_file, progress.step)
    return progress


def _facts(state_file: Path) -> dict[str, str]:
    """Return the facts of a state file without its tensors."""
    try:
        with safe_open(state_file, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{str(state_file)!r}: not a training state ({error}); delete it to start over"
        ) from error
