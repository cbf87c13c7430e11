"""The commands that take a study's database: read it, work on it, stop it, keep house.

WHERE is a search file, the output folder of a search, the path of an SQLite file or a database URL;
the default is CIRCUITSEARCH_STORAGE. `--study` names the study where the database holds several.
"""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuitsearch.core.text import drop_passwords

from .shell import ConfigPath, Json, Overrides, Quiet, command, emit, on_interrupt, people

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from circuitsearch.core.plan import Plan
    from circuitsearch.search.storage.view import StudyStatus, StudyView, TrialRecord

__all__ = ["app", "show_command", "status_command", "stop_command", "top_command", "worker_command"]

app = typer.Typer(
    name="study",
    help="List, back up, copy, upgrade and fork studies.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_VARIABLE = "CIRCUITSEARCH_STORAGE"
_NEAR = 0.02
"""A limit of which less is left is said to bind."""
Where = Annotated[
    str,
    typer.Argument(
        metavar="WHERE",
        envvar=_VARIABLE,
        help="SEARCH.yaml, its output folder, SQLite file or database URL.",
    ),
]
StudyName = Annotated[str | None, typer.Option("--study", help="Name, where there are several.")]
Phase = Annotated[str | None, typer.Option("--phase", help="A further phase, e.g. full.")]


def _opened(where: str) -> AbstractContextManager[tuple[RDBStorage, str | None]]:
    """Open the database behind WHERE; also return the study's name if it is a search."""
    from circuitsearch.studies import open_database

    return open_database(where)


def _named(storage: RDBStorage, name: str | None) -> str:
    """Return the study to read: the named one, or the only one."""
    from circuitsearch.studies import study_named

    return study_named(storage, name)


def _view(
    where: str, study: str | None, phase: str | None = None
) -> AbstractContextManager[StudyView]:
    """Open a study to read it."""
    from circuitsearch.api import open_study

    return open_study(where, study, phase)


@command
def status_command(
    where: Where, study: StudyName = None, phase: Phase = None, json: Json = False
) -> None:
    """Say how far a study is: trials by state, who works on what, the best plan and its room."""
    from circuitsearch.core.plan import Plan

    with _view(where, study, phase) as view:
        status, best, stopping = view.status(), view.best(), view.stopping()
        running = [one for one in view.trials() if one.state in ("running", "interrupted")]
        # A phase evaluates the plans that it was given, and no others.
        asked = (view.config or {}).get("search", {}).get("trainings")
        wanted = asked if phase is None else status.trials
        facts: dict[str, Any] = {
            "study": view.name,
            "phase": phase,
            "trainings": wanted,
            **asdict(status),
            "stopping": stopping,
            "best": None if best is None else {"plan": best.plan, "quality": best.quality},
            "room": {} if best is None else _room(view, Plan.parse(best.plan)),
            "workers": [_worker(one) for one in running],
        }
    if json:
        emit(facts)
        return
    console = people()
    name = facts["study"] if phase is None else f"{facts['study']}, phase {phase}"
    done = status.measured if wanted is None else f"{status.measured} of {wanted}"
    told = [f"{done} trainings done", *_others(status)]
    console.print(f"study {name}: {', '.join(told)}", markup=False)
    if stopping:
        console.print("asked to stop: workers finish their trials and leave", markup=False)
    if best is not None:
        console.print(f"best: {best.plan}  ANLS {best.quality:.3f}", markup=False)
        for name, room in facts["room"].items():
            binds = ", binds" if room["left"] < _NEAR * room["limit"] else ""
            left = ", ".join(f"{_shown(name, room[word])} {word}" for word in ("limit", "left"))
            console.print(f"  {name}: {left}{binds}", markup=False)
    for one in facts["workers"]:
        console.print(
            f"trial {one['trial']}: {one['plan']}  {one['state']} by {one['worker']} "
            f"since {one['since']}",
            markup=False,
        )


def _others(status: StudyStatus) -> list[str]:
    """Return how many plans are in which other state, in words."""
    told = asdict(status) | {"refused after measuring": status.refused}
    del told["measured"], told["refused"]
    return [f"{count} {name}" for name, count in told.items() if count]


def _worker(trial: TrialRecord) -> dict[str, Any]:
    """Return what one worker is doing."""
    return {
        "trial": trial.number + 1,
        "plan": trial.plan,
        "state": trial.state,
        "worker": trial.worker,
        "since": None if trial.since is None else trial.since.isoformat(timespec="seconds"),
    }


@command
def top_command(
    where: Where,
    count: Annotated[int, typer.Argument(min=1, help="Plans to show.")] = 10,
    study: StudyName = None,
    phase: Phase = None,
    json: Json = False,
) -> None:
    """Show the best plans that a study has measured."""
    with _view(where, study, phase) as view:
        trials = {one.plan_hash: one for one in view.trials()}
        found = [trials[one.plan_hash] for one in view.ranked()[:count]]
    rows = [_row(one) for one in found]
    if json:
        emit(rows)
        return
    console = people()
    if not rows:
        console.print("no plan is measured yet", markup=False)
    for place, row in enumerate(rows, 1):
        low, high = row["quality_low"], row["quality_high"]
        console.print(
            f"{place:3}  {row['quality']:.3f} [{low:.3f}, {high:.3f}]  trial {row['trial']:4}  "
            f"{row['source']:8}  {row['plan']}",
            markup=False,
        )


def _room(view: StudyView, plan: Plan) -> dict[str, dict[str, int]]:
    """Return every limit of a study and what a plan leaves of it, where that is known."""
    from circuitsearch.search.space import Space

    space, speed = Space.from_json(view.identity["space"]), view.speed(plan)
    left = space.budget.slack(plan, space.shape, None if speed is None else speed.amounts)
    limits = {limit.name: limit.maximum for limit in space.budget.limits}
    return {name: {"limit": limits[name], "left": amount} for name, amount in left.items()}


def _shown(limit: str, amount: int) -> str:
    """Return an amount of what a limit limits, e.g. of `decoder latency (measured)`."""
    from circuitsearch.core.amounts import shown

    return shown(limit.split()[-2], amount)


def _row(trial: TrialRecord) -> dict[str, Any]:
    """Return one measured trial in short."""
    made = trial.measurement
    quality = made and {
        "quality": made.quality,
        "quality_low": made.quality if made.quality_low is None else made.quality_low,
        "quality_high": made.quality if made.quality_high is None else made.quality_high,
    }
    return {
        "trial": trial.number + 1,
        "plan": trial.plan,
        "source": trial.source,
        **(quality or {}),
    }


@command
def show_command(
    where: Where,
    trial: Annotated[int, typer.Argument(min=1, help="Number of the trial, from 1.")],
    study: StudyName = None,
    phase: Phase = None,
    json: Json = False,
) -> None:
    """Show everything about one trial: who works on it, its result, the room it leaves."""
    from circuitsearch.core.plan import Plan

    with _view(where, study, phase) as view:
        found = next((one for one in view.trials() if one.number + 1 == trial), None)
        count = view.status().trials
        plan = None if found is None else Plan.parse(found.plan)
        room = {} if plan is None else _room(view, plan)
        speed = None if plan is None else view.speed(plan)
    if found is None:
        from circuitsearch.core.errors import ConfigError

        raise ConfigError(f"trial: got {trial}, the study has trials 1 to {count}")
    measured = None if found.measurement is None else found.measurement.to_json()
    facts = {
        **_worker(found),
        "source": found.source,
        "failure": found.failure,
        "slack": {name: one["left"] for name, one in room.items()},
        "speed": None if speed is None else {**speed.amounts, "measured on": speed.where},
        "measurement": measured,
    }
    if json:
        emit(facts)
        return
    import yaml

    facts["slack"] = {name: _shown(name, one["left"]) for name, one in room.items()}
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    people().print(text.rstrip(), markup=False)


@command
def stop_command(where: Where, study: StudyName = None) -> None:
    """Ask all workers of a study to finish their trials and leave; `run` or `resume` goes on."""
    from circuitsearch.search.storage.transactions import set_stop

    with _opened(where) as (storage, name):
        chosen = _named(storage, study or name)
        set_stop(storage, chosen, True)
    people().print(f"study {chosen}: workers finish their trials and leave", markup=False)


@command
def worker_command(
    storage: Annotated[
        str, typer.Option("--storage", envvar=_VARIABLE, help="SQLite file or database URL.")
    ],
    study: StudyName = None,
    output: Annotated[Path | None, typer.Option(help="Folder for this worker's own files.")] = None,
    override: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Work on a study until its budget is spent; start as many as there are machines or GPUs."""
    from circuitsearch.api import join_study

    with _opened(storage) as (opened, name):
        chosen = _named(opened, study or name)
    on_interrupt(f"circuitsearch worker --study {chosen} --storage ...")
    ending = join_study(storage, chosen, output=output, overrides=override or (), quiet=quiet)
    people().print(f"study {chosen}: {ending}", markup=False)


@app.command("list")
@command
def list_command(where: Where, json: Json = False) -> None:
    """List the studies of a database."""
    from circuitsearch.search.transfer import list_studies

    with _opened(where) as (storage, _):
        found = [asdict(one) for one in list_studies(storage)]
    if json:
        emit(found)
        return
    for one in found:
        best = "none yet" if one["best"] is None else f"{one['best']:.3f} {one['best_plan']}"
        people().print(
            f"{one['name']}  {one['status']['measured']} measured  sampler {one['sampler']}  "
            f"created {one['created']}  best {best}",
            markup=False,
        )


@app.command("backup")
@command
def backup_command(
    where: Where, path: Annotated[Path, typer.Argument(help="New file to write.")]
) -> None:
    """Write a copy of an SQLite database as of one moment, while workers go on."""
    from circuitsearch.search.transfer import backup

    with _opened(where) as (storage, _):
        written = backup(storage, path)
    people().print(f"written: {written}", markup=False)


@app.command("copy")
@command
def copy_command(
    where: Where,
    target: Annotated[str, typer.Argument(help="Database to copy to; made when it is a file.")],
    study: StudyName = None,
    name: Annotated[str | None, typer.Option("--as", help="Another name there.")] = None,
) -> None:
    """Copy a study with all its results to another database, e.g. from SQLite to PostgreSQL."""
    from circuitsearch.search.storage.connection import close_storage, masked, open_storage
    from circuitsearch.search.storage.transactions import read_study
    from circuitsearch.search.transfer import copy

    with _opened(where) as (storage, known):
        chosen = _named(storage, study or known)
        read_study(storage, chosen)  # refused before the target is made
        other = open_storage(target)
        try:
            made = copy(storage, other, chosen, name)
        finally:
            close_storage(other)
    people().print(f"study {made.name} is in {masked(str(other.url))}", markup=False)


@app.command("upgrade")
@command
def upgrade_command(where: Where) -> None:
    """Bring a database of an earlier version up to date; stop workers and back it up first."""
    from circuitsearch.search.upgrade import upgrade
    from circuitsearch.studies import find_database

    database, _ = find_database(where)
    converted = upgrade(database)
    people().print(f"up to date; converted: {', '.join(converted) or 'none'}", markup=False)


@app.command("fork")
@command
def fork_command(
    search: ConfigPath,
    earlier: Annotated[
        str,
        typer.Argument(
            metavar="EARLIER",
            help="The search to take from: its output folder, file or database, or the name of a "
            "study in SEARCH.yaml's own database.",
        ),
    ],
    override: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Begin SEARCH.yaml's study with what an earlier one has found.

    SEARCH.yaml has another name and output folder. With the same teacher, data and distillation
    the earlier results count; otherwise its best plans that fit the new budget are distilled
    first. `run` then goes on with it.
    """
    from .search import open_pipeline

    line = open_pipeline(search, override, quiet)
    from circuitsearch import stages
    from circuitsearch.studies import open_earlier

    with open_earlier(earlier, line.work.config.database) as (source, name):
        stages.check_fork(line.work, source, name)
        status = stages.fork(line.work, line.space, line.prior, line.trainer, source, name)
    again = ["circuitsearch", "run", str(search)]
    for one in override or ():
        again += ["-o", drop_passwords(one)]
    people().print(
        f"taken over: {status.measured} results, {status.queued} plans queued; "
        f"go on with: {shlex.join(again)}",
        markup=False,
    )
