"""Would several small students train faster side by side than one after the other?

    python tests/benchmarks/students/side_by_side.py --out results/students/side_by_side

Two questions, because a machine can be shared in two ways:

* *In one process*: students of one study meet the same batches in the same order, so what a step
  takes from the batch alone (reading states and logits, the teacher's probabilities, embeddings)
  could be computed once for all of them. Its share of a step bounds the gain. Processor seconds on
  one thread.
* *On one machine*: the same students by one process with all cores, and by one process per core
  with a thread each (`circuitsearch worker`, started as often as there are cores). Seconds by the
  clock, so nothing else may run.

The shipped shape with random weights on rendered pages. Rounds alternate, so a drift of the machine
meets all alike; figures are medians over rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from circuitsearch.core.files import write_json, write_text
from circuitsearch.core.plan import Plan
from circuitsearch.students import build_student
from circuitsearch.students.features import Features, prepare_features
from circuitsearch.students.losses.logits import Targets
from circuitsearch.students.training.distill import DistillRecipe
from circuitsearch.students.training.trainer import Trainer, only_layers_train
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.documents.collate import IGNORED
from circuitsearch.teacher.documents.synthetic import rendered_pages
from circuitsearch.teacher.loading import Teacher, load_teacher
from circuitsearch.teacher.recipe import Sizes, new_model, new_processor, save_checkpoint

PLANS = {
    "31 %": "S0 C0 S1 S2 C3",
    "18 %": "S0 C0[1,4,7] M0:128 S1[4,6] C1[1,5] C2[2-3] C3[1,5-6]",
    "7 %": "S0[0,5-6] C0[4] M0:64 S1[4,6] C3[1]",
}
STEPS = 30


def recipe() -> DistillRecipe:
    """The searches' recipe: 64 questions a step."""
    return DistillRecipe(
        steps=10_000,
        batch=64,
        learning_rate=1e-3,
        warmup=0.05,
        kd_weight=1.0,
        temperature=2.0,
    )


def material(folder: Path) -> tuple[Teacher, Features]:
    """The teacher in a folder, made where it is not there, and its cached pages."""
    path = folder / "teacher"
    if not path.exists():
        processor = new_processor(Sizes())
        torch.manual_seed(0)
        save_checkpoint(new_model(Sizes(), processor.tokenizer), processor, path)
    teacher = load_teacher(str(path))
    pages = rendered_pages(200, "benchmark")
    return teacher, prepare_features(teacher, pages, folder / "features")


def train(folder: Path, plan: str, steps: int, seconds: Callable[[], float]) -> float:
    """Train one student for some steps behind two that are left out; return what these take."""
    teacher, features = material(folder)
    view = residual_decoder(build_student(teacher, Plan.parse(plan)))
    with only_layers_train(view) as named:
        trainer = Trainer(view, features, recipe(), 0, None, named)
        weights = trainer.weights()
        for step in range(2):
            trainer.step(step, weights)
        started = seconds()
        for step in range(2, steps + 2):
            trainer.step(step, weights)
        return seconds() - started


def shared_part(folder: Path, steps: int) -> float:
    """Return processor seconds of what steps take from their batches alone."""
    teacher, features = material(folder)
    view = residual_decoder(build_student(teacher, Plan.full(4)))
    with only_layers_train(view) as named:
        trainer = Trainer(view, features, recipe(), 0, None, named)
        batches = [trainer._order.indices(step) for step in range(steps)]
    started = time.process_time()
    with torch.no_grad():
        for indices in batches:
            read = features.read(indices)
            labels = read.batch.labels
            targets = Targets(labels[labels != IGNORED], read.teacher, 2.0)
            assert targets.teacher is not None
            targets.teacher.log_probabilities(2.0).exp()
            view.embed(read.batch.ids)
    return time.process_time() - started


def in_one_process(folder: Path, rounds: int) -> dict[str, Any]:
    """Return processor seconds of a step and of its shared part."""
    torch.set_num_threads(1)
    shared: list[float] = []
    whole: dict[str, list[float]] = {name: [] for name in PLANS}
    for _ in range(rounds):
        shared.append(shared_part(folder, STEPS) / STEPS)
        for name, plan in PLANS.items():
            whole[name].append(train(folder, plan, STEPS, time.process_time) / STEPS)
    return {
        "shared": statistics.median(shared),
        "step": {name: statistics.median(taken) for name, taken in whole.items()},
    }


def _alone(folder: Path, plan: str, steps: int) -> float:
    torch.set_num_threads(1)
    return train(folder, plan, steps, time.perf_counter)


def on_one_machine(folder: Path, rounds: int, cores: int, steps: int) -> dict[str, Any]:
    """Return seconds by the clock of as many students as there are cores, both ways."""
    together: dict[str, list[float]] = {name: [] for name in PLANS}
    turns: dict[str, list[float]] = {name: [] for name in PLANS}
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        list(pool.map(_alone, [folder] * cores, [PLANS["7 %"]] * cores, [1] * cores))  # imports
        for _ in range(rounds):
            for name, plan in PLANS.items():
                given: Sequence[Any] = [folder] * cores, [plan] * cores, [steps] * cores
                together[name].append(max(pool.map(_alone, *given)))
                torch.set_num_threads(cores)
                turns[name].append(
                    sum(train(folder, plan, steps, time.perf_counter) for _ in range(cores))
                )
    return {
        name: {
            "in turn, all cores": statistics.median(turns[name]),
            "one process per core": statistics.median(together[name]),
        }
        for name in PLANS
    }


def table(found: dict[str, Any]) -> str:
    """Return both answers as Markdown."""
    one, many = found["process"], found["machine"]
    lines = [
        "# Students side by side",
        "",
        "Made by `tests/benchmarks/students/side_by_side.py`: 64 questions a step, shipped shape; "
        f"medians over {found['rounds']} rounds. *From the batch alone*: reading, the teacher's "
        "probabilities and embeddings, all that students trained side by side in one process could "
        f"share. *In turn* and *per core*: {found['cores']} students of "
        f"{found['steps']} steps, by one process with {found['cores']} threads, and by "
        f"{found['cores']} processes with a thread each.",
        "",
        "| student | step, one thread | from the batch alone | most that sharing gains | in turn | "
        "per core | in turn / per core |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, step in one["step"].items():
        turn, core = many[name]["in turn, all cores"], many[name]["one process per core"]
        lines.append(
            f"| `{PLANS[name]}` ({name}) | {1000 * step:.1f} ms | {1000 * one['shared']:.1f} ms | "
            f"{100 * one['shared'] / step:.0f} % | {turn:.1f} s | {core:.1f} s | "
            f"**{turn / core:.2f}** |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure both ways and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100, help="of students on the machine")
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        material(folder)  # once, before processes ask for it
        found = {
            "rounds": options.rounds,
            "cores": cores,
            "steps": options.steps,
            "machine": on_one_machine(folder, options.rounds, cores, options.steps),
            "process": in_one_process(folder, options.rounds),
        }
    write_json(options.out.with_suffix(".json"), found)
    write_text(options.out.with_suffix(".md"), table(found))


if __name__ == "__main__":
    main()
