"""Finding the study that a person means: by the folder of its search, a file or a database URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.storages import RDBStorage

from circuitsearch.configfile import load_config
from circuitsearch.core.errors import ConfigError, StorageError
from circuitsearch.search.storage.connection import (
    check_holds_studies,
    close_storage,
    is_there,
    open_storage,
    storage_url,
)
from circuitsearch.search.storage.transactions import study_names
from circuitsearch.search.storage.view import StudyView
from circuitsearch.workspace import CONFIG_FILE, config_in

__all__ = [
    "check_there",
    "find_database",
    "open_database",
    "open_earlier",
    "search_file",
    "study_named",
    "view_study",
]


@contextmanager
def open_database(where: str) -> Iterator[tuple[RDBStorage, str | None]]:
    """Open the database behind a place; also give the study's name if the place is a search.

    Args:
        where: See `find_database`.

    Raises:
        ConfigError: If the folder is not that of a search.
        StorageError: If there is no such database, or it cannot be read.
    """
    database, name = find_database(where)
    check_holds_studies(database)
    storage = open_storage(database)
    try:
        yield storage, name
    finally:
        close_storage(storage)


@contextmanager
def open_earlier(earlier: str, database: str) -> Iterator[tuple[RDBStorage, str]]:
    """Open the study that a fork takes from; also give its name.

    Args:
        earlier: Where it is (see `find_database`), or its name in the new search's database.
        database: That database.

    Raises:
        ConfigError: If the place holds several studies, or the name stands without a database.
        StorageError: If there is no such database, or it cannot be read.
    """
    path = Path(earlier)
    place = "://" in earlier or path.is_file() or (path / CONFIG_FILE).is_file()
    if not place and not is_there(database):
        raise ConfigError(
            f"Study {earlier!r}: the new search has no database yet that could hold it; give the "
            "output folder of the earlier search, its search file or its database"
        )
    with open_database(earlier if place else database) as (storage, name):
        yield storage, study_named(storage, name) if place else earlier


def find_database(where: str) -> tuple[str, str | None]:
    """Return the database behind a place, and the study's name if the place is a search.

    Args:
        where: A search file, output folder of a search, path of an SQLite file or database URL.

    Returns:
        The path or URL of a database that is there, if it is a file; the name or None.

    Raises:
        ConfigError: If the folder is not that of a search, or its search file is faulty.
        StorageError: If it is a file that does not exist.
    """
    database, name, path = where, None, search_file(where)
    if path is not None:
        config = load_config(path)
        database, name = config.database, config.name
    check_there(database)
    return database, name


def search_file(where: str) -> Path | None:
    """Return the search file that a place is or holds, None where it is a database.

    Raises:
        ConfigError: See `workspace.config_in`.
    """
    place = Path(where)
    if "://" in where:
        return None
    if place.suffix.lower() in (".yaml", ".yml"):
        return place
    if not place.is_dir():
        return None
    return config_in(place)


def check_there(url: str) -> None:
    """Refuse a database file that does not exist: reading makes none.

    Raises:
        StorageError: If it does not.
    """
    if not is_there(url):
        raise StorageError(
            f"Storage {storage_url(url).database}: there is no such file; a search makes it when "
            "its study begins, behind scores and rankings: go on with `circuitsearch run`, or give "
            "the folder of a search that came as far, or its database"
        )


def study_named(storage: RDBStorage, name: str | None) -> str:
    """Return the study to read: the named one, or the only one.

    Raises:
        ConfigError: If none is named and the database does not hold exactly one.
    """
    if name is not None:
        return name
    names = study_names(storage)
    if len(names) != 1:
        raise ConfigError(
            f"The database holds {len(names)} studies ({', '.join(names) or 'none'}); "
            "choose one with --study NAME"
        )
    return names[0]


@contextmanager
def view_study(
    where: str, study: str | None = None, phase: str | None = None
) -> Iterator[StudyView]:
    """Open a study to read it; see `circuitsearch.open_study`."""
    with open_database(where) as (storage, name):
        yield StudyView(storage, study_named(storage, study or name), phase)
