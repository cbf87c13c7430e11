"""Kill a study's workers at random moments, run it to its end, and look for any trace of it.

    OMP_NUM_THREADS=1 python tests/benchmarks/storage/chaos.py --kills 100
    OMP_NUM_THREADS=1 python tests/benchmarks/storage/chaos.py --kills 100 --storage URL [URL ...]

Every kill is SIGKILL after a random time, first with one worker that is started anew each time,
then with four at a time. Evaluations take some milliseconds and note their beginning in a file.

* A plan that was on record at a kill must never begin again.
* At the end Optuna's study must hold every trial of the study once, in Optuna's words.
* With one worker the trials must be those of a study that nothing disturbed: the same plans, in
  the same order, from the same sources, with the same measurements.
* With four workers, which evaluate a list of queued plans, every plan must be measured once.

Figures go to results/search.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import optuna

from circuitsearch.core.files import write_json
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.search.storage.connection import close_storage, open_storage, storage_url
from circuitsearch.search.storage.view import StudyView
from circuitsearch.search.study import Study
from tests.search_fixtures import Landscape
from tests.search_processes import log_line, processes, space

RESULT = Path(__file__).parents[3] / "results" / "search" / "chaos.json"
MOST = 2000  # trainings, never reached while workers are killed
PAUSE = {1: 0.02, 4: 0.5}  # seconds that an evaluation takes, by number of workers
LIFE = 2.0  # seconds of the longest life


def opened(url: str, name: str) -> Study:
    """Create or open the study."""
    landscape = Landscape.random(space(), 5, noise=0.02)
    storage = open_storage(url)
    return Study.open(storage, name, space(), {}, 11, "random", landscape.prior(0.6))


def work(url: str, name: str, log: str, trainings: int, pause: float, ready: Any = None) -> None:
    """Be a worker."""
    if ready is not None:
        ready.set()  # from here on it may be killed
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    landscape = Landscape.random(space(), 5, noise=0.02)

    def evaluate(plan: Plan, source: str) -> Measurement:
        log_line(log, str(plan))
        time.sleep(pause)
        return landscape.measure(plan, source)

    study = opened(url, name)
    # That workers die is no fault of the plans here.
    study.run(evaluate, trainings, attempts=10**6)
    close_storage(study._storage)


def read(url: str, name: str) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """What the study holds, and what Optuna shows of it."""
    storage = open_storage(url)
    rows = [
        (one.plan, one.source, one.state, one.measurement)
        for one in StudyView(storage, name).trials()
    ]
    seen = [
        (trial.user_attrs["plan"], trial.value, all(v <= 0 for v in trial.constraints.values()))
        for trial in optuna.load_study(storage=storage, study_name=name).trials
    ]
    close_storage(storage)
    return rows, seen


def kill(
    url: str, name: str, log: Path, workers: int, kills: int, trainings: int
) -> list[tuple[int, set[str]]]:
    """Kill workers; return, for every kill, the length of the log and the plans on record."""
    draws = random.Random(kills)
    records, running = [], []
    for _ in range(kills):
        while len(running) < workers:
            ready = processes().Event()
            target = (url, name, str(log), trainings, PAUSE[workers], ready)
            running.append(processes().Process(target=work, args=target))
            running[-1].start()
            ready.wait()
        time.sleep(draws.uniform(0.0, LIFE) / workers)
        victim = running.pop(draws.randrange(len(running)))
        victim.kill()
        victim.join()
        if victim.exitcode == 0:
            raise SystemExit(f"a worker left after {len(records)} kills: {read(url, name)[0]}")
        known = {row[0] for row in read(url, name)[0] if row[2] == "measured"}
        records.append((len(lines(log)), known))
    for one in running:
        one.kill()
        one.join()
    return records


def lines(log: Path) -> list[str]:
    """Return the plans that were begun, in order."""
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def chaos(url: str, workers: int, kills: int, folder: Path) -> dict[str, Any]:
    """Run one disturbed study and say what differs from an undisturbed one."""
    started = time.perf_counter()
    name, log = f"chaos-{uuid4().hex[:12]}", folder / f"log-{uuid4().hex}"
    study = opened(url, name)
    plans = list(islice(space().enumerate(), MOST)) if workers > 1 else []
    study.queue([(plan, "all") for plan in plans])
    records = kill(url, name, log, workers, kills, MOST)
    done = study.status().measured
    trainings = done + 20
    work(url, name, str(log), trainings, 0.0)
    rows, seen = read(url, name)
    finished = [row for row in rows if row[2] == "measured"]
    begun = lines(log)
    found = {
        "storage": storage_url(url).get_backend_name(),
        "workers at a time": workers,
        "kills": kills,
        "trainings": trainings,
        "evaluations begun": len(begun),
        "begun again though on record": sum(
            plan in known for length, known in records for plan in set(begun[length:])
        ),
        "trials lost": trainings - len({row[0] for row in finished}),
        "not finished": len([row for row in rows if row[2] not in ("measured", "queued")]),
        "optuna shows": len(seen),
        "optuna shows twice or wrongly": len(seen)
        - len(set(seen) & {(row[0], row[3].quality, True) for row in finished}),
    }
    if workers == 1:
        quiet = str(folder / f"quiet-{uuid4().hex}.db")
        work(quiet, name, str(folder / "quiet.log"), trainings, 0.0)
        found["equal to the undisturbed study"] = rows == read(quiet, name)[0]
    else:
        order = [row[0] for row in rows]
        found["plans in their order"] = order == [str(plan) for plan in plans]
    close_storage(study._storage)
    return {**found, "seconds": round(time.perf_counter() - started, 1)}


def main() -> int:
    """Run every storage with one and with four workers; 1 when anything differed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--storage", nargs="*", default=[], help="further databases")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for url in [os.path.join(folder, "study.db"), *arguments.storage]:
            for workers in PAUSE:
                found.append(chaos(url, workers, arguments.kills, Path(folder)))
                sys.stdout.write(f"{found[-1]}\n")
                sys.stdout.flush()
    write_json(arguments.output, found)
    wrong = ("begun again though on record", "trials lost", "not finished")
    wrong += ("optuna shows twice or wrongly",)
    right = ("equal to the undisturbed study", "plans in their order")
    bad = [row for row in found if any(row[key] for key in wrong)]
    bad += [row for row in found if not all(row.get(key, True) for key in right)]
    bad += [row for row in found if row["optuna shows"] != row["trainings"]]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
