"""Transactions on the tables of a search, and what they hold about whole studies.

Every decision is one transaction that locks the study's row first (`locked`): `BEGIN IMMEDIATE` on
SQLite (`connection`), `SELECT ... FOR UPDATE` on PostgreSQL. Its time is that of the database's
clock, so the clocks of the workers need not agree.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.storages import RDBStorage
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import StaticPool

from circuitsearch.core.errors import ConfigError, StorageError, nearest
from circuitsearch.core.files import canonical_json, ordered_json
from circuitsearch.search.storage.connection import READ_ONLY, masked, storage_errors
from circuitsearch.search.storage.tables import SCHEMA, optuna_studies, phases, studies

__all__ = [
    "LEGACY",
    "MIRROR",
    "Locked",
    "Rows",
    "StudyRow",
    "clock",
    "create_study",
    "find_study",
    "insert_study",
    "locked",
    "no_study",
    "optuna_attributes",
    "read_phases",
    "read_study",
    "reading",
    "set_stop",
    "study_names",
]

LEGACY = "circuitsearch:identity"
"""Attribute of an Optuna study by which a study of schema 1 is known."""
MIRROR = "circuitsearch:mirror"
"""Attribute of an Optuna study by which a mirror is known: the name of the mirrored study."""

Rows = Mapping[sa.Table, Sequence[Mapping[str, Any]]]
"""Rows by table."""

_one_connection = threading.RLock()  # that of a database in memory


@dataclass(frozen=True)
class Locked:
    """A transaction that holds a study's lock.

    Attributes:
        connection: the open connection; it commits when the `with` block ends without error.
        now: seconds since 1970 on the database's clock, read after the lock was had.
        stop: whether the study is asked to stop.
    """

    connection: sa.Connection
    now: float
    stop: bool


@dataclass(frozen=True)
class StudyRow:
    """What is stored about a study.

    Attributes:
        identity: what the study is about (`view.study_identity`).
        config: what a worker needs beyond that; opaque here, None when nothing was given.
        versions: versions of the programs that run it; None when nothing was given.
        stop: whether it is asked to stop.
        created: when it was created, in seconds since 1970.
    """

    identity: dict[str, Any]
    config: Any
    versions: dict[str, Any] | None
    stop: bool
    created: float


def clock(connection: sa.Connection) -> float:
    """Return the database's present time in seconds since 1970."""
    if connection.dialect.name == "sqlite":
        query = "SELECT (julianday('now') - 2440587.5) * 86400.0"
    else:
        # Not now(), which is when the transaction began: it may have waited long for the lock.
        query = "SELECT extract(epoch FROM clock_timestamp())::double precision"
    return float(connection.scalar(sa.text(query)) or 0.0)


@contextmanager
def locked(storage: RDBStorage, study: str) -> Iterator[Locked]:
    """Hold a study's lock for one transaction; nothing else decides on that study meanwhile.

    Raises:
        ConfigError: there is no such study.
        StorageError: the database fails; nothing was changed then.
    """
    with _turn(storage), storage_errors(storage.url), storage.engine.begin() as connection:
        query = sa.select(studies.c.stop).where(studies.c.name == study).with_for_update()
        stop = connection.scalar(query)
        if stop is not None:
            yield Locked(connection, clock(connection), bool(stop))
    if stop is None:
        raise no_study(storage, study)


@contextmanager
def reading(storage: RDBStorage) -> Iterator[sa.Connection]:
    """Open a transaction that only reads, as of one moment, and on SQLite waits for no writer.

    Raises:
        StorageError: the database fails.
    """
    options: dict[str, Any] = {READ_ONLY: True}
    if storage.engine.dialect.name != "sqlite":  # there every transaction sees one moment
        options["isolation_level"] = "REPEATABLE READ"
    engine = storage.engine.execution_options(**options)
    with _turn(storage), storage_errors(storage.url), engine.begin() as connection:
        yield connection


def study_names(storage: RDBStorage) -> list[str]:
    """Return the names of all studies of a database, in order.

    Raises:
        StorageError: the database fails.
    """
    with reading(storage) as connection:
        return list(connection.scalars(sa.select(studies.c.name).order_by(studies.c.name)))


def find_study(storage: RDBStorage, name: str) -> StudyRow | None:
    """Return what is stored about a study, None when there is none of that name.

    Raises:
        StorageError: the database fails, or the study is of another schema.
    """
    with reading(storage) as connection:
        row = connection.execute(sa.select(studies).where(studies.c.name == name)).mappings()
        found = row.one_or_none()
    if found is None:
        return None
    if found["schema_version"] != SCHEMA:
        newer = found["schema_version"] > SCHEMA
        raise StorageError(
            f"Study {name!r} in {masked(storage.url)} has tables of version "
            f"{found['schema_version']}, this circuitsearch knows version {SCHEMA}; "
            + ("install a newer one" if newer else "run: circuitsearch study upgrade")
        )
    return StudyRow(
        identity=json.loads(found["identity"]),
        config=_read(found["config"]),
        versions=_read(found["versions"]),
        stop=bool(found["stop"]),
        created=found["created"],
    )


