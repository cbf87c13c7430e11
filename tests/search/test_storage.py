"""Storage: the SQLite hook, PostgreSQL, and what its errors say."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage

from circuitsearch.core.errors import StorageError
from circuitsearch.core.text import drop_passwords, hide_passwords
from circuitsearch.search.storage import connection as module
from circuitsearch.search.storage.connection import (
    READ_ONLY,
    close_storage,
    masked,
    open_storage,
    storage_errors,
    storage_url,
    without_password,
)
from circuitsearch.search.storage.view import StudyView
from circuitsearch.search.study import Study
from tests.search_fixtures import Landscape, make_space


def test_sqlite_connections_are_prepared_and_transactions_take_the_lock(database: Path) -> None:
    storage, other = open_storage(database), open_storage(database, timeout=0.1)
    with storage.engine.begin() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "busy_timeout")
        }
        assert pragmas == {"journal_mode": "wal", "synchronous": 1, "busy_timeout": 60_000}
        # BEGIN IMMEDIATE: a second transaction waits although this one has only read so far.
        with (
            pytest.raises(StorageError, match="is locked by another process"),
            storage_errors(other.url),
            other.engine.begin(),
        ):
            pass
    with other.engine.begin():
        pass
    # One that only reads waits for nobody.
    readers = other.engine.execution_options(**{READ_ONLY: True})
    with storage.engine.begin(), readers.begin() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM circuitsearch_claims")) == 0
    close_storage(storage)
    close_storage(other)


def test_reopening_keeps_what_was_written(database: Path) -> None:
    storage = open_storage(str(database))
    storage.create_new_study([], "kept")
    close_storage(storage)
    again = open_storage(f"sqlite:///{database}")
    assert [study.study_name for study in again.get_all_studies()] == ["kept"]
    close_storage(again)


def test_postgres_options(postgres: str) -> None:
    storage = open_storage(postgres)
    assert storage.engine.url.drivername == "postgresql+psycopg"
    assert storage.engine_kwargs["pool_pre_ping"] is True
    assert storage.engine_kwargs["pool_recycle"] == 1800
    # A connection that the server dropped in the meantime is replaced without an error.
    with storage.engine.begin() as connection:
        pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
    other = sa.create_engine(storage.engine.url)
    with other.begin() as connection:
        connection.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    other.dispose()
    assert storage.get_all_studies() == []
    close_storage(storage)


def test_postgres_waits_for_no_lock_for_ever(postgres: str) -> None:
    storage, other = open_storage(postgres), open_storage(postgres, timeout=1)
    query = sa.text("LOCK TABLE circuitsearch_studies")

    def wait() -> None:
        with storage_errors(other.url), other.engine.begin() as waiting:
            waiting.execute(query)

    with storage.engine.begin() as holder:
        holder.execute(query)
        with pytest.raises(StorageError, match="is locked by another process"):
            wait()
    # Nor does the lock of one that vanished with its machine last.
    with other.engine.begin() as connection:
        limit = connection.scalar(sa.text("SHOW idle_in_transaction_session_timeout"))
    assert limit == "1s"
    close_storage(storage)
    close_storage(other)


def test_postgres_refusals(postgres_server: str) -> None:
    server = storage_url(postgres_server)
    with pytest.raises(StorageError, match="unknown to the server") as caught:
        open_storage(server.set(database="no_such_db").render_as_string(hide_password=False))
    assert "no_such_db" in str(caught.value)
    url = "postgresql://someone:geheim@127.0.0.1:9/none?sslpassword=geheim"
    with pytest.raises(StorageError, match="is unreachable; check host and port") as caught:
        open_storage(url, timeout=3)
    assert "geheim" not in str(caught.value)
    assert "someone:***@127.0.0.1:9" in str(caught.value)
    assert caught.value.exit_code == 4


def test_what_is_no_usable_file_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no database at all, only some words. " * 40)
    with pytest.raises(StorageError, match="is not an SQLite database"):
        open_storage(text)
    assert text.read_text().startswith("no database")
    with pytest.raises(StorageError, match="is a folder; give a file in it"):
        open_storage(tmp_path)
    with pytest.raises(StorageError, match=r"(?s)folder '.*missing' does not exist.*mkdir -p"):
        open_storage(tmp_path / "missing" / "study.db")


def test_what_cannot_be_written_is_read_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a b#c?" / "stu%dy.db"
    path.parent.mkdir()
    landscape = Landscape.random(make_space(), 1)
    storage = open_storage(path)
    Study.open(storage, "kept", make_space(), {}, 0, "random").run(landscape.measure, 2)
    with storage.engine.connect() as held:  # as long as it is open the log stays
        held.execute(sa.text("SELECT 1 FROM circuitsearch_studies"))
        monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != path.parent)
        with pytest.raises(StorageError, match=r"last changes lie in stu%dy\.db-wal beside it"):
            open_storage(path)
    close_storage(storage)
    assert os.listdir(path.parent) == [path.name]
    storage = open_storage(path)
    view = StudyView(storage, "kept")
    assert (view.status().measured, len(view.ranked())) == (2, 2)
    with pytest.raises(StorageError, match="is read-only; change its permissions, or copy it"):
        Study.attach(storage, "kept").run(landscape.measure, 3)
    close_storage(storage)
    assert os.listdir(path.parent) == [path.name]


def test_a_locked_file_is_named(database: Path) -> None:
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageError, match=r"study\.db is locked by another process"):
        open_storage(database, timeout=0.1)
    holder.execute("ROLLBACK")
    holder.close()


def test_another_versions_schema_is_refused_with_the_command(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    connection.close()
    with pytest.raises(StorageError, match="circuitsearch study upgrade 'sqlite:///"):
        open_storage(database)


@pytest.mark.parametrize("kind", ["nfs4", "lustre", "gpfs", "fuse.sshfs"])
def test_network_file_systems_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    table = tmp_path / "mountinfo"
    share = tmp_path / "two words"
    share.mkdir()
    escaped = str(share).replace(" ", "\\040")
    table.write_text(
        "22 1 254:0 / / rw - ext4 /dev/vda rw\n"
        f"30 22 0:40 / {escaped} rw,relatime shared:1 - {kind} server:/home rw\n"
    )
    original = module._filesystem
    assert original(share, str(table)) == kind
    assert original(tmp_path, str(table)) == "ext4"
    assert original(tmp_path, str(tmp_path / "no table")) is None
    monkeypatch.setattr(module, "_filesystem", lambda folder: original(folder, str(table)))
    (tmp_path / "linked.db").symlink_to(share / "study.db")
    for path in (share / "study.db", tmp_path / "linked.db"):
        with pytest.raises(StorageError, match=rf"network file system \({kind}\)"):
            open_storage(path)
    assert not (share / "study.db").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://u:p@h/d", "postgresql+psycopg://u:***@h/d"),
        ("postgres://u@h/d", "postgresql+psycopg://u@h/d"),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
        ("sqlite://", "sqlite://"),
    ],
)
def test_urls(text: str, expected: str) -> None:
    assert masked(storage_url(text)) == expected


def test_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    url = storage_url("study {1}?.db")
    assert url.database == os.path.join(tmp_path, "study {1}?.db")
    storage = open_storage("study {1}?.db")  # Optuna formats its URL: braces must survive
    close_storage(storage)
    assert (tmp_path / "study {1}?.db").exists()


def test_passwords_are_masked_everywhere() -> None:
    for url in (
        "postgresql://u:geheim@h/d?password=geheim&sslpassword=geheim",
        "mysql://u:geheim@h/d",
        "postgresql://u:geheim@h:port/d",  # not a URL: the port is no number
        "postgresql://u:sehr@geheim@h/d",
        "postgresql://u:sehr/@geheim/@h/d",
        "postgresql://h/d?x=1&PASSWORD=geheim",
    ):
        assert "geheim" not in masked(url)
    with pytest.raises(StorageError, match="got 'mysql', allowed are") as caught:
        storage_url("mysql://u:geheim@h/d")
    assert "geheim" not in str(caught.value)
    with pytest.raises(StorageError, match="is no URL; allowed are") as caught:
        storage_url("postgresql://u:geheim@h:port/d")
    assert "geheim" not in str(caught.value)
    with pytest.raises(StorageError, match="write an @ in them as %40") as caught:
        storage_url("postgresql://u:sehr@geheim@h/d")
    assert "geheim" not in str(caught.value)
    with pytest.raises(StorageError, match="got an empty text"):
        storage_url("  ")
    with pytest.raises(StorageError, match="allowed are a path"):
        storage_url("redis://h")
    with pytest.raises(StorageError, match="there is no such user"):
        storage_url("~nobody-of-that-name/study.db")


@pytest.mark.parametrize(
    ("url", "hint", "written"),
    [
        ("postgresql://u:geheim@h/d", "postgresql://u@h/d", "postgresql://u@h/d"),
        (
            "postgresql://u:geheim@h/d?password=geheim&application_name=x",
            "postgresql://u@h/d?application_name=x",
            "postgresql://u@h/d?application_name=x",
        ),
        # a hint may lose too much, the file may not
        (
            "postgresql://u:geheim@h/d?application_name=w@x",
            "postgresql://u@x",
            "postgresql://u@h/d?application_name=w%40x",
        ),
        ("postgresql://u:ge@heim@h/d", "postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql://a@b:geheim@h/d", "postgresql://a@b@h/d", "postgresql://a%40b@h/d"),
        ("postgresql://u:ge%20heim@h/d", "postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql://u:ge heim@h/d", "postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql://u:geheim@h:port/d", "postgresql://u@h:port/d", "postgresql://u@h:port/d"),
        *[
            (plain, plain, plain)
            for plain in (
                "postgresql://u@h:5432/d?sslmode=require&passfile=/home/u/.pgpass",
                "sqlite:////tmp/a?b.db",
                "runs/a?b@c.db",
            )
        ],
    ],
)
def test_passwords_are_left_out_of_hints_and_files(url: str, hint: str, written: str) -> None:
    assert drop_passwords(url) == hint
    assert without_password(url) == written
    assert "heim" not in hide_passwords(f"override 'search.storage={url}' is wrong")


def test_a_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> RDBStorage:
        raise ImportError("No module named 'psycopg'")

    monkeypatch.setattr(module, "RDBStorage", missing)
    with pytest.raises(StorageError, match=r"pip install 'circuitsearch\[postgresql\]'"):
        open_storage("postgresql://u:geheim@h/d")


def test_a_race_of_two_creators_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original, attempts = module._opened, []

    def late(url: sa.URL, timeout: float) -> RDBStorage:
        attempts.append(1)
        if len(attempts) < 3:
            raise sa.exc.OperationalError("", {}, Exception("table studies already exists"))
        return original(url, timeout)

    monkeypatch.setattr(module, "_opened", late)
    close_storage(open_storage(tmp_path / "study.db"))
    assert len(attempts) == 3


def test_unknown_database_errors_keep_their_text() -> None:
    with (
        pytest.raises(StorageError, match=r"sqlite:// failed: no such table: studies"),
        storage_errors("sqlite://"),
    ):
        raise sa.exc.OperationalError("SELECT", {}, Exception("no such table: studies\nmore"))
