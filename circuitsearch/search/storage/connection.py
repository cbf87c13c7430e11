"""Where a search lives: one database with Optuna's tables and our own (`tables`).

SQLite is the default, one file next to the run; PostgreSQL serves many machines. SQLite ignores
`SELECT ... FOR UPDATE`, on which Optuna relies, so an SQLite engine gets a hook before first use:
write-ahead log, `synchronous=NORMAL`, a busy timeout, and every transaction that may write begins
with `BEGIN IMMEDIATE`. `NORMAL` may lose the last commits on a power cut, never on a killed
process. The write-ahead log needs shared memory, hence a local disk: a network file system is
refused. A file that must not be written is opened as immutable, without the log: a finished study
can be read wherever it is kept. On PostgreSQL no transaction waits for a lock, or holds one idly,
beyond the timeout.

Every database error becomes a `StorageError` that says what to do. Credentials are masked in all
messages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from circuitsearch.core.errors import StorageError
from circuitsearch.core.text import drop_passwords, hide_passwords
from circuitsearch.search.storage.tables import metadata, studies

__all__ = [
    "READ_ONLY",
    "check_holds_studies",
    "close_storage",
    "is_there",
    "masked",
    "open_storage",
    "storage_errors",
    "storage_url",
    "upgrade_optuna",
    "without_password",
]

_FORMS = (
    "a path such as runs/study.db, sqlite:///runs/study.db, or "
    "postgresql://user:password@host:5432/database"
)
# Not 9p: some sandboxes mount their local root by it.
_NETWORK = re.compile(
    "nfs4?|cifs|smb.*|afs|ncpfs|ceph|lustre|gpfs|beegfs.*|panfs|wekafs|pvfs2|orangefs|glusterfs|"
    r"fuse\.(glusterfs|ceph.*|sshfs|juicefs|rclone|s3fs|gcsfuse)"
)
_MEMORY = (None, "", ":memory:")

# What a database's message holds -> what it means and what to do. The first match counts.
_MEANINGS = (
    (
        "locked|lock timeout",
        "is locked by another process; wait for it or stop it, then run this again",
    ),
    ("not a database", "is not an SQLite database; give the path of another or of a new file"),
    ("malformed", "is damaged; restore it from a copy"),
    ("unable to open", "cannot be opened; check that the folder exists and is writable"),
    ("readonly", "is read-only; change its permissions or give another path"),
    ("disk is full", "cannot grow, the disk is full; free some space and run this again"),
    (
        "authentication failed|no password supplied",
        "refuses the login; check the user in the URL and the password there, in PGPASSWORD or "
        "in ~/.pgpass",
    ),
    ("(role|database) .* does not exist", "is unknown to the server; check user and database"),
    ("connection|resolve host", "is unreachable; check host and port, and that the server runs"),
)

READ_ONLY = "circuitsearch_read_only"
"""Execution option of connections that only read: on SQLite they need not wait for a writer."""


def storage_url(url_or_path: str | os.PathLike[str]) -> URL:
    """Return the database URL of a path or URL, with the driver to use.

    Raises:
        StorageError: it is neither a path nor a URL of SQLite or PostgreSQL.
    """
    text = os.fspath(url_or_path)
    if "://" not in text:
        if not text.strip():
            raise StorageError(f"Storage: got an empty text, allowed are {_FORMS}")
        try:
            path = Path(text).expanduser()
        except RuntimeError:
            raise StorageError(f"Storage {text}: there is no such user; give a full path") from None
        return URL.create("sqlite", database=str(path.absolute()))
    try:
        url = make_url(re.sub(r"^postgres://", "postgresql://", text))
    except (SQLAlchemyError, ValueError):
        # The original message may quote the URL, so it is not passed on.
        raise StorageError(f"Storage {masked(text)!r} is no URL; allowed are {_FORMS}") from None
    backend = url.get_backend_name()
    if "@" in (url.host or ""):  # the server's own message would repeat what follows
        raise StorageError(
            f"Storage {masked(text)}: user and password end at the first @; write an @ in them as "
            "%40"
        )
    if backend == "postgresql":
        # SQLAlchemy would choose psycopg2, which is not a dependency.
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise StorageError(f"Storage {masked(url)}: got {backend!r}, allowed are {_FORMS}")
    return url


def masked(url: URL | str) -> str:
    """Return a URL as text in which every password is `***`."""
    if isinstance(url, str):
        return hide_passwords(url)
    return hide_passwords(url.render_as_string(hide_password=True))


def without_password(url: str) -> str:
    """Return a URL (or path) without its passwords, for a file that others may read."""
    if "://" not in url:
        return url
    try:
        given = make_url(url)
    except (SQLAlchemyError, ValueError):
        return drop_passwords(url)
    if "@" in (given.host or ""):  # part of a password that should have been quoted
        return drop_passwords(url)
    secret = {"password", "sslpassword"}
    if given.password is None and not secret & {*given.query}:
        return url
    kept = URL.create(
        given.drivername,
        given.username,
        None,
        given.host,
        given.port,
        given.database,
        given.query,
    )
    return kept.difference_update_query(secret).render_as_string(False)


def is_there(url_or_path: str | os.PathLike[str]) -> bool:
    """Whether there is a database to read; of a server's it is said to be.

    Raises:
        StorageError: see `storage_url`.
    """
    url = storage_url(url_or_path)
    return url.get_backend_name() != "sqlite" or Path(url.database or "").exists()


def check_holds_studies(url_or_path: str | os.PathLike[str]) -> None:
    """Refuse a database without our tables, which opening it would write there.

    One that cannot be looked into passes: `open_storage` says why.

    Raises:
        StorageError: it holds no study.
    """
    url = storage_url(url_or_path)
    try:
        engine = sa.create_engine(url)
        try:
            known = sa.inspect(engine).has_table(studies.name)
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError):
        return
    if not known:
        raise StorageError(
            f"Storage {masked(url)} holds no study; give the database of a search, e.g. study.db "
            "in its output folder"
        )


def open_storage(url_or_path: str | os.PathLike[str], *, timeout: float = 60.0) -> RDBStorage:
    """Open or create the database of a search.

    Args:
        url_or_path: path of an SQLite file, or a URL of SQLite or PostgreSQL. `sqlite://` is a
            database in memory, for tests.
        timeout: seconds to wait for another process's lock or for the server.

    Returns:
        An Optuna storage whose database also holds our own tables (`tables`).

    Raises:
        StorageError: the database is locked, unreachable, not a database, on a network file
            system, or written by another version of Optuna.
    """
    url = storage_url(url_or_path)
    if url.get_backend_name() == "sqlite" and url.database not in _MEMORY:
        path = Path(url.database or "")
        _check_sqlite_path(path, url)
        if _is_read_only(path):
            with storage_errors(url):
                return _immutable(path, url)
    with storage_errors(url):
        return _retried(url, timeout)


def upgrade_optuna(url_or_path: str | os.PathLike[str]) -> None:
    """Bring Optuna's tables up to date; nothing happens when they are.

    Raises:
        StorageError: the database cannot be opened, holds no study, or a newer Optuna wrote it.
    """
    url = storage_url(url_or_path)
    text = url.render_as_string(hide_password=False)
    with storage_errors(url):
        engine = sa.create_engine(url)
        known = sa.inspect(engine).has_table("version_info")
        engine.dispose()
        if not known:
            raise StorageError(
                f"Storage {masked(url)} holds no study; give the database of a search, e.g. "
                "study.db in its output folder"
            )
        storage = RDBStorage(text, skip_compatibility_check=True, skip_table_creation=True)
        try:
            current = storage.get_current_version()
            if current not in storage.get_all_versions():
                raise StorageError(
                    f"Storage {masked(url)} was written by a newer Optuna (schema {current}); "
                    "install that one"
                )
            if current != storage.get_head_version():
                storage.upgrade()
        finally:
            close_storage(storage)


def close_storage(storage: RDBStorage) -> None:
    """Close all connections; the storage opens new ones when it is used again."""
    storage.remove_session()
    storage.engine.dispose()


@contextmanager
def storage_errors(url: URL | str) -> Iterator[None]:
    """Turn database errors inside the block into `StorageError`, with credentials masked."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        raise StorageError(_explain(error, url)) from error


