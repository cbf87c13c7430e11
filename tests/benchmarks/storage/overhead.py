"""Time what a study adds to each training, up to 1,000 trials of 140 units.

    OMP_NUM_THREADS=1 python tests/benchmarks/storage/overhead.py
    OMP_NUM_THREADS=1 python tests/benchmarks/storage/overhead.py --storage URL [URL ...]

The decoder has 4 layers of 16 heads, kept one by one, and three widths per feed-forward: 140 units.
Evaluating takes no time, so that what is left is the study: claim, propose, record, mirror. For
comparison, Optuna's `add_trial` stores trials of the same parameters. Times are wall-clock
medians in milliseconds over the last tenth of the trials. Results go to results/search.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import optuna
from optuna.storages import RDBStorage

from circuitsearch.core.budget import Budget
from circuitsearch.core.files import write_json
from circuitsearch.core.plan import Plan
from circuitsearch.core.shapes import DecoderShape, EncoderShape, TeacherShape
from circuitsearch.search.elastic import drawn
from circuitsearch.search.samplers import Prior
from circuitsearch.search.space import Space
from circuitsearch.search.storage.connection import close_storage, masked, open_storage, storage_url
from circuitsearch.search.storage.ledger import Ledger
from circuitsearch.search.storage.mirror import Finished, Mirror
from circuitsearch.search.storage.recall import Recall
from circuitsearch.search.storage.view import TrialRecord
from circuitsearch.search.study import Study
from circuitsearch.search.units import Choices
from tests.search_fixtures import Landscape, limit

RESULT = Path(__file__).parents[3] / "results" / "search" / "overhead.json"
RANKED = 4000
PARTS = {
    "claim": (Ledger, "claim"),
    "history": (Recall, "history"),
    "propose": (None, "propose"),
    "record and mirror": (Ledger, "record"),
    "of these, mirror": (Mirror, "add"),
}


def space_of_140_units() -> Space:
    """The space that is timed."""
    decoder = DecoderShape(
        layers=4, d_model=64, heads=16, head_dim=4, ffn=256, vocabulary=200, encoder_width=64
    )
    shape = TeacherShape("toy", decoder, EncoderShape(10_000, 1_000_000, tokens=150, width=64))
    choices = Choices(attention="heads", widths=(64, 128))
    limits = Budget.resolve([limit("40%"), limit("50%", "macs")], shape)
    return Space(shape, limits, choices)


def knowledge(space: Space, landscape: Landscape) -> Prior:
    """Return misleading worths of units, and a ranking by them of as many plans as a search has."""
    worths = landscape.prior(0.6)
    plans = dict.fromkeys(drawn(space, seed) for seed in range(RANKED))
    array = [worths[name] for name in space.names]
    losses = [-sum(w * b for w, b in zip(array, space.bits(plan), strict=True)) for plan in plans]
    return Prior(worths, tuple(zip(plans, losses, strict=True)))


def timed(owner: Any, name: str, taken: list[float]) -> Callable[[], None]:
    """Note the seconds of every call of a method; the returned function ends that."""
    original = getattr(owner, name)

    def call(*args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return original(*args, **options)
        finally:
            taken.append(time.perf_counter() - started)

    setattr(owner, name, call)
    return lambda: setattr(owner, name, original)


def measure(url: str, sampler: str, trials: int) -> dict[str, Any]:
    """Run one study and return its times in milliseconds."""
    space = space_of_140_units()
    landscape = Landscape.random(space, 0, noise=0.02)
    storage = open_storage(url)
    name = f"overhead-{uuid4().hex}"
    study = Study.open(storage, name, space, {}, 0, sampler, knowledge(space, landscape))
    calls: dict[str, list[float]] = defaultdict(list)
    undo = [
        timed(owner or study._sampler, method, calls[part])
        for part, (owner, method) in PARTS.items()
    ]
    ends, spent_cpu = [time.perf_counter()], [time.process_time()]
    inside: list[float] = []

    def evaluate(plan: Plan, source: str) -> Any:
        started = time.perf_counter()
        measured = landscape.measure(plan, source)
        inside.append(time.perf_counter() - started)
        return measured

    def note(_: TrialRecord) -> None:
        study.so_far()  # a search tells how far it is after every trial
        ends.append(time.perf_counter())
        spent_cpu.append(time.process_time())

    study.run(evaluate, trials, on_trial=note)
    for one in undo:
        one()
    wall = [after - before for before, after in itertools.pairwise(ends)]
    cpu = [after - before for before, after in itertools.pairwise(spent_cpu)]
    per_trial = [whole - spent for whole, spent in zip(wall, inside, strict=True)]
    tail = max(1, trials // 10)
    found = {
        "storage": masked(storage_url(url)).split("://")[0],
        "sampler": sampler,
        "units": len(space.units),
        "trials": trials,
        "per trial": milliseconds(per_trial[-tail:]),
        "per trial, processor of this process": milliseconds(cpu[-tail:]),
        "per trial, first tenth": milliseconds(per_trial[:tail]),
        "per trial, 95th percentile": 1000 * sorted(per_trial)[int(0.95 * trials)],
    }
    for part, seconds in calls.items():
        # Two claims per trial: one that finds the queue empty, one that brings the proposal.
        scale = len(seconds) / trials
        found[part] = scale * milliseconds(seconds[-round(tail * scale) :])
    found["without propose"] = found["per trial"] - found["propose"]
    found["optuna add_trial"] = add_trial(storage, space, landscape)
    close_storage(storage)
    return found


def milliseconds(seconds: list[float]) -> float:
    """Return the median in milliseconds."""
    return 1000 * statistics.median(seconds)


def add_trial(storage: RDBStorage, space: Space, landscape: Landscape) -> float:
    """Return the milliseconds that Optuna itself takes to store such a trial."""
    study = optuna.create_study(storage=storage, direction="maximize")
    mirror = Mirror(storage, study.study_name, space)
    plan = space.smallest()[0]
    trial = mirror.frozen(Finished(str(plan), plan.hash, "s", 0.5, None, 0.0, 0.0))
    taken = []
    for _ in range(10):
        started = time.perf_counter()
        study.add_trial(trial)
        taken.append(time.perf_counter() - started)
    return milliseconds(taken)


def main() -> None:
    """Time every storage with every sampler that was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--storage", nargs="*", default=[], help="further databases")
    parser.add_argument("--samplers", nargs="*", default=["circuit"])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for url in [str(Path(folder) / "study.db"), *arguments.storage]:
            for sampler in arguments.samplers:
                row = measure(url, sampler, arguments.trials)
                found.append(
                    {k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}
                )
                sys.stdout.write(f"{found[-1]}\n")
                sys.stdout.flush()
    write_json(arguments.output, found)


if __name__ == "__main__":
    main()
