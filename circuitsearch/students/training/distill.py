"""Distillation: the one trainer of every student and of the elastic teacher.

What trains are the decoder layers, sub-layers with their LayerNorms, as in Donut-MINT
(arXiv 2509.26235). Encoder, token and position embeddings, the embedding's LayerNorm, the final
LayerNorm and the output projection (tied to the embeddings) stay the teacher's: students read and
write the same stream, and no student can buy quality in a part that its plan does not pay for.

A step runs the `ResidualDecoder` view on cached features (`features`): no encoder, no teacher, keys
and values of a page once for all its questions, and output logits at answer tokens only. The view
applies no dropout. Only losses that compare streams or attention weights run the teacher's decoder,
once per step (`inside`).

A training ends as failed, with `TrainingError`, where its loss or gradient is no finite number, or
where it *diverged*: once the learning rate falls, the mean loss of 20 steps exceeds by the recipe's
factor the largest such mean up to there (that of the first 20 steps, or of the warm-up if longer: a
student that starts as its teacher may rise while the rate does). It is not stopped for want of
progress: under a cosine schedule the last steps gain the most.

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

from circuitsearch.core.errors import ConfigError, DataError, TrainingError
from circuitsearch.core.files import record_fields
from circuitsearch.processes import ALONE, Processes
from circuitsearch.students.features.prepare import Features
from circuitsearch.students.plan_view import NeuronOrder
from circuitsearch.students.replacements import Replacements
from circuitsearch.students.training.recipe import DistillRecipe
from circuitsearch.students.training.scalars import scalar_log
from circuitsearch.students.training.trainer import PlanOfStep, Trainer, only_layers_train
from circuitsearch.teacher.decoders import ResidualDecoder
from circuitsearch.teacher.state import load_state, save_state

__all__ = ["DistillRecipe", "DistillResult", "PlanOfStep", "StepReport", "distill"]

log = logging.getLogger("circuitsearch")

_WINDOW = 20
"""Steps whose mean loss is reported at the end, and compared along the way."""
_NOISE = 1e-3
"""A loss of this size is never called diverged: near zero it is rounding."""


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

    @property
    def words(self) -> str:
        """Loss and speed, for people."""
        return f"loss {self.loss:.3f}, {1 / max(self.seconds_per_step, 1e-9):.3g} steps/s"


@dataclass(frozen=True)
class DistillResult:
    """The end of a distillation.

    Attributes:
        loss: weighted sum of the losses, mean over the last 20 steps.
        losses: each loss by name, mean over the same steps.
        weights: weight of each loss by name, balanced ones as measured.
        steps: optimiser steps, those before a resumption included.
        seconds: time spent, that before a resumption included.
    """

    loss: float
    losses: Mapping[str, float]
    weights: Mapping[str, float]
    steps: int
    seconds: float


@dataclass
class _Progress:
    """What a resumed run needs beside weights and moments."""

    weights: dict[str, float]
    step: int = 0
    seconds: float = 0.0
    window: list[dict[str, float]] = field(default_factory=list)
    start: float = _NOISE  # largest mean of a window before the learning rate falls

    def add(self, report: dict[str, float], recipe: DistillRecipe) -> None:
        """Count a step with its losses.

        Raises:
            TrainingError: if the loss has left the region where it began.
        """
        self.step += 1
        self.window = [*self.window, report][-_WINDOW:]
        if self.step < _WINDOW:
            return
        mean = self.mean("loss")
        if self.step <= max(_WINDOW, recipe.warming):
            self.start = max(self.start, mean)
        elif mean > recipe.diverged * self.start:
            raise TrainingError(
                f"Distillation: it diverged: the mean loss of {_WINDOW} steps is {mean:.4g} at "
                f"step {self.step}, at most {self.start:.4g} at the start; lower learning_rate "
                "or raise warmup"
            )

    def mean(self, name: str) -> float:
        """Return the mean of a loss over the window."""
        return math.fsum(one[name] for one in self.window) / len(self.window)

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
    neurons: NeuronOrder | None = None,
    replacements: Replacements | None = None,
    teacher: ResidualDecoder | None = None,
    log_dir: Path | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    processes: Processes = ALONE,
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
        neurons: elastic mode: neurons by which widths are cut; by default those of the weights
            before training, as `build_student` ranks them.
        replacements: elastic mode: numbers for sub-layers that plans replace; they do not train.
        teacher: the teacher's decoder, on the student's device; only losses that compare streams
            or attention weights run it, and it never trains.
        log_dir: folder for TensorBoard's scalars: each loss, their sum and the learning rate.
        on_step: called after every step.
        processes: those that train this decoder together, all calling this function alike. The
            main one writes state and scalars; all read the state.

    Raises:
        TrainingError: if loss or gradient stop being finite numbers, or the loss diverges.
        ConfigError: if nothing can be trained, the features lack the recipe's temperature, a plan
            of a step is empty or needs replacements that are not given, a loss needs a `teacher`
            that is not given or does not fit, TensorBoard is asked for and not installed, or
            processes were given different things to train.
        PlanError: if a plan of a step does not fit the decoder.
        DataError: if `state_file` is damaged, belongs to another run, or is not the same file for
            all processes.
    """
    folder = log_dir if processes.is_main else None
    with scalar_log(folder) as log_scalars, only_layers_train(view) as named:
        given = seed, plan_of_step, named, neurons, replacements, teacher, processes
        trainer = Trainer(view, features, recipe, *given)
        progress = _begin(trainer, state_file, processes)
        first, before, started = progress.step, progress.seconds, time.perf_counter()
        for step in range(first, recipe.steps):
            report = trainer.step(step, progress.weights)
            progress.add(report, recipe)
            elapsed = time.perf_counter() - started
            progress.seconds = before + elapsed
            last = progress.step == recipe.steps
            due = last or progress.step % save_every == 0
            if state_file is not None and due and processes.is_main:
                save_state(state_file, named, trainer.optimizer, progress.facts(trainer.identity))
            log_scalars(progress.step, {**report, "learning_rate": recipe.rate(step)})
            if on_step is not None:
                losses = {name: report[name] for name in recipe.names}
                pace = elapsed / (progress.step - first)
                on_step(StepReport(progress.step, recipe.steps, report["loss"], losses, pace))
    return DistillResult(
        loss=progress.mean("loss"),
        losses={name: progress.mean(name) for name in recipe.names},
        weights=progress.weights,
        steps=progress.step,
        seconds=progress.seconds,
    )


def _begin(trainer: Trainer, state_file: Path | None, processes: Processes) -> _Progress:
    """Resume a saved run, or weigh the losses for a new one."""
    if len(set(processes.gather(lambda: trainer.identity))) > 1:
        raise ConfigError(
            "Distillation: the processes do not train the same (weights, features, recipe or seed "
            "differ); give all of them the same search file, teacher, pages and versions"
        )
    if state_file is None or not processes.on_main(state_file.exists):
        return _Progress(weights=trainer.weights())
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
    if len(set(processes.gather(lambda: progress.step))) > 1:
        raise DataError(
            f"{str(state_file)!r}: the processes read different states there; give them an output "
            "folder on a file system that all of them share"
        )
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