def _retried(url: URL, timeout: float, attempts: int = 4) -> RDBStorage:
    """Open the storage; try again when another process creates the same tables meanwhile."""
    try:
        return _opened(url, timeout)
    except SQLAlchemyError as error:
        if attempts == 1 or not re.search("already exists|unique", str(error), re.IGNORECASE):
            raise
    return _retried(url, timeout, attempts - 1)


def _opened(url: URL, timeout: float) -> RDBStorage:
    """Create tables as needed and return the storage with its engine prepared."""
    options: dict[str, Any]
    memory = url.get_backend_name() == "sqlite" and url.database in _MEMORY
    if memory:
        # One connection for all threads: each further one would be an empty database.
        options = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
    elif url.get_backend_name() == "sqlite":
        options = {"connect_args": {"timeout": timeout}}
    else:
        options = {
            # A training takes longer than many servers keep an idle connection.
            "pool_pre_ping": True,
            "pool_recycle": 1800,
            "pool_size": 1,
            "max_overflow": 2,
            "connect_args": {
                "connect_timeout": max(1, round(timeout)),
                "keepalives": 1,
                "keepalives_idle": 60,
                "keepalives_interval": 15,
                "keepalives_count": 4,
            },
        }
    storage = _optuna_storage(url, url, options)
    if url.get_backend_name() == "postgresql":
        _prepare_postgresql(storage.engine, timeout)
    elif not memory:
        _prepare_sqlite(storage.engine, timeout)
    metadata.create_all(storage.engine)
    return storage


