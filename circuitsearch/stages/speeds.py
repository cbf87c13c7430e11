"""Measured budgets in a search: what students take on this machine, measured once per plan.

A figure is kept under teacher, machine, threads and generation, so a search that goes on, its
report and every worker in the same folder read it from file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from circuitsearch.core.amounts import shown
from circuitsearch.core.budget import Budget
from circuitsearch.core.errors import ConfigError
from circuitsearch.core.files import write_json, write_text
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.core.speed import Speed
from circuitsearch.search.predictions import Prediction, calibration_plans, fit_prediction
from circuitsearch.search.space import Space
from circuitsearch.search.units import Choices
from circuitsearch.show.rows import ResultRow
from circuitsearch.students.speed import Encoding, measure_encoder, speed_of, where
from circuitsearch.teacher.loading import Teacher
from circuitsearch.workspace import Workspace

__all__ = ["StudentSpeeds", "admission", "measure_onnx", "with_speed", "write_speeds"]

SPEEDS_FOLDER = "speeds"
"""Folder of what was measured, in a search's folder."""


@dataclass(frozen=True)
class StudentSpeeds:
    """Measured figures of one teacher's students on this machine.

    Attributes:
        work: The search; its folder keeps the figures.
        teacher: The teacher.
    """

    work: Workspace
    teacher: Teacher

    @property
    def where(self) -> str:
        """The device and the number of threads."""
        return where(self.teacher.device)

    @property
    def possible(self) -> bool:
        """Whether the decoder has positions for the generation that costs are counted for."""
        counted = self.work.config.generation.counted()
        positions: int = self.teacher.model.config.decoder.max_position_embeddings
        return counted.tokens("cached") <= positions

    def of(self, plan: Plan) -> Speed:
        """Return a plan's figures, measured when they are not on file.

        Raises:
            PlanError: The plan does not fit the teacher.
            ConfigError: The generation is longer than the decoder's positions.
        """
        generation = self.work.config.generation.counted()

        def compute() -> object:
            with self.work.say.stage(f"measuring the speed of {plan}"):
                made = speed_of(self.teacher, plan, generation, encoding=self._encoding)
            return made.to_json()

        key = ["speed", *self._about, plan.hash]
        return Speed.from_json(self.work.kept(plan.hash, key, compute, self._folder))

    def predictions(self, budget: Budget, choices: Choices) -> dict[str, Prediction]:
        """Measure a few plans and predict all others from them, for every measured limit."""
        if not budget.measured:
            return {}
        plans = calibration_plans(self.teacher.shape.decoder, choices)
        found = [(plan, self.of(plan).amounts()) for plan in plans]
        return {
            limit.name: fit_prediction(
                [(plan, amounts[limit.name]) for plan, amounts in found],
                self.teacher.shape.decoder,
                self.where,
            )
            for limit in budget.measured
        }

    @property
    def _folder(self) -> Path:
        """Where figures lie: a clock gives others, so a study with measured limits needs these."""
        return self.work.folder / SPEEDS_FOLDER

    @property
    def _about(self) -> list[object]:
        """What every figure depends on beside the plan."""
        generation = asdict(self.work.config.generation.counted())
        return [self.teacher.fingerprint, self.where, generation]

    @cached_property
    def _encoding(self) -> Encoding:
        found = self.work.kept(
            "encoder",
            ["encoder", self.teacher.fingerprint, self.where],
            lambda: asdict(measure_encoder(self.teacher)),
            self._folder,
        )
        return Encoding(**found)


def admission(
    work: Workspace, teacher: Teacher, space: Space
) -> Callable[[Plan], Mapping[str, int]] | None:
    """Return what measures a plan before it may become a trial; None without measured limits.

    Raises:
        ConfigError: The study's limits were measured on another machine.
    """
    if not space.budget.measured:
        return None
    speeds = StudentSpeeds(work, teacher)
    known = sorted({one.where for one in space.predictions.values()})
    if known != [speeds.where]:
        raise ConfigError(
            f"budget: {', '.join(limit.name for limit in space.budget.measured)} is measured on "
            f"{', '.join(known)}; this is {speeds.where}, whose figures are not comparable. Work "
            "on such a machine, with as many threads (OMP_NUM_THREADS)"
        )

    def admit(plan: Plan) -> Mapping[str, int]:
        amounts = speeds.of(plan).amounts()
        for fault in space.budget.exceeded(amounts):
            work.say.note(f"{plan} is left out: {fault}")
        return amounts

    return admit


def with_speed(work: Workspace, teacher: Teacher, made: Measurement) -> Measurement:
    """Return a measurement with its plan's speed on this machine, where it can be measured."""
    speeds = StudentSpeeds(work, teacher)
    if not speeds.possible:
        return made
    return replace(made, speed=speeds.of(Plan.parse(made.plan)).to_json())


def measure_onnx(work: Workspace, model: Teacher) -> dict[str, Any]:
    """Export a checkpoint into a folder that goes again, and measure it in ONNX Runtime.

    Args:
        work: The search; its generation is what is timed.
        model: The checkpoint, a student's too.

    Returns:
        The fields of `OnnxSpeed` (nanoseconds), `memory` (bytes, or None) and `where`: runtime,
        processor, threads.

    Raises:
        ConfigError: ONNX packages are missing, the checkpoint cannot be exported, or the generation
            is longer than the model's.
    """
    from circuitsearch.students.export.files import export_onnx
    from circuitsearch.students.export.timing import onnx_memory, onnx_speed

    generation, threads = work.config.generation.counted(), torch.get_num_threads()
    with (
        work.say.stage("measuring the speed in ONNX Runtime"),
        TemporaryDirectory(prefix="circuitsearch-") as folder,
    ):
        files = export_onnx(model, Path(folder) / "onnx")
        found: dict[str, Any] = asdict(onnx_speed(files, generation, threads=threads))
        found["memory"] = onnx_memory(files, generation, threads=threads)
    return found | {"where": f"ONNX Runtime, {where(torch.device('cpu'))}"}


def write_speeds(work: Workspace, teacher: Teacher, rows: Sequence[ResultRow]) -> None:
    """Write the speed of every row's plan as `speed.json` and `speed.md`.

    They stand apart from the result table, which a rerun writes again byte by byte: no clock shows
    the same time twice.
    """
    speeds = StudentSpeeds(work, teacher)
    if not speeds.possible:
        return
    found = {row.name: speeds.of(Plan.parse(row.plan)) for row in rows}
    write_json(work.folder / "speed.json", {name: one.to_json() for name, one in found.items()})
    lines = [
        "| Student | First token | Per token | Answer | Encoder | Peak memory, decoder | total |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, one in found.items():
        times = (one.first_token, one.per_token, one.decoding, one.encoding)
        cells = [shown("latency", time) for time in times]
        cells += [shown("memory", size) for size in (one.decoder_memory, one.total_memory)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    counted = work.config.generation.counted()
    lines += [
        "",
        f"One page, {counted.prompt} prompt tokens, {counted.passes} passes, on {speeds.where}. "
        "Answer is all passes, without the encoder.",
    ]
    write_text(work.folder / "speed.md", "\n".join(lines) + "\n")