def read_study(storage: RDBStorage, name: str) -> StudyRow:
    """Return what is stored about a study.

    Raises:
        ConfigError: there is no such study, or it was not made by circuitsearch.
        StorageError: the database fails, or the study is of another schema.
    """
    found = find_study(storage, name)
    if found is None:
        raise no_study(storage, name)
    return found


def read_phases(storage: RDBStorage, study: str) -> dict[str, dict[str, Any]]:
    """Return the objectives of a study's further phases by their names.

    Raises:
        StorageError: the database fails.
    """
    query = sa.select(phases).where(phases.c.study == study).order_by(phases.c.phase)
    with reading(storage) as connection:
        rows = connection.execute(query).mappings().all()
    return {row["phase"]: json.loads(row["objective"]) for row in rows}


def create_study(
    storage: RDBStorage,
    name: str,
    identity: Mapping[str, Any],
    config: Any = None,
    versions: Mapping[str, Any] | None = None,
    further: Rows | None = None,
) -> bool:
    """Write a new study; return False when there is one of that name already.

    Args:
        storage: from `open_storage`.
        name: the study's name.
        identity: what it is about (`view.study_identity`).
        config: see `StudyRow`, like the next.
        versions: see there.
        further: rows of other tables that it begins with.

    Raises:
        DataError: what is to be stored is not plain JSON.
        StorageError: the database fails; nothing was written then.
    """
    with reading(storage) as connection:
        created = clock(connection)
    row = {
        "name": name,
        "identity": canonical_json(identity),
        "config": None if config is None else ordered_json(config),
        "versions": None if versions is None else canonical_json(versions),
        "schema_version": SCHEMA,
        "stop": 0,
        "created": created,
    }
    return insert_study(storage, {studies: [row], **(further or {})})


def insert_study(storage: RDBStorage, rows: Rows) -> bool:
    """Write all rows of a new study in one transaction: it is there completely or not at all.

    Args:
        storage: from `open_storage`.
        rows: the study's row and all that belong to it.

    Returns:
        False when there is a study of that name already; nothing was written then.

    Raises:
        StorageError: the database fails; nothing was written then.
    """
    with _turn(storage), storage_errors(storage.url):
        try:
            with storage.engine.begin() as connection:
                for table, entries in rows.items():
                    if entries:
                        connection.execute(sa.insert(table), list(entries))
        except IntegrityError:  # this one or another process was first
            return False
    return True


def set_stop(storage: RDBStorage, study: str, stop: bool) -> None:
    """Ask the workers of a study to stop after their trials, or take that back.

    Raises:
        ConfigError: there is no such study.
        StorageError: the database fails.
    """
    with locked(storage, study) as held:
        change = sa.update(studies).where(studies.c.name == study).values(stop=int(stop))
        held.connection.execute(change)


def no_study(storage: RDBStorage, name: str) -> ConfigError:
    """Return the error that says what the database holds instead of that study."""
    place = masked(storage.url)
    attributes = optuna_attributes(storage, name)
    if attributes is not None and MIRROR in attributes:
        return ConfigError(
            f"Study {name!r} in {place} is Optuna's part of a study only; was it copied with "
            "Optuna's tools? Copy the whole study: circuitsearch study copy"
        )
    if attributes is not None and LEGACY in attributes:
        return ConfigError(
            f"Study {name!r} in {place} was made by an earlier circuitsearch; run: "
            "circuitsearch study upgrade"
        )
    if attributes is not None:
        return ConfigError(
            f"Study {name!r} in {place} was not made by circuitsearch; choose another study name"
        )
    known = study_names(storage)
    guess = nearest(name, known)
    return ConfigError(
        f"Study {name!r} is not in {place}; it holds "
        f"{', '.join(map(repr, known)) or 'no study yet'}"
        + (f"; did you mean {guess!r}?" if guess else "")
    )


def optuna_attributes(storage: RDBStorage, name: str) -> dict[str, Any] | None:
    """Return the user attributes of Optuna's study of that name; None when it has none of it.

    Raises:
        StorageError: the database fails.
    """
    query = sa.select(optuna_studies.c.study_id).where(optuna_studies.c.study_name == name)
    with reading(storage) as connection:
        found = connection.scalar(query)
    if found is None:
        return None
    with storage_errors(storage.url):
        return storage.get_study_user_attrs(found)


def _turn(storage: RDBStorage) -> contextlib.AbstractContextManager[Any]:
    """Let the threads of this process take turns where they share the one connection."""
    shared = isinstance(storage.engine.pool, StaticPool)
    return _one_connection if shared else contextlib.nullcontext()


def _read(text: str | None) -> Any:
    """Return stored JSON, None when nothing was stored."""
    return None if text is None else json.loads(text)
