"""Bring a database of earlier versions up to date: Optuna's tables, then our own.

Studies of schema 1 lived in Optuna's study, with the measurements beside it. Their trials become
trials of today's schema in the same order: finished ones keep their results, and what was queued or
interrupted is queued. Optuna's study is made anew as a mirror. Studies of schema 2 lack the table
of speeds only, which opening the database makes. It is safe to repeat.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from circuitsearch.core.files import canonical_json, content_hash
from circuitsearch.search.samplers import Prior
from circuitsearch.search.storage.connection import (
    close_storage,
    open_storage,
    storage_errors,
    upgrade_optuna,
)
from circuitsearch.search.storage.tables import SCHEMA, claims, results, studies
from circuitsearch.search.storage.transactions import LEGACY, clock, find_study
from circuitsearch.search.transfer import make_mirrors
from circuitsearch.search.units import Choices

__all__ = ["upgrade"]


def upgrade(url_or_path: str | os.PathLike[str]) -> list[str]:
    """Bring a database up to date and return the names of the studies that were converted.

    Stop all workers and copy the database first; earlier versions cannot read it afterwards.

    Raises:
        StorageError: the database fails, or was written by newer versions.
    """
    upgrade_optuna(url_or_path)
    storage = open_storage(url_or_path)
    converted = []
    try:
        with storage_errors(storage.url):
            found = storage.get_all_studies()
        for study in found:
            identity = study.user_attrs.get(LEGACY)
            if identity is not None:
                _convert(storage, study.study_name, study._study_id, identity)
                converted.append(study.study_name)
        converted += _raised(storage)
    finally:
        close_storage(storage)
    return converted


def _raised(storage: RDBStorage) -> list[str]:
    """Raise the studies of schema 2 to the present one; return their names."""
    old = studies.c.schema_version == 2
    with storage_errors(storage.url), storage.engine.begin() as connection:
        query = sa.select(studies.c.name).where(old).order_by(studies.c.name)
        names = list(connection.scalars(query))
        connection.execute(sa.update(studies).where(old).values(schema_version=SCHEMA))
    return names


def _convert(storage: RDBStorage, name: str, study_id: int, identity: Mapping[str, Any]) -> None:
    """Convert one study of schema 1."""
    if find_study(storage, name) is None:  # else this was killed below
        with storage_errors(storage.url):
            trials = storage.get_all_trials(study_id, deepcopy=False)
            with storage.engine.begin() as connection:
                _write(connection, name, identity, trials)
    with storage_errors(storage.url):
        storage.delete_study(study_id)
    make_mirrors(storage, name)


def _write(
    connection: sa.Connection, name: str, identity: Mapping[str, Any], trials: list[FrozenTrial]
) -> None:
    """Write the study's row and its trials."""
    # Spaces had no choices then (whole sub-layers only), priors no ranking, and one goal.
    space = {"choices": Choices().to_json(), **identity["space"]}
    prior = None if identity["prior"] is None else Prior(identity["prior"]).to_json()
    row = {
        "name": name,
        "identity": canonical_json({**identity, "space": space, "prior": prior, "goal": "single"}),
        "schema_version": SCHEMA,
        "stop": 0,
        "created": clock(connection),
    }
    connection.execute(sa.insert(studies).values(row))
    key = {"study": name, "objective_hash": content_hash(identity["objective"])}
    query = sa.select(results.c.plan_hash, results.c.state).where(
        results.c.study == name, results.c.objective_hash == key["objective_hash"]
    )
    states = {plan_hash: state for plan_hash, state in connection.execute(query)}
    rows: dict[str, dict[str, Any]] = {}
    # Trials that came to an end first: what was interrupted in between had no place in the order.
    for trial in sorted(trials, key=lambda one: not one.state.is_finished()):
        plan_hash = trial.user_attrs.get("plan_hash")
        if plan_hash is None or plan_hash in rows:
            continue
        rows[plan_hash] = {
            **key,
            "plan_hash": plan_hash,
            "number": len(rows),
            "plan": trial.user_attrs["plan"],
            "source": trial.user_attrs.get("source", "sampler"),
            "state": states.get(plan_hash, "queued"),
            "deaths": 0,
        }
    if rows:
        connection.execute(sa.insert(claims), list(rows.values()))
