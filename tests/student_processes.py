"""Processes that train one student together over gloo, for the tests of `processes`.

They are started as a launcher starts them: each is told in its environment who it is.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from circuitsearch.core.errors import DataError
from circuitsearch.core.plan import Plan
from circuitsearch.processes import Processes, here
from circuitsearch.students import build_student
from circuitsearch.students.features import prepare_features
from circuitsearch.students.training.distill import (
    DistillRecipe,
    DistillResult,
    StepReport,
    distill,
)
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.loading import load_teacher
from tests.student_fixtures import noise_pages

__all__ = ["CASES", "LEARNING_RATE", "fail", "free_port", "launch", "resume", "train", "trained"]

PLAN = Plan.parse("M0:20 C2 S3[0-1] C3[1,3]")
LEARNING_RATE = 3e-3
RECIPE = DistillRecipe(
    steps=8,
    batch=5,
    learning_rate=LEARNING_RATE,
    warmup=0.05,
    kd_weight="balanced",
    temperature=2.0,
)
INSIDE = {"hidden_mse": "balanced", "cross_attention_kl": 0.5, "forward_kl": 1.0}


def _elastic(step: int) -> Plan:
    """Sub-layers that some steps leave without gradient."""
    return Plan.parse(("S0 C0 M0", "C1[1,3] M2", "S0[2] C1 M3:20")[step % 3])


CASES: dict[str, tuple[DistillRecipe, dict[str, Any]]] = {
    "balanced": (RECIPE, {}),
    "accumulated": (replace(RECIPE, batch=7, accumulate=2), {}),
    "one question": (replace(RECIPE, batch=1), {}),
    "elastic": (replace(RECIPE, batch=2), {"plan_of_step": _elastic}),
    "inside": (replace(RECIPE, losses=INSIDE, kd_weight=None, pages_together=False), {}),
}


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def launch(count: int, target: Callable[..., None], *args: Any) -> tuple[list[int | None], float]:
    """Run a function in that many processes; return their exit codes and the seconds they took.

    Those that are still there after a minute are killed (None).
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.student_processes"])
    port, started = free_port(), time.perf_counter()
    children = [
        context.Process(target=_child, args=(index, count, port, target, args))
        for index in range(count)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(max(0.0, 60 - (time.perf_counter() - started)))
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
        child.join()
    return codes, time.perf_counter() - started


def _child(
    index: int, count: int, port: int, target: Callable[..., None], args: tuple[Any, ...]
) -> None:
    told = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(number) for name, number in told.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    target(*args)


def trained(
    teacher: Path,
    features: Path,
    case: str,
    processes: Processes,
    *,
    seed: int = 1,
    broken: Callable[[int], None] = lambda reading: None,
    **options: Any,
) -> tuple[dict[str, Tensor], DistillResult]:
    """Train a tiny student by a case; return the weights of its layers.

    Args:
        teacher: folder of the teacher.
        features: folder of the features.
        case: one of `CASES`.
        processes: those that train.
        seed: of the data order.
        broken: called before each part of a batch is read, with the number of the reading.
        options: of `distill`.
    """
    recipe, given = CASES[case]
    whole = load_teacher(str(teacher))
    read = processes.main_first(lambda: prepare_features(whole, noise_pages(10), features))
    intact, readings = read.read, itertools.count()

    def reading(indices: Any) -> Any:
        broken(next(readings))
        return intact(indices)

    vars(read)["read"] = reading
    student = build_student(whole, Plan.full(4) if "plan_of_step" in given else PLAN)
    if case == "inside":
        options["teacher"] = whole.decoder
    view = residual_decoder(student)
    result = distill(view, read, recipe, seed=seed, processes=processes, **given, **options)
    named = student.decoder.named_parameters()
    return {name: p.detach().clone() for name, p in named if ".layers." in name}, result


def train(teacher: Path, folder: Path) -> None:
    """Train every case; each process leaves its weights, and the loss it was told."""
    processes, rank = here(), os.environ["RANK"]
    for case in CASES:
        weights, result = trained(teacher, folder / "features", case, processes)
        told = json.dumps([result.loss, dict(result.weights)])
        save_file(weights, folder / f"{case}-{rank}.safetensors", metadata={"told": told})


def resume(teacher: Path, folder: Path, stop: int) -> None:
    """Train with a state file until a step, then again to the end; a copy of the state is left."""
    given = teacher, folder / "features", "balanced", here()
    kept: dict[str, Any] = {"state_file": folder / "state.safetensors", "save_every": 2}
    with contextlib.suppress(KeyboardInterrupt):
        trained(*given, **kept, on_step=lambda report: _interrupt(report, stop))
    if here().is_main:  # which the others wait for before they write anew
        shutil.copy(kept["state_file"], folder / "half.safetensors")
    weights, _ = trained(*given, **kept)
    save_file(weights, folder / f"resumed-{os.environ['RANK']}.safetensors")


def _interrupt(report: StepReport, stop: int) -> None:
    if report.step == stop:
        raise KeyboardInterrupt


def fail(teacher: Path, folder: Path) -> None:
    """Fail in several ways, one after the other; each process leaves what was raised in it.

    At last process 1 is gone without a word.
    """
    processes, rank = here(), int(os.environ["RANK"])
    given = teacher, folder / "features", "balanced", processes

    def only(process: int, act: Callable[[], Any]) -> None:
        if rank == process:
            act()

    def full() -> None:
        raise DataError("the disk is full")

    def on_disks_of_their_own() -> None:
        own = folder / f"disk-{min(rank, 1)}.safetensors"
        kept: dict[str, Any] = {"state_file": own, "save_every": 2}
        trained(*given, state_file=folder / "disk-0.safetensors")
        with contextlib.suppress(KeyboardInterrupt):
            older = {**kept, "state_file": folder / "disk-1.safetensors"}
            trained(*given, **older, on_step=lambda report: _interrupt(report, 5))
        trained(*given, **kept)

    ways: dict[str, Callable[[], Any]] = {
        "in a step": lambda: trained(*given, broken=lambda n: only(1, lambda: 1 // (n != 6))),
        "on the main process": lambda: processes.on_main(full),
        "of a reader": lambda: processes.main_first(lambda: only(1, full)),
        "between meetings": lambda: processes.together(
            lambda: [only(1, full), processes.on_main(lambda: 1)]
        ),
        "of all": lambda: processes.together(full),
        "other seeds": lambda: trained(*given, seed=rank),
        "other states": on_disks_of_their_own,
        "not a word": lambda: trained(
            *given, broken=lambda n: only(1, lambda: os._exit(9)) if n == 6 else None
        ),
    }
    for name, way in ways.items():
        started = time.perf_counter()
        try:
            way()
        except Exception as error:
            said = {"kind": type(error).__name__, "text": str(error)}
            said["seconds"] = time.perf_counter() - started
            (folder / f"{name}-{rank}.json").write_text(json.dumps(said))
