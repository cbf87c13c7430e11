"""The shared trainer as the pipeline uses it: train once, keep the weights, measure once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from circuitsearch.config import SearchConfig
from circuitsearch.core.errors import DataError
from circuitsearch.core.files import content_hash, seed_from
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.students.checkpoint import load_student
from circuitsearch.students.distill import DistillRecipe, distill
from circuitsearch.students.evaluate import measure
from circuitsearch.students.features import Features
from circuitsearch.students.replacements import Replacements
from circuitsearch.students.student import build_student, plan_of
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.loading import Teacher
from circuitsearch.workspace import Workspace

__all__ = ["StudentTrainer", "evaluate", "recipe_of", "train_once", "trainable"]


def recipe_of(config: SearchConfig, *, steps: int, learning_rate: float) -> DistillRecipe:
    """Return the shared trainer's recipe for a number of steps."""
    shared = config.distill
    return DistillRecipe(
        steps=steps,
        batch=shared.batch,
        learning_rate=learning_rate,
        warmup=shared.warmup,
        temperature=shared.temperature,
        kd_weight=shared.kd_weight,
    )


def trainable(view: Any) -> dict[str, torch.nn.Parameter]:
    """Return what the shared trainer trains: the parameters of the decoder layers."""
    return {name: p for name, p in view.model.named_parameters() if ".layers." in name}


def train_once(view: Any, path: Path, train: Callable[[Path], None]) -> None:
    """Load a view's trained weights from a file, or train them and keep them there.

    The training state (moments included) lives beside the file while training runs and is removed
    afterwards: the weights alone take a third of its room.

    Raises:
        DataError: If the file is damaged or holds another student's weights.
    """
    if not path.exists():
        state = path.with_suffix(".state")
        train(state)
        weights = {name: p.detach().contiguous() for name, p in trainable(view).items()}
        temporary = path.with_suffix(".tmp")
        save_file(weights, temporary)
        temporary.replace(path)
        state.unlink(missing_ok=True)
        return
    named = trainable(view)
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it to train again") from error
    if set(stored) != set(named):
        raise DataError(f"{path}: weights of another student; delete it to train again")
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(stored[name])


class StudentTrainer:
    """Trains and measures students, each at most once per (plan, seed, steps).

    Every student sees the same pages in the same order for the same number of steps, whoever
    proposed its plan; the order depends on the seed alone.
    """

    def __init__(
        self,
        work: Workspace,
        teacher: Teacher,
        features: Mapping[str, Features],
        replacements: Replacements | None = None,
    ) -> None:
        """Bind the trainer to a search's teacher, pages and what stands in for sub-layers."""
        self._work = work
        self._config = work.config
        self.teacher = teacher
        self._features = features
        self._replacements = replacements

    def recipe(self, steps: int) -> DistillRecipe:
        """Return the recipe for a number of steps."""
        return recipe_of(
            self._config, steps=steps, learning_rate=self._config.distill.learning_rate
        )

    def objective(self, steps: int) -> dict[str, Any]:
        """Return everything a search measurement depends on beside plan and seed."""
        fitted = self._replacements
        return {
            **({} if fitted is None else {"replacements": fitted.fingerprint}),
            "teacher": self.teacher.fingerprint,
            "train": self._features["train"].key,
            "select": self._features["select"].key,
            "distill": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in vars(self.recipe(steps)).items()
            },
        }

    def student(self, plan: Plan, seed: int, steps: int) -> Any:
        """Return the trained student of a plan: a Hugging Face model in evaluation mode.

        Raises:
            TrainingError: If its loss stops being a number.
        """
        model = build_student(self.teacher, plan, replacements=self._replacements)
        view = residual_decoder(model.decoder)
        recipe, features = self.recipe(steps), self._features["train"]
        key = content_hash([self.objective(steps), plan.hash, seed])
        path = self._config.work / "students" / f"{plan.hash}-{seed}-{steps}-{key}.safetensors"

        def train(state: Path) -> None:
            with self._work.say.stage(f"distilling {plan} (seed {seed}, {steps} steps)") as tell:
                distill(
                    view,
                    features,
                    recipe,
                    seed=seed_from("data order", seed),
                    state_file=state,
                    on_step=lambda s: tell(s.step, s.steps, f"loss {s.loss:.3f}"),
                )

        train_once(view, path, train)
        return model.eval()

    def measured(
        self, plan: Plan, source: str, *, seed: int, steps: int, split: str, phase: str
    ) -> Measurement:
        """Return how a trained student answers the questions of a split.

        Args:
            plan: The student.
            source: Who proposed it.
            seed: Seed of the training.
            steps: Steps of the training; 0 measures the teacher itself (phase `teacher`).
            split: `select` or `final`.
            phase: Phase of the measurement.
        """
        features = self._features[split]
        key = [self.objective(max(1, steps)), features.key, plan.hash, seed, steps, phase, source]

        def compute() -> dict[str, Any]:
            model = self.teacher.model if steps == 0 else self.student(plan, seed, steps)
            with self._work.say.stage(f"answering with {plan} ({split})"):
                made = measure(
                    model,
                    self.teacher,
                    features,
                    plan,
                    phase=phase,
                    source=source,
                    seed=seed,
                    steps=steps,
                    generation=self._config.generation.counted(),
                )
            return made.to_json()

        name = f"measurements/{plan.hash}-{seed}-{steps}-{split}-{content_hash(key)}"
        return Measurement.from_json(self._work.kept(name, key, compute))

    def judged(self, model: Any, plan: Plan, split: str) -> Measurement:
        """Measure a model from elsewhere on a split; nothing is kept."""
        return measure(
            model,
            self.teacher,
            self._features[split],
            plan,
            phase="full",
            source="checkpoint",
            generation=self._config.generation.counted(),
        )

    def measured_teacher(self, split: str = "final") -> Measurement:
        """Return how the teacher answers the questions of a split."""
        whole = Plan.full(self.teacher.shape.decoder.layers)
        return self.measured(whole, "teacher", seed=0, steps=0, split=split, phase="teacher")

    def __call__(self, plan: Plan, source: str) -> Measurement:
        """Distil and measure a plan for the search."""
        return self.measured(
            plan,
            source,
            seed=self._config.seed,
            steps=self._config.distill.steps,
            split="select",
            phase="short",
        )


def evaluate(trainer: StudentTrainer, student: str, split: str) -> Measurement:
    """Measure a student checkpoint on a search's pages.

    Args:
        trainer: Of the search whose pages are used.
        student: A student's folder, or `teacher`.
        split: `select` or `final`.

    Raises:
        ConfigError: If the folder holds no student.
    """
    if student == "teacher":
        return trainer.measured_teacher(split)
    model = load_student(student)
    return trainer.judged(model, plan_of(model), split)