def _optuna_storage(url: URL, real: URL, options: dict[str, Any]) -> RDBStorage:
    """Return Optuna's storage at a URL that people know as another one."""
    try:
        return RDBStorage(real.render_as_string(hide_password=False), engine_kwargs=options)
    except ImportError as error:
        raise StorageError(
            f"Storage {masked(url)} needs a driver that is not installed: "
            "pip install 'circuitsearch[postgresql]'"
        ) from error
    except RuntimeError as error:  # how Optuna reports another version's schema
        raise StorageError(
            f"Storage {masked(url)} was written by another version of Optuna: {error} "
            f"Copy the database first, then: circuitsearch study upgrade '{masked(url)}'"
        ) from error


def _prepare_sqlite(engine: Engine, timeout: float) -> None:
    """Install the hook of the module docstring and drop the connections made without it."""

    def on_connect(connection: Any, _record: Any) -> None:
        # The driver must not begin transactions on its own: `on_begin` does.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={round(1000 * timeout)}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    def on_begin(connection: sa.Connection) -> None:
        reads = connection.get_execution_options().get(READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    sa.event.listen(engine, "connect", on_connect)
    sa.event.listen(engine, "begin", on_begin)
    engine.dispose()


def _prepare_postgresql(engine: Engine, timeout: float) -> None:
    """Bound every wait for a lock, that of a worker which vanished with its machine included."""
    waits = max(1, round(1000 * timeout))

    def on_connect(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {waits}")
            cursor.execute(f"SET idle_in_transaction_session_timeout = {waits}")
        connection.commit()

    sa.event.listen(engine, "connect", on_connect)
    engine.dispose()


def _check_sqlite_path(path: Path, url: URL) -> None:
    """Refuse a path that cannot hold an SQLite database, before SQLite's terse message."""
    if path.is_dir():
        raise StorageError(f"Storage {masked(url)} is a folder; give a file in it: {path}/study.db")
    if not path.parent.is_dir():
        raise StorageError(
            f"Storage {masked(url)}: the folder {str(path.parent)!r} does not exist; "
            f"create it (mkdir -p) or give another path"
        )
    kind = _filesystem(path.resolve().parent)  # the file itself may be a link
    if kind is not None and _NETWORK.fullmatch(kind):
        raise StorageError(
            f"Storage {masked(url)} lies on a network file system ({kind}), where SQLite's "
            "write-ahead log damages databases; give a path on a local disk (search.storage), or "
            "PostgreSQL for many machines"
        )


def _is_read_only(path: Path) -> bool:
    """Whether there is a file that cannot be written, or no log beside it."""
    return path.exists() and not all(os.access(one, os.W_OK) for one in (path, path.parent))


def _immutable(path: Path, url: URL) -> RDBStorage:
    """Open a file as it is, without a log beside it; beginning to write is refused.

    Raises:
        StorageError: its last changes lie in the log beside it, which such a reader passes over.
    """
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size > 0:
        raise StorageError(
            f"Storage {masked(url)} is read-only, and its last changes lie in {log.name} beside "
            "it; copy both to a folder that can be written"
        )
    options = {"mode": "ro", "immutable": "1", "uri": "true"}
    as_it_is = URL.create("sqlite", database=path.absolute().as_uri(), query=options)
    storage = _optuna_storage(url, as_it_is, {})

    def on_begin(connection: sa.Connection) -> None:
        # SQLite refuses no earlier than at the first change, as any failure that may pass
        if not connection.get_execution_options().get(READ_ONLY, False):
            raise StorageError(
                f"Storage {masked(url)} is read-only; change its permissions, or copy it to a "
                "folder that can be written"
            )

    sa.event.listen(storage.engine, "begin", on_begin)
    return storage


def _filesystem(folder: Path, table: str = "/proc/self/mountinfo") -> str | None:
    """Return the type of the file system that holds `folder`; None where that cannot be told."""
    try:
        lines = Path(table).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    folder = folder.resolve()
    depth, kind = 0, None
    for line in lines:
        head, _, tail = line.partition(" - ")
        # Blanks in mount points are written as octal escapes.
        mount = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), head.split()[4]))
        # The deepest mount point holds the folder; of two equal ones the later hides the earlier.
        if folder.is_relative_to(mount) and len(mount.parts) >= depth:
            depth, kind = len(mount.parts), tail.split()[0]
    return kind


def _explain(error: Exception, url: URL | str) -> str:
    """Say what a database error means and what to do."""
    cause: BaseException = error
    while isinstance(cause, StorageInternalError) and cause.__cause__ is not None:
        cause = cause.__cause__
    detail = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
    for part, meaning in _MEANINGS:
        if re.search(part, detail, re.IGNORECASE):
            return f"Storage {masked(url)} {meaning} ({detail})"
    return f"Storage {masked(url)} failed: {detail}"
