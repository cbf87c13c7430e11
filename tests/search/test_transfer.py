"""Whole studies: list, back up, copy, fork, upgrade."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from circuitsearch.core.budget import LimitSpec
from circuitsearch.core.errors import ConfigError, StorageError, TrainingError
from circuitsearch.core.files import canonical_json, content_hash
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.search import transfer
from circuitsearch.search.storage.connection import close_storage, open_storage
from circuitsearch.search.storage.ledger import Terms
from circuitsearch.search.storage.tables import SCHEMA, results
from circuitsearch.search.storage.transactions import LEGACY, reading
from circuitsearch.search.storage.view import StudyView
from circuitsearch.search.study import Study
from circuitsearch.search.transfer import backup, copy, fork, list_studies
from circuitsearch.search.upgrade import upgrade
from tests.search_fixtures import Landscape, kill_at_statement, limit, make_space
from tests.search_processes import processes

LIMITS: tuple[str | LimitSpec, ...] = ("40%", limit("50%", "macs"))
SPACE = make_space(*LIMITS)
OBJECTIVE = {"steps": 300}


def opened(storage: RDBStorage, name: str) -> Study:
    prior = Landscape.random(SPACE, 5).prior(0.6)
    return Study.open(storage, name, SPACE, OBJECTIVE, 11, "circuit", prior, {"any": 1}, {"a": "1"})


def warm(*texts: str) -> list[tuple[Plan, str]]:
    return [(Plan.parse(text), "scores") for text in texts]


def evaluate(plan: Plan, source: str) -> Measurement:
    """One plan fails, the others have their quality."""
    if plan == Plan.parse("C1"):
        raise TrainingError("loss is not finite")
    return Landscape.random(SPACE, 5, noise=0.02).measure(plan, source)


def busy(storage: RDBStorage, name: str) -> Study:
    """A study with trials of every kind and a further phase."""
    study = opened(storage, name)
    study.run(evaluate, 4, warm("C0", "C1", "C3 M3"))
    study.queue(warm("C2", "S0 C0"))
    study._ledger.claim("elsewhere:1:a.0", Terms(trainings=9))
    study.phase("full", {"steps": 3000}).run(evaluate, 1, warm("C0"))
    return study


def content(view: StudyView) -> list[tuple[Any, ...]]:
    """What a copy must keep of the trials."""
    return [
        (one.number, one.plan, one.source, one.measurement, one.failure) for one in view.trials()
    ]


def shown(storage: RDBStorage, name: str) -> list[tuple[object, ...]]:
    trials = optuna.load_study(storage=storage, study_name=name).trials
    return [(t.user_attrs["plan"], t.value, t.duration, t.datetime_complete) for t in trials]


def test_a_list_tells_studies_apart(database: Path) -> None:
    storage = open_storage(database)
    assert list_studies(storage) == []
    study = busy(storage, "second")
    opened(storage, "first").stop()
    first, second = list_studies(storage)
    assert (first.name, first.best, first.stopping, first.phases) == ("first", None, True, ())
    best = study.best()
    assert best is not None
    assert (second.sampler, second.best, second.best_plan) == ("circuit", best.quality, best.plan)
    assert (second.status, second.phases) == (study.status(), ("full",))
    assert second.created.endswith("+00:00")
    close_storage(storage)


def test_a_backup_is_one_file_with_everything(database: Path, tmp_path: Path) -> None:
    storage = open_storage(database)
    study = busy(storage, "study")
    path = tmp_path / "copy.db"
    assert backup(storage, path) == path
    study._ledger.release("elsewhere:1:a.0")
    study.run(evaluate, 6)  # not in the backup
    assert sorted(one.name for one in tmp_path.glob("copy*")) == ["copy.db"]
    saved = open_storage(path)
    view = StudyView(saved, "study")
    assert view.status().measured == 4
    assert len(shown(saved, "study")) == 5
    with pytest.raises(StorageError, match="exists; give the path of a new file"):
        backup(storage, path)
    with pytest.raises(StorageError, match="cannot be written"):
        backup(storage, tmp_path / "missing" / "copy.db")
    close_storage(saved)
    close_storage(storage)


def test_a_backup_of_postgres_is_left_to_its_own_tool(postgres: str, tmp_path: Path) -> None:
    storage = open_storage(postgres)
    with pytest.raises(StorageError, match="pg_dump") as caught:
        backup(storage, tmp_path / "copy.db")
    assert "circuitsearch study copy" in str(caught.value)
    close_storage(storage)


def test_a_copy_goes_on_like_the_original(database: Path, postgres: str) -> None:
    source, target = open_storage(database), open_storage(postgres)
    original = busy(source, "study")
    copied = copy(source, target, "study")
    assert content(copied) == content(original)
    assert [one.state for one in copied.trials()][-2:] == ["queued", "queued"]
    assert (copied.identity, copied.config) == (original.identity, original.config)
    assert (copied.versions, copied.created) == (original.versions, original.created)
    assert content(StudyView(target, "study", "full")) == content(
        StudyView(source, "study", "full")
    )
    assert shown(target, "study") == shown(source, "study")
    assert shown(target, "study:full") == shown(source, "study:full")
    original._ledger.release("elsewhere:1:a.0")
    original.run(evaluate, 8)
    Study.attach(target, "study").run(evaluate, 8)
    assert content(StudyView(target, "study")) == content(original)
    with pytest.raises(ConfigError, match=r"Study 'study' is in .* already"):
        copy(source, target, "study")
    with pytest.raises(ConfigError, match="did you mean 'study'"):
        copy(source, target, "studi")
    # Under another name it may be copied within one database.
    assert content(copy(source, source, "study", "again")) == content(original)
    close_storage(source)
    close_storage(target)


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_what_is_read_together_is_of_one_moment(
    where: str, database: Path, postgres: str, name: str
) -> None:
    place = str(database) if where == "sqlite" else postgres
    storage, other = open_storage(place), open_storage(place)
    study = opened(storage, name)
    study.run(evaluate, 2)
    count = sa.select(sa.func.count()).select_from(results)
    with reading(storage) as connection:
        before = connection.scalar(count)
        Study.attach(other, name, {"a": "1"}).run(evaluate, 3)
        assert connection.scalar(count) == before
    with reading(storage) as connection:
        assert connection.scalar(count) == (before or 0) + 1
    close_storage(other)
    close_storage(storage)


def test_a_fork_with_the_same_objective_keeps_the_results(memory: RDBStorage, name: str) -> None:
    old = busy(memory, name)
    space = make_space("25%")
    new = fork(memory, name, f"{name}-small", space, OBJECTIVE, 12, "random")
    kept = [one for one in old.measurements() if space.feasible(Plan.parse(one.plan))]
    assert 0 < len(kept) < 4
    assert new.measurements() == kept
    assert [one.number for one in new.trials()] == list(range(len(kept)))
    assert [plan for plan, *_ in shown(memory, new.name)] == [one.plan for one in kept]
    calls: list[str] = []

    def count(plan: Plan, source: str) -> Measurement:
        calls.append(str(plan))
        return evaluate(plan, source)

    new.run(count, 4)
    assert len(calls) == 4 - len(kept)
    assert content(old) == content(StudyView(memory, name))


def test_a_fork_with_another_objective_starts_from_the_best(memory: RDBStorage, name: str) -> None:
    old = busy(memory, name)
    new = fork(memory, name, f"{name}-long", SPACE, {"steps": 600}, 11, best=2)
    assert new.measurements() == []
    ranked = sorted(old.measurements(), key=lambda one: -(one.quality or 0))
    assert [(one.plan, one.source, one.state) for one in new.trials()] == [
        (one.plan, "fork", "queued") for one in ranked[:2]
    ]
    with pytest.raises(ConfigError, match=f"Study '{name}-long' is in .* already"):
        fork(memory, name, f"{name}-long", SPACE, {"steps": 600}, 11)
    # Plans that the new space has no words for are left behind.
    tiny = fork(memory, name, f"{name}-tiny", make_space(layers=1), OBJECTIVE, 11)
    assert {one.plan for one in tiny.measurements()} <= {"C0"}


def fork_and_die(url: str, new: str, objective: dict[str, int], statement: int) -> None:
    """Fork, and die by SIGKILL before that SQL statement."""
    storage = open_storage(url)
    kill_at_statement(storage, statement)
    fork(storage, "old", new, SPACE, objective, 11)


_WRITES = ("circuitsearch_studies", "circuitsearch_claims", "circuitsearch_results")


@pytest.mark.parametrize(
    ("place", "objective"),
    [("database", OBJECTIVE), ("database", {"steps": 600}), ("postgres", OBJECTIVE)],
)
def test_a_killed_fork_is_there_completely_or_not_at_all(
    request: pytest.FixtureRequest, place: str, objective: dict[str, int]
) -> None:
    url = str(request.getfixturevalue(place))
    storage = open_storage(url)
    busy(storage, "old")
    statements: list[str] = []
    noted = ("before_cursor_execute", lambda *event: statements.append(event[2].strip()))
    sa.event.listen(storage.engine, *noted)
    expected = content(fork(storage, "old", "undisturbed", SPACE, objective, 11))
    sa.event.remove(storage.engine, *noted)
    seen = shown(storage, "undisturbed")
    assert expected
    for table in (*_WRITES, "studies", "trials"):  # our own, then Optuna's
        places = [n for n, text in enumerate(statements, 1) if f"INSERT INTO {table} " in text]
        if not places:
            continue
        new = f"killed-at-{table}"
        child = processes().Process(target=fork_and_die, args=(url, new, objective, places[0]))
        child.start()
        child.join(120)
        assert child.exitcode == -signal.SIGKILL
        complete = new in {one.name for one in list_studies(storage)}
        assert complete == (table not in _WRITES)
        if complete:
            with pytest.raises(ConfigError, match="already; go on with that one"):
                fork(storage, "old", new, SPACE, objective, 11)
            Study.attach(storage, new).repair_mirror()  # as `run` does
        else:
            fork(storage, "old", new, SPACE, objective, 11)
        assert content(StudyView(storage, new)) == expected
        assert shown(storage, new) == seen
    close_storage(storage)


@pytest.mark.parametrize(
    "make",
    [
        lambda storage, name, new: copy(storage, storage, name, new),
        lambda storage, name, new: fork(storage, name, new, SPACE, OBJECTIVE, 11),
    ],
    ids=["copy", "fork"],
)
def test_of_two_that_take_one_name_the_later_is_refused(
    memory: RDBStorage,
    name: str,
    make: Callable[[RDBStorage, str, str], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = busy(memory, name)
    taken = f"{name}-taken"
    # As when the other one comes between the look and the writing.
    monkeypatch.setattr(transfer, "_refuse_taken", lambda *_: opened(memory, taken))
    with pytest.raises(ConfigError, match=f"Study '{taken}' is in .* already"):
        make(memory, name, taken)
    assert StudyView(memory, taken).trials() == []
    assert content(StudyView(memory, name)) == content(old)


def test_studies_of_the_first_schema_are_converted(database: Path) -> None:
    storage = open_storage(database)
    old_study(storage)
    with pytest.raises(ConfigError, match="circuitsearch study upgrade"):
        StudyView(storage, "old")
    with pytest.raises(ConfigError, match="circuitsearch study upgrade"):
        opened(storage, "old")
    close_storage(storage)
    assert upgrade(database) == ["old"]
    assert upgrade(database) == []
    storage = open_storage(database)
    trials = StudyView(storage, "old").trials()
    assert [(one.plan, one.state, one.source, one.failure) for one in trials] == [
        ("C0", "measured", "scores", None),
        ("C1", "failed", "scores", "diverged"),
        ("C2", "queued", "scores", None),
    ]
    assert trials[0].measurement is not None
    values = [("C0", trials[0].measurement.quality), ("C1", None)]
    assert [(plan, value) for plan, value, *_ in shown(storage, "old")] == values
    opened(storage, "old").run(evaluate, 3)
    assert StudyView(storage, "old").status().measured == 3
    close_storage(storage)


def old_study(storage: RDBStorage) -> None:
    """Write a study as version 1 kept it: one trial measured, one failed, one interrupted."""
    space = SPACE.to_json()
    del space["choices"]
    prior = Landscape.random(SPACE, 5).prior(0.6)
    identity = {"objective": OBJECTIVE, "space": space, "seed": 11, "sampler": "circuit"}
    study = optuna.create_study(storage=storage, study_name="old", direction="maximize")
    study.set_user_attr(LEGACY, {**identity, "prior": prior})
    for text, state in (("C0", "measured"), ("C1", "failed"), ("C2", "running")):
        plan = Plan.parse(text)
        bits = dict(zip(SPACE.names, SPACE.bits(plan), strict=True))
        study.enqueue_trial(
            bits, user_attrs={"plan": text, "plan_hash": plan.hash, "source": "scores"}
        )
        trial = study.ask()
        measured = evaluate(plan, "scores") if state == "measured" else None
        if state != "running":
            row = {
                "study": "old",
                "plan_hash": plan.hash,
                "objective_hash": content_hash(OBJECTIVE),
                "plan": text,
                "state": state,
                "measurement": None if measured is None else canonical_json(measured.to_json()),
                "reason": None if measured else "diverged",
                "recorded": "2026-01-01T00:00:00",
            }
            with storage.engine.begin() as connection:
                connection.execute(sa.insert(results).values(row))
            if measured is None:
                trial.set_user_attr("failure", "diverged")
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, measured.quality or 0.0)


def test_tables_of_newer_programs_are_refused(database: Path, tmp_path: Path) -> None:
    storage = open_storage(database)
    opened(storage, "study")
    with storage.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE circuitsearch_studies SET schema_version = :v"), {"v": SCHEMA + 1}
        )
    with pytest.raises(StorageError, match=f"tables of version {SCHEMA + 1}.*install a newer one"):
        StudyView(storage, "study")
    close_storage(storage)
    newer = Path(shutil.copy(database, tmp_path / "newer.db"))
    with sqlite3.connect(newer) as plain:
        plain.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    plain.close()
    with pytest.raises(StorageError, match=r"by a newer Optuna \(schema v99"):
        upgrade(newer)
