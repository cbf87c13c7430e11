"""Search stages: the study, its further phase, workers that join in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, TypedDict

import optuna
import torch
from optuna.storages import RDBStorage

from circuitsearch import __version__
from circuitsearch.core.errors import ConfigError, StoppedError, TrainingError
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.progress import Work
from circuitsearch.search import transfer
from circuitsearch.search.samplers import Goal, Prior
from circuitsearch.search.space import Space
from circuitsearch.search.storage.connection import close_storage, is_there, open_storage
from circuitsearch.search.storage.registration import check_unchanged
from circuitsearch.search.storage.transactions import find_study
from circuitsearch.search.storage.view import (
    StudyStatus,
    TrialRecord,
    differences,
    study_identity,
)
from circuitsearch.search.study import Ending, Study
from circuitsearch.workspace import Workspace

from .speeds import admission
from .training import StudentTrainer
from .warm import WarmPlans

__all__ = [
    "best_of",
    "check_fork",
    "check_storage",
    "check_study",
    "fork",
    "join",
    "promote",
    "search",
    "versions",
]

PROMOTED = "full"
"""Name of the study's phase in which the best plans are distilled in full."""


def versions() -> dict[str, str]:
    """Return the versions that must be equal on all workers of a study."""
    return {
        "circuitsearch": __version__,
        "optuna": optuna.__version__,
        "torch": torch.__version__.split("+")[0],  # a CPU and a CUDA build are the same version
        "transformers": version("transformers"),
    }


_PRIOR_SETTINGS = (
    "teacher",
    "seed",
    "data",
    "budget",
    "generation",
    "scores",
    "circuit",
    "space",
    "elastic",
    "distill",
    "exhaustive",
)
"""Parts of a search file that decide what a search knows before its first training."""


class _Settings(TypedDict):
    """What a study is opened with."""

    space: Space
    objective: dict[str, Any]
    seed: int
    sampler: str
    prior: Prior
    config: dict[str, Any]
    versions: dict[str, str]
    goal: Goal


def _settings(work: Workspace, space: Space, prior: Prior, trainer: StudentTrainer) -> _Settings:
    config = work.config
    # Workers bring the storage's URL themselves: it may hold a password.
    told = config.to_json()
    told["search"]["storage"] = None
    return {
        "space": space,
        "objective": trainer.objective(config.distill.steps),
        "seed": config.seed,
        "sampler": config.sampler,
        "prior": prior,
        "config": told,
        "versions": versions(),
        "goal": config.search.objective,
    }


def check_storage(work: Workspace) -> None:
    """Refuse a database that cannot be opened before anything is computed for it.

    Raises:
        StorageError: It cannot be opened.
    """
    if work.config.search.storage is not None:
        close_storage(open_storage(work.config.database))


def check_study(work: Workspace, space: Space, trainer: StudentTrainer) -> None:
    """Refuse settings that the study was not begun with before its prior is paid for.

    Raises:
        ConfigError: They differ; every field is named.
        StorageError: The database fails.
    """
    config = work.config
    if not is_there(config.database):
        return
    objective = trainer.objective(config.distill.steps)
    about = study_identity(
        space, objective, config.seed, config.sampler, None, config.search.objective
    )
    storage = open_storage(config.database)
    try:
        check_unchanged(storage, config.name, about)
    finally:
        close_storage(storage)


def search(
    work: Workspace, space: Space, prior: Prior, trainer: StudentTrainer, warm: WarmPlans
) -> Study:
    """Run the study until it has distilled as many plans as asked for."""
    storage = open_storage(work.config.database)
    settings = _settings(work, space, prior, trainer)
    settings["prior"] = _begun_with(storage, work.config.name, settings["config"]) or prior
    study = Study.open(storage, work.config.name, **settings)
    work.accept_config()
    _run(work, study, trainer, warm, resume=True)
    return study


def _begun_with(storage: RDBStorage, name: str, config: Mapping[str, Any]) -> Prior | None:
    """Return the prior of a study that was begun with the settings that a prior is made of.

    Computed once more, on other processors for example, it may differ in the last digits, which
    nobody could change back. None where there is no such study: then the priors are compared.
    """
    begun = find_study(storage, name)
    if begun is None or begun.config is None or begun.identity["prior"] is None:
        return None
    if any(begun.config.get(part) != config[part] for part in _PRIOR_SETTINGS):
        return None
    return Prior.from_json(begun.identity["prior"])


def check_fork(work: Workspace, source: RDBStorage, earlier: str) -> None:
    """Refuse to fork a study that is not there, or into one that is.

    Raises:
        ConfigError: Either of them.
    """
    transfer.check_fork(source, earlier, open_storage(work.config.database), work.config.name)


def fork(
    work: Workspace,
    space: Space,
    prior: Prior,
    trainer: StudentTrainer,
    source: RDBStorage,
    earlier: str,
) -> StudyStatus:
    """Begin the study with what an earlier one of the database `source` has found."""
    storage = open_storage(work.config.database)
    settings = _settings(work, space, prior, trainer)
    admit = admission(work, trainer.teacher, space)
    name = work.config.name
    return transfer.fork(storage, earlier, name, **settings, admit=admit, source=source).status()


