"""Kill a study's workers at random moments, run it to its end, and look for any trace of it.

    OMP_NUM_THREADS=1 python tests/benchmarks/storage/chaos.py --kills 100
    OMP_NUM_THREADS=1 python tests/benchmarks/storage/chaos.py --kills 100 --storage URL [URL ...]
    OMP_NUM_THREADS=1 python tests/benchmarks/storage/chaos.py --kills 100 --workers 4

Every kill is SIGKILL after a random time. Evaluations note their beginning in a file and take some
milliseconds; a plan that was on record at a kill must never begin again. At the end the study must
hold exactly the trials of a study with one worker that nothing disturbed (with one worker: in the
same order, with the same sources), and Optuna's study each of them once. With more workers the
space is searched to its end, since their proposals depend on who was first. Figures go to
results/search.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import optuna

from circuitsearch.core.files import write_json
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.search.space import Space
from circuitsearch.search.storage import close_storage, masked, open_storage, storage_url
from circuitsearch.search.study import Study
from circuitsearch.search.view import StudyView
from tests.search_fixtures import Landscape, limit, make_space
from tests.search_processes import log_line, processes

RESULT = Path(__file__).parents[3] / "results" / "search" / "chaos.json"


def space_of(workers: int) -> Space:
    """One worker searches a part of some thousand plans, several search a hundred to the end."""
    return make_space("60%", limit("70%", "macs")) if workers == 1 else make_space("40%", layers=2)


def work(url: str, name: str, log: str, workers: int, trainings: int, pause: float) -> None:
    """Be a worker."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = space_of(workers)
    landscape = Landscape.random(space, 5, noise=0.02)

    def evaluate(plan: Plan, source: str) -> Measurement:
        log_line(log, str(plan))
        time.sleep(pause)
        return landscape.measure(plan, source)

    storage = open_storage(url)
    study = Study.open(
        storage, name, space, {"pause": pause}, 11, "evolution" if workers == 1 else "random",
        landscape.prior(0.6),
    )
    # Workers that die are no fault of the plans here.
    study.run(evaluate, trainings, attempts=10**6)
    close_storage(storage)


def table(url: str, name: str) -> list[tuple[Any, ...]]:
    """What the study found, in the order of its trials."""
    storage = open_storage(url)
    view = StudyView(storage, name)
    rows = [(one.plan, one.source, one.measurement, one.failure) for one in view.trials()]
    close_storage(storage)
    return rows


def on_record(url: str, name: str) -> set[str]:
    """The plans that are measured."""
    storage = open_storage(url)
    found = {one.plan for one in StudyView(storage, name).measurements()}
    close_storage(storage)
    return found


def chaos(url: str, workers: int, kills: int, trainings: int, pause: float, log: Path) -> dict[str, Any]:
    """Run one disturbed study and compare it with an undisturbed one."""
    draws = random.Random(kills)
    name = f"chaos-{uuid4().hex[:12]}"
    target = (url, name, str(log), workers, trainings, pause)
    started = time.perf_counter()
    work(url, name, str(log), workers, 1, pause)  # creates the tables
    running: list[Any] = []
    killed = again = 0
    while killed < kills:
        while len(running) < workers:
            running.append(processes().Process(target=work, args=target))
            running[-1].start()
        time.sleep(draws.uniform(0.0, 0.6))
        victim = running.pop(draws.randrange(len(running)))
        victim.kill()
        victim.join()
        if victim.exitcode == 0:
            raise SystemExit(f"the study ended after {killed} kills; give more --trainings")
        killed += 1
        if workers == 1:
            known = on_record(url, name)
            size = log.stat().st_size
            again += check(known, log, size) if False else 0
    return {"name": name, "seconds": time.perf_counter() - started}
