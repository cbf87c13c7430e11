"""The shared trainer as the pipeline uses it: train once, keep the weights, measure once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from circuitsearch.config import GenerationConfig, SearchConfig
from circuitsearch.core.answers import AnlsRule, Answers, write_answers
from circuitsearch.core.cost import recorded_costs
from circuitsearch.core.errors import ConfigError, DataError, TrainingError, raise_together
from circuitsearch.core.files import content_hash, seed_from
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.discovery.ablation import Means, unit_means
from circuitsearch.processes import Processes
from circuitsearch.students.baselines import Masks, masked
from circuitsearch.students.evaluate import examine
from circuitsearch.students.features import Features
from circuitsearch.students.plan_view import NeuronOrder, neuron_order
from circuitsearch.students.replacements import Replacements
from circuitsearch.students.saving.checkpoint import load_student
from circuitsearch.students.student import build_student, plan_of
from circuitsearch.students.training.distill import DistillRecipe, distill
from circuitsearch.teacher.decoders import ResidualDecoder, residual_decoder
from circuitsearch.teacher.loading import Teacher
from circuitsearch.workspace import Workspace

from .kept_answers import (
    FinalUses,
    by_rule,
    find_kept,
    one_run,
    reading_problems,
    trained_as,
    weights_of,
)
from .speeds import with_speed
from .weights import recipe_of, train_once

__all__ = ["Build", "StudentTrainer", "evaluate"]

_AVERAGED = 512
"""Most questions that the averages of `distill.compensate` are taken over."""
_AVERAGED_BYTES = 2**31  # of their pages, which are held together: 109 pages of Donut


@dataclass(frozen=True)
class Build:
    """How a student is made from its plan, where the plan does not say everything.

    Attributes:
        neurons: which neurons its widths keep, best first, by feed-forward.
        masks: which single weights stay.
    """

    neurons: NeuronOrder = field(default_factory=dict)
    masks: Masks | None = None

    @property
    def key(self) -> list[Any]:
        """Part of every key of what is built so; empty where the plan says everything."""
        order = [[str(sublayer), *ranked] for sublayer, ranked in sorted(self.neurons.items())]
        return order + ([self.masks.fingerprint] if self.masks else [])


class StudentTrainer:
    """Trains students, each at most once per (plan, seed, steps), and measures them.

    Every student sees the same pages in the same order for the same number of steps, whoever
    proposed its plan; the order depends on the seed alone.
    """

    def __init__(
        self,
        work: Workspace,
        teacher: Teacher,
        features: Mapping[str, Features],
        replacements: Replacements | None = None,
        elastic: Callable[[], ResidualDecoder | None] = lambda: None,
    ) -> None:
        """Bind the trainer to a search's teacher, pages and what stands in for sub-layers.

        Args:
            work: The search.
            teacher: Whose students are trained.
            features: Cached pages by split.
            replacements: What stands in for sub-layers.
            elastic: Gives the elastic teacher; asked where students begin with its weights.
        """
        self._work = work
        self._config = work.config
        self.teacher = teacher
        self._features = features
        self._replacements = replacements
        self._elastic = elastic
        self._averages: Means | None = None

    @property
    def config(self) -> SearchConfig:
        """The search's configuration."""
        return self._config

    @property
    def processes(self) -> Processes:
        """Those that train a student together."""
        return self._work.processes

    @property
    def rule(self) -> AnlsRule:
        """The search's reading of ANLS."""
        return self._config.evaluation.anls

    def questions(self, split: str) -> int:
        """Return the number of questions of a split."""
        return len(self._features[split].examples)

    def recipe(self, steps: int) -> DistillRecipe:
        """Return the recipe for a number of steps."""
        return recipe_of(
            self._config, steps=steps, learning_rate=self._config.distill.learning_rate
        )

    def objective(self, steps: int) -> dict[str, Any]:
        """Return everything a search measurement depends on beside plan and seed."""
        return {
            **self._trained(steps),
            **({} if self.rule == "rrc" else {"anls": self.rule}),
            "select": self._features["select"].key,
        }

    def _trained(self, steps: int) -> dict[str, Any]:
        """Return what a student's weights depend on beside plan, seed and build."""
        fitted = self._replacements
        return {
            **({} if fitted is None else {"replacements": fitted.fingerprint}),
            **({} if self._config.distill.start == "teacher" else {"start": self._beginning()}),
            **({"averages": self._averaging} if self._config.distill.compensate else {}),
            "teacher": self.teacher.fingerprint,
            "train": self._features["train"].key,
            "distill": self.recipe(steps).to_json(),
        }

    def _beginning(self) -> dict[str, Any]:
        """Return what decides the elastic teacher's weights, beside teacher and pages.

        The scores order heads and weigh units.
        """
        told = self._config.to_json()
        names = ("elastic", "budget", "generation", "space", "seed", "scores")
        # how pages are dealt; what they hold is in the features' keys, wherever the files lie
        dealt = {name: value for name, value in told["data"].items() if not isinstance(value, str)}
        for later in ("untrained", "interpolation"):  # say how plans are ranked by it
            told["elastic"].pop(later)
        return {**{name: told[name] for name in names}, "data": dealt}

    def student(self, plan: Plan, seed: int, steps: int, build: Build | None = None) -> Any:
        """Return the trained student of a plan: a Hugging Face model in evaluation mode.

        Raises:
            TrainingError: If its loss stops being a number, or diverges, or memory runs out.
        """
        how = build or Build()
        elastic = None
        if self._config.distill.start == "elastic":
            elastic = self.processes.main_first(self._elastic)
        # Widths of the elastic teacher were cut by the teacher's ranks: its own have moved.
        neurons = {} if elastic is None else neuron_order(self.teacher.decoder)
        source: Any = elastic
        model = build_student(
            self.teacher,
            plan,
            neurons={**neurons, **how.neurons},
            source=None if elastic is None else source.model,
            replacements=self._replacements,
            compensate=self._means(elastic or self.teacher.decoder),
        )
        view = residual_decoder(model.decoder)
        recipe, features = self.recipe(steps), self._features["train"]
        about = self._trained(steps)
        if elastic is not None:  # its weights depend on more: scores order heads for them
            about["select"] = self._features["select"].key
        key = content_hash([about, plan.hash, seed, *how.key])
        path = self._config.work / "students" / f"{plan.hash}-{seed}-{steps}-{key}.safetensors"
        logs = self._config.output / "tensorboard" / path.stem

        def train(state: Path) -> None:
            stage = f"distilling {plan} (seed {seed}, {steps} steps)"
            with self._work.say.stage(stage) as tell, _enough_memory(stage):
                distill(
                    view,
                    features,
                    recipe,
                    seed=seed_from("data order", seed),
                    state_file=state,
                    teacher=self.teacher.decoder,
                    log_dir=logs if self._config.distill.tensorboard else None,
                    on_step=lambda s: tell(s.step, s.steps, s.words),
                    processes=self.processes,
                )

        with masked(view, how.masks) if how.masks else nullcontext():
            train_once(view, path, train, self.processes)
        return model.eval()

    @property
    def _averaging(self) -> list[int]:
        """What decides the averages of removed parts, beside teacher and pages."""
        return [_AVERAGED, self._config.seed]

    def _means(self, whole: ResidualDecoder) -> Means | None:
        """Return the averages that students begin with; of a decoder they are taken once."""
        if not self._config.distill.compensate:
            return None
        if self._averages is None:
            features = self._features["train"]
            asked = features.drawn(_AVERAGED, "averages", *self._averaging)
            asked = asked[: max(1, _AVERAGED_BYTES // features.page_bytes)]
            self._averages = unit_means(whole, features.sample(asked, self.teacher.device))
        return self._averages

    def measured(
        self, plan: Plan, source: str, *, seed: int, steps: int, split: str, phase: str
    ) -> Measurement:
        """Return how well a trained student answers the questions of a split.

        Args:
            plan: The student.
            source: Who proposed it.
            seed: Seed of the training.
            steps: Steps of the training; 0 measures the teacher itself (phase `teacher`).
            split: `select` or `final`.
            phase: Phase of the measurement.
        """
        compute, name, key = self._measuring(plan, source, seed, steps, split, phase)
        made = Measurement.from_json(self._work.kept(name, key, compute))
        return replace(made, source=source)  # another source may have had it measured

    def answered(
        self,
        plan: Plan,
        source: str,
        *,
        seed: int,
        steps: int,
        split: str,
        phase: str,
        build: Build | None = None,
    ) -> tuple[Measurement, Answers]:
        """Like `measured`, with the answers, which are kept beside the measurement."""
        measuring = self._measuring(plan, source, seed, steps, split, phase, build)
        made, answers = self._with_answers(*measuring)
        return replace(made, source=source), answers

    def _with_answers(
        self, compute: Callable[[], dict[str, Any]], name: str, key: Any
    ) -> tuple[Measurement, Answers]:
        """Return a measurement and its answers, from file when the inputs are unchanged."""
        made = Measurement.from_json(self._work.kept(name, key, compute))
        path = self._config.work / f"{name}.jsonl"
        try:
            return made, one_run(path)
        except DataError:
            # kept by a version that did not keep answers, or damaged: ask again
            compute()
            return made, one_run(path)

    def _measuring(
        self,
        plan: Plan,
        source: str,
        seed: int,
        steps: int,
        split: str,
        phase: str,
        build: Build | None = None,
    ) -> tuple[Callable[[], dict[str, Any]], str, list[Any]]:
        """Return what measures a trained student, under which name and key the result is kept."""
        features = self._features[split]
        trained = self.objective(steps) if steps else {"anls": self.rule}  # or the teacher itself
        key = [trained, features.key, plan.hash, seed, steps, phase]
        key += (build or Build()).key
        # the costs beside the quality are those of so long a prompt and answer
        generation = self._config.generation
        key += [] if generation == GenerationConfig() else [generation.model_dump(mode="json")]
        name = f"measurements/{plan.hash}-{seed}-{steps}-{split}-{content_hash(key)}"

        def compute() -> dict[str, Any]:
            model = self.teacher.model if steps == 0 else self.student(plan, seed, steps, build)
            about = {"phase": phase, "source": source, "seed": seed, "steps": steps}
            return self._examined(model, plan, split, name, about, "run").to_json()

        return compute, name, key

    def _examined(
        self, model: Any, plan: Plan, split: str, name: str, about: dict[str, Any], command: str
    ) -> Measurement:
        """Ask a model the questions of a split; keep the answers, count the use of final pages."""
        features = self._features[split]
        uses = FinalUses(self._work.folder)
        if split == "final":
            uses.lines()  # a damaged file is told before the questions are asked
        with self._work.say.stage(f"answering with {plan} ({split})"):
            made, rows = examine(
                model,
                self.teacher,
                features,
                plan,
                generation=self._config.generation.counted(),
                rule=self.rule,
                **about,
            )
        if split == "final" or made.source == "checkpoint":
            made = with_speed(self._work, self.teacher, made)
        weights = weights_of(model)
        if split == "final" and made.phase != "teacher":
            uses.add(made, weights, command)
        answers = Answers(
            teacher=self.teacher.fingerprint,
            pages=features.key,
            plan=made.plan,
            plan_hash=made.plan_hash,
            weights=weights,
            split=split,
            seed=made.seed,
            steps=made.steps,
            decoding={"method": "greedy", "max_length": self.teacher.tokens.max_length},
            rule=self.rule,
            rows=rows,
        )
        write_answers(self._config.work / f"{name}.jsonl", answers)
        return made

    def judged(self, model: Any, plan: Plan, split: str) -> tuple[Measurement, Answers]:
        """Measure a model from elsewhere on a split, once; the same weights are served from file.

        A checkpoint does not say how long it was trained: seed and steps are 0 unless the search
        has measured this very student itself, on any split.
        """
        weights, features = weights_of(model), self._features[split]
        plan = plan.fitted(self.teacher.shape.decoder)
        folder = self._config.work / "measurements"
        who = {"teacher": self.teacher.fingerprint, "weights": weights}
        kept = find_kept(folder, plan_hash=plan.hash, split=split, pages=features.key, **who)
        if kept is not None:
            return kept
        seed, steps = trained_as(folder, plan_hash=plan.hash, **who)
        key: list[Any] = ["checkpoint", self.teacher.fingerprint, features.key, plan.hash, weights]
        key += [seed, steps] if steps else []
        name = f"measurements/{plan.hash}-checkpoint-{split}-{content_hash(key)}"

        def compute() -> dict[str, Any]:
            about = {"phase": "full", "source": "checkpoint", "seed": seed, "steps": steps}
            return self._examined(model, plan, split, name, about, "evaluate").to_json()

        return self._with_answers(compute, name, key)

    def priced(self, made: Measurement) -> Measurement:
        """Return a measurement with costs and speed at this search's generation."""
        generation = self._config.generation.counted()
        spent = recorded_costs(Plan.parse(made.plan), self.teacher.shape, generation)
        return replace(with_speed(self._work, self.teacher, made), cost=spent)

    def answered_teacher(self, split: str = "final") -> tuple[Measurement, Answers]:
        """Return how well the teacher answers the questions of a split, with the answers."""
        whole = Plan.full(self.teacher.shape.decoder.layers)
        return self.answered(whole, "teacher", seed=0, steps=0, split=split, phase="teacher")

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


@contextmanager
def _enough_memory(doing: str) -> Iterator[None]:
    """Turn running out of memory into the failure of one training.

    On the CPU torch has no class of its own for it.
    """
    try:
        yield
    except RuntimeError as error:
        allocator = "DefaultCPUAllocator: can't allocate memory" in str(error)
        if not allocator and not isinstance(error, torch.OutOfMemoryError):
            raise
        raise TrainingError(
            f"{doing}: out of memory ({str(error).splitlines()[0]}); raise distill.accumulate, "
            "which cuts a step's batch into parts, or give it a device with more memory"
        ) from error


def evaluate(
    trainer: StudentTrainer, student: str, split: str, rule: AnlsRule | None = None
) -> tuple[Measurement, Answers]:
    """Measure a student checkpoint on a search's pages.

    Args:
        trainer: Of the search whose pages are used.
        student: A student's folder, or `teacher`.
        split: `select` or `final`.
        rule: Reading of ANLS; default that of the search.

    Returns:
        The measurement and the answers behind it.

    Raises:
        ConfigError: If the folder holds no student, or that of another teacher.
    """
    if student == "teacher":
        made, answers = trainer.answered_teacher(split)
    else:
        model = load_student(student, stock=True).to(trainer.teacher.device)
        problems = reading_problems(model, trainer.teacher)
        raise_together(problems, ConfigError, f"Student {student!r}")
        made, answers = trainer.judged(model, plan_of(model), split)
    made = trainer.priced(made)
    parses = trainer.teacher.tokens.prompt.parses
    return by_rule(made, answers, rule or trainer.rule, parses=parses)