def join(work: Workspace, study: Study, trainer: StudentTrainer) -> Ending:
    """Work on a study that another process has opened, until its budget is spent.

    Raises:
        ConfigError: What this worker would measure is not what the study is about; every differing
            field is named.
    """
    here = trainer.objective(work.config.distill.steps)
    changed = differences(study.objective, here)
    if changed:
        lines = "\n".join(f"  - {line}" for line in changed[:40])
        raise ConfigError(
            f"Study {study.name!r}: this worker would measure something else "
            f"(study -> here):\n{lines}\nGive it the same teacher and data, by the same settings."
        )
    work.accept_config()
    return _run(work, study, trainer, [], resume=False)


def _run(
    work: Workspace, study: Study, trainer: StudentTrainer, warm: WarmPlans, *, resume: bool
) -> Ending:
    """Run a study in this process and tell how it goes."""
    settings = work.config.search
    with work.say.budget(f"search {work.config.name}") as spent:
        ending = study.run(
            trainer,
            settings.trainings,
            warm,
            _teller(work, study, settings.trainings, spent),
            admit=admission(work, trainer.teacher, study.space),
            max_failures=settings.max_failures,
            lease=settings.lease_seconds,
            resume=resume,
        )
    refused = study.status().refused
    if refused:
        work.say.note(f"{refused} plans were left out: measured, they are over a limit")
    if ending is Ending.EXHAUSTED:
        work.say.note("every plan within the budget has been tried")
    if ending is Ending.STOPPED:
        work.say.note("the study was asked to stop; running it again goes on")
    return ending


def _teller(
    work: Workspace, study: Study, trainings: int, spent: Work
) -> Callable[[TrialRecord], None]:
    """Return what says each trial's result, with the best so far; say how far the study is."""

    def budget() -> float:
        measured, best = study.so_far()
        quality = 0.0 if best is None else best.quality or 0.0
        found = "" if best is None else f"best {quality:.3f} {best.plan}"
        spent(min(measured, trainings), trainings, found)
        return quality

    budget()

    def tell(trial: TrialRecord) -> None:
        best = budget()
        if trial.measurement is None or trial.measurement.quality is None:
            work.say.note(f"trial {trial.number + 1}: {trial.plan} failed: {trial.failure}")
            return
        work.say.note(
            f"trial {trial.number + 1} of {trainings}: {trial.plan} "
            f"[{trial.source}] ANLS {trial.measurement.quality:.3f}, best {best:.3f}"
        )

    return tell


def promote(work: Workspace, study: Study, trainer: StudentTrainer) -> Study:
    """Distil the study's best plans in full; return the phase, or the study when none are asked.

    Raises:
        StoppedError: The study is asked to stop, so there is nothing to hand over yet.
    """
    if study.stopping():
        raise _stopped(work)
    settings, steps = work.config.search, work.config.final.steps
    if settings.promote == 0 or steps is None:
        return study
    best_of(study)  # refuses where there is nothing to promote
    phase = study.phase(PROMOTED, trainer.objective(steps))
    chosen = study.ranked()[: settings.promote]

    def evaluate(plan: Plan, source: str) -> Measurement:
        return trainer.measured(
            plan, source, seed=work.config.seed, steps=steps, split="select", phase="full"
        )

    sources = {trial.plan_hash: trial.source for trial in study.trials()}
    plans = [(Plan.parse(one.plan), sources[one.plan_hash]) for one in chosen]
    admit = admission(work, trainer.teacher, study.space)
    # Those promoted before more plans were found stay, and count; what an interrupted promotion
    # left queued comes first, so it counts too.
    earlier = {trial.plan_hash for trial in phase.trials() if trial.state != "failed"}
    trainings = len(earlier.union(one.plan_hash for one in chosen))
    with work.say.budget(f"full distillation of the best {len(plans)}") as spent:
        ending = phase.run(
            evaluate,
            trainings,
            plans,
            _teller(work, phase, trainings, spent),
            admit=admit,
            max_failures=settings.max_failures,
            lease=settings.lease_seconds,
        )
    if ending is Ending.STOPPED:
        raise _stopped(work)
    return phase


def _stopped(work: Workspace) -> StoppedError:
    return StoppedError(
        f"Search {work.config.name!r} was stopped before it was finished; go on with: "
        f"circuitsearch resume {work.folder}"
    )


def best_of(study: Study) -> Plan:
    """Return the plan that the search hands over: best quality, then lowest loss, then text.

    Raises:
        TrainingError: Nothing was measured.
    """
    best = study.best()
    if best is None:
        failed = study.status().failed
        raise TrainingError(
            f"search: no student was trained to the end, so there is none to hand over ({failed} "
            "trainings failed; `circuitsearch show` tells why); change `distill` and begin another "
            "study"
        )
    return Plan.parse(best.plan)
