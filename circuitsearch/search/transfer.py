"""Whole studies: list, back up, copy to another database, fork with other settings.

A copy or a fork is written in one transaction, so it is there completely or not at all; Optuna's
study is made anew behind it (`Mirror`), never copied, and by the next run if that is interrupted.
Results are copied as they are, in the order of their trials.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from optuna.storages import RDBStorage

from circuitsearch.core.errors import ConfigError, PlanError, StorageError
from circuitsearch.core.files import content_hash
from circuitsearch.core.measurement import merit
from circuitsearch.core.plan import Plan
from circuitsearch.search.admission import Admit, measurer
from circuitsearch.search.samplers import Goal, Prior
from circuitsearch.search.space import Space
from circuitsearch.search.storage.connection import masked, storage_errors
from circuitsearch.search.storage.rows import queued_row
from circuitsearch.search.storage.speeds import Verdict, measured_row
from circuitsearch.search.storage.tables import claims, phases, results, speeds, studies
from circuitsearch.search.storage.transactions import (
    clock,
    create_study,
    find_study,
    insert_study,
    no_study,
    optuna_attributes,
    read_phases,
    read_study,
    reading,
    study_names,
)
from circuitsearch.search.storage.view import StudyStatus, StudyView
from circuitsearch.search.study import Study, settled

__all__ = ["StudySummary", "backup", "check_fork", "copy", "fork", "list_studies", "make_mirrors"]

_TABLES = (studies, phases, claims, results, speeds)


@dataclass(frozen=True)
class StudySummary:
    """One line of a list of studies.

    Attributes:
        name: the study's name.
        sampler: name of its sampler.
        created: when it was created, ISO 8601 in UTC.
        status: number of trials per state.
        best: highest quality so far; None without a measured plan.
        best_plan: the plan that reached it.
        phases: names of its further phases.
        stopping: whether it is asked to stop.
    """

    name: str
    sampler: str
    created: str
    status: StudyStatus
    best: float | None
    best_plan: str | None
    phases: tuple[str, ...]
    stopping: bool


def list_studies(storage: RDBStorage) -> list[StudySummary]:
    """Return all studies of a database, by name.

    Raises:
        StorageError: the database fails.
    """
    found = []
    for name in study_names(storage):
        view = StudyView(storage, name)
        best = view.best()
        found.append(
            StudySummary(
                name=name,
                sampler=view.identity["sampler"],
                created=view.created.isoformat(timespec="seconds"),
                status=view.status(),
                best=None if best is None else best.quality,
                best_plan=None if best is None else best.plan,
                phases=tuple(view.phases()),
                stopping=view.stopping(),
            )
        )
    return found


def backup(storage: RDBStorage, path: str | os.PathLike[str]) -> Path:
    """Write a copy of an SQLite database as of one moment, while workers may go on.

    Args:
        storage: from `open_storage`.
        path: the file to write; it must not exist.

    Raises:
        StorageError: the database is not SQLite (the message says what to use), the file exists
            or cannot be written.
    """
    url = storage.engine.url
    target = Path(path)
    if url.get_backend_name() != "sqlite":
        raise StorageError(
            f"Storage {masked(url)} is not SQLite; back it up with PostgreSQL's own tool: "
            f"pg_dump --format=custom --file={target} DATABASE, or copy one study with: "
            "circuitsearch study copy"
        )
    if target.exists():
        raise StorageError(f"Backup {str(target)!r} exists; give the path of a new file")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with storage_errors(storage.url), storage.engine.connect() as connection:
            source = connection.connection.driver_connection
            if not isinstance(source, sqlite3.Connection):
                raise StorageError(f"Storage {masked(url)}: its driver cannot make backups")
            with contextlib.closing(sqlite3.connect(temporary)) as written:
                source.backup(written)
                written.execute("PRAGMA journal_mode=DELETE")  # one file, nothing beside it
        temporary.replace(target)
    except (OSError, sqlite3.Error) as error:
        raise StorageError(f"Backup {str(target)!r} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def copy(source: RDBStorage, target: RDBStorage, name: str, new: str | None = None) -> StudyView:
    """Copy a study with all its phases to another database, or under another name.

    Trials that are running at that moment are queued in the copy.

    Args:
        source: the database that has the study.
        target: the database to write to; may be the same.
        name: the study's name.
        new: its name in the target; None for the same.

    Raises:
        ConfigError: there is no such study, or one of that name in the target already.
        StorageError: a database fails.
    """
    read_study(source, name)
    new = new or name
    rows: dict[sa.Table, list[dict[str, Any]]] = {}
    with reading(source) as connection:
        for table in _TABLES:
            column = table.c.name if table is studies else table.c.study
            found = connection.execute(sa.select(table).where(column == name)).mappings()
            rows[table] = [{**row, column.name: new} for row in found]
    for row in rows[claims]:
        if row["state"] == "running":
            row.update(state="queued", worker=None, lease_until=None)
    rows[speeds] = [row for row in rows[speeds] if row["state"] != "measuring"]
    _refuse_taken(target, new)
    if not insert_study(target, rows):
        raise _taken(target, new)
    make_mirrors(target, new)
    return StudyView(target, new)


def make_mirrors(storage: RDBStorage, name: str) -> int:
    """Show all finished trials of a study and its phases in Optuna's studies; return how many.

    Raises:
        ConfigError: there is no such study, or Optuna has another one of that name.
        StorageError: the database fails.
    """
    space = Space.from_json(read_study(storage, name).identity["space"])
    return sum(
        Study(storage, name, space, None, phase).repair_mirror()
        for phase in (None, *read_phases(storage, name))
    )


def fork(
    storage: RDBStorage,
    name: str,
    new: str,
    space: Space,
    objective: Mapping[str, Any],
    seed: int,
    sampler: str = "circuit",
    prior: Prior | Mapping[str, float] | None = None,
    config: Any = None,
    versions: Mapping[str, Any] | None = None,
    goal: Goal = "single",
    *,
    best: int = 8,
    admit: Admit | None = None,
    source: RDBStorage | None = None,
) -> Study:
    """Begin a study with other settings that takes along what an earlier one has found.

    With the same objective, the measured plans that are feasible in the new space are results of
    the new study, too, and count among its trainings. With another objective they cannot be: then
    the best of the feasible ones are queued as its warm start, with the source `fork`. Further
    phases stay behind.

    Plans are measured first, which may take long; then all is written in one transaction.

    Args:
        storage: the database of the new study.
        name: the earlier study.
        new: name of the new one.
        space: as for `Study.open`, like all that follow.
        objective: see there.
        seed: see there.
        sampler: see there.
        prior: see there.
        config: see there.
        versions: see there.
        goal: see there.
        best: number of plans to queue when the objective differs.
        admit: measures a plan, where the new budget has measured limits (`Study.run`); plans over
            one are left behind.
        source: the database of the earlier study; default the same.

    Raises:
        ConfigError: there is no study of the one name, or one of the other; or see `Study.open`.
        InfeasibleError: no legal student fits the new budget.
        StorageError: the database fails.
    """
    source = source or storage
    earlier = check_fork(source, name, storage, new)
    proposing, about = settled(space, objective, seed, sampler, prior, goal)
    wanted = content_hash(about["objective"])
    same = wanted == content_hash(earlier.objective)
    found = [one for one in earlier.measurements() if _fits(space, one.plan)]
    if not same:
        found.sort(key=merit)
    ranked = [Plan.parse(one.plan) for one in found]
    plans, verdicts = _admitted(space, ranked, admit, len(ranked) if same else best)
    taken = _adopted(source, name, wanted, plans) if same else _queued(wanted, plans)
    with reading(storage) as connection:
        now = clock(connection)
    taken[speeds] = [measured_row(verdict, now) for verdict in verdicts]
    rows = {table: [{**row, "study": new} for row in entries] for table, entries in taken.items()}
    if not create_study(storage, new, about, config, versions, rows):
        raise _taken(storage, new)
    study = Study(storage, new, space, proposing)
    study.repair_mirror()
    return study


def check_fork(source: RDBStorage, name: str, storage: RDBStorage, new: str) -> StudyView:
    """Return the study that a fork takes from, before anything is computed for it.

    Raises:
        ConfigError: there is no study of that name, or one of the new name.
        StorageError: a database fails.
    """
    earlier = StudyView(source, name)
    _refuse_taken(storage, new)
    return earlier


def _admitted(
    space: Space, plans: Sequence[Plan], admit: Admit | None, most: int
) -> tuple[list[Plan], list[Verdict]]:
    """Return the first plans within the measured limits, and all that was measured to find them."""
    measure = measurer(space, admit)
    if measure is None:
        return list(plans[:most]), []
    within: list[Plan] = []
    verdicts: list[Verdict] = []
    for plan in plans:
        if len(within) == most:
            break
        verdicts.append(measure(plan))
        if not verdicts[-1].refused:
            within.append(plan)
    return within, verdicts


def _adopted(
    storage: RDBStorage, name: str, objective_hash: str, plans: Sequence[Plan]
) -> dict[sa.Table, list[dict[str, Any]]]:
    """Return the rows of a study's finished trials of some plans, numbered in their order."""
    numbers = {plan.hash: number for number, plan in enumerate(plans)}
    rows: dict[sa.Table, list[dict[str, Any]]] = {}
    with reading(storage) as connection:
        for table in (claims, results):
            query = sa.select(table).where(
                table.c.study == name, table.c.objective_hash == objective_hash
            )
            found = connection.execute(query).mappings()
            rows[table] = [dict(row) for row in found if row["plan_hash"] in numbers]
    for row in rows[claims]:
        row["number"] = numbers[row["plan_hash"]]
    return rows


def _queued(objective_hash: str, plans: Sequence[Plan]) -> dict[sa.Table, list[dict[str, Any]]]:
    """Return the rows of trials to come of some plans, in their order."""
    key = {"objective_hash": objective_hash}
    return {claims: [{**key, **queued_row(plan, "fork", n)} for n, plan in enumerate(plans)]}


def _fits(space: Space, plan: str) -> bool:
    """Whether a plan of another space is feasible in this one, in the same form."""
    try:
        parsed = Plan.parse(plan)
        return space.feasible(parsed) and str(space.plan(space.bits(parsed))) == plan
    except PlanError:
        return False


def _refuse_taken(storage: RDBStorage, name: str) -> None:
    """Refuse the name of a study that exists, be it Optuna's alone."""
    if find_study(storage, name) is not None:
        raise _taken(storage, name)
    if optuna_attributes(storage, name) is not None:
        raise no_study(storage, name)


def _taken(storage: RDBStorage, name: str) -> ConfigError:
    """Return the error for a name that a study has; a copy or fork may have been made before."""
    return ConfigError(
        f"Study {name!r} is in {masked(storage.url)} already; go on with that one, or choose "
        "another name"
    )
