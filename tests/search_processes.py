"""Workers in processes of their own, for the tests of studies that many workers run."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna

from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.search.space import Space
from circuitsearch.search.storage.connection import close_storage, open_storage
from circuitsearch.search.study import Study
from tests.search_fixtures import Landscape, limit, make_space

__all__ = [
    "begun",
    "create_and_work",
    "log_line",
    "new_study",
    "processes",
    "space",
    "work",
    "workers",
]


def processes() -> Any:
    """Children of a server that has the imports done; to fork pytest is not safe with threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.search_processes"])
    return context


def space() -> Space:
    """The space that these workers search: some thousand plans."""
    return make_space("60%", limit("70%", "macs"))


def new_study(url: str, name: str) -> Study:
    """Create the study that they run; its sampler takes no time worth mentioning."""
    return Study.open(open_storage(url), name, space(), {"steps": 3}, 11, "random")


def log_line(log: str, text: str) -> None:
    """Append a line in one piece."""
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"{text}\n")


def begun(log: Path) -> list[str]:
    """Return the plans that were begun, in order, by all workers together."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [line.split(" ", 2)[2] for line in lines if line.startswith("begin ")]


def work(
    url: str, name: str, log: str, trainings: int, pause: float = 0.0, lease: float = 120.0
) -> None:
    """Be a worker: note every plan that is begun or ended, then return its quality."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    landscape = Landscape.random(space(), 5, noise=0.02)

    def evaluate(plan: Plan, source: str) -> Measurement:
        log_line(log, f"begin {os.getpid()} {plan}")
        time.sleep(pause)
        measured = landscape.measure(plan, source)
        log_line(log, f"end {os.getpid()} {plan}")
        return measured

    storage = open_storage(url)
    Study.attach(storage, name).run(evaluate, trainings, lease=lease, attempts=1000)
    close_storage(storage)


def create_and_work(url: str, name: str, log: str, trainings: int) -> None:
    """Be one of several workers that create the database and the study at the same moment."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    close_storage(new_study(url, name)._storage)
    work(url, name, log, trainings)


@contextmanager
def workers(count: int, target: Callable[..., None], *args: Any) -> Iterator[list[Any]]:
    """Start that many processes; at the end wait for them, and kill them after two minutes."""
    started = [processes().Process(target=target, args=args) for _ in range(count)]
    for one in started:
        one.start()
    try:
        yield started
        for one in started:
            one.join(120)
    finally:
        for one in started:
            one.kill()
            one.join()
