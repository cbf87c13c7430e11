"""The commands on studies: which database a place means, and what they say of it."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from circuitsearch.cli.main import app
from circuitsearch.config import SearchConfig
from circuitsearch.configfile import dump_config, load_config
from circuitsearch.core.cost import recorded_costs
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.search.storage.connection import close_storage, open_storage
from circuitsearch.search.study import Study
from circuitsearch.show.report import write_result
from tests.search_fixtures import Landscape, make_space
from tests.show.report_fixtures import FACTS, rows

SPACE = make_space("40%")


def here(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == code, f"{done.stderr}\n{done.exception!r}"
    return done


def told(*arguments: object) -> Any:
    return json.loads(here(*arguments, "--json").stdout)


def evaluate(plan: Plan, source: str) -> Measurement:
    made = Landscape.random(SPACE, 5).measure(plan, source)
    return replace(made, cost=recorded_costs(plan, SPACE.shape))


def searched(folder: Path, *, storage: Path | None = None) -> Path:
    """A search whose study has two of five trainings; return its file."""
    config = SearchConfig.model_validate(
        {
            "name": "mine",
            "output": str(folder),
            "budget": [{"quantity": "parameters", "limit": "40%"}],
            "search": {"trainings": 5, "storage": None if storage is None else str(storage)},
        }
    )
    folder.mkdir(parents=True)
    path = folder / "search.yaml"
    path.write_text(dump_config(config))
    opened = open_storage(load_config(path).database)
    study = Study.open(opened, "mine", SPACE, {"steps": 3}, 1, "random", config=config.to_json())
    study.run(evaluate, 2)
    close_storage(opened)
    return path


@pytest.mark.parametrize("name", ["a?b%20c#d", "{0} [x] ü&=+;"])
def test_an_output_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    path = searched(folder)
    for place in (path, folder, folder / "study.db"):
        assert told("status", place)["measured"] == 2
        assert [one["name"] for one in told("study", "list", place)] == ["mine"]
    assert len(told("top", folder)) == 2
    here("study", "backup", folder, folder / "backup?.db")
    here("study", "copy", folder, folder / "copy%.db")
    for copied in ("backup?.db", "copy%.db"):
        assert told("status", folder / copied)["measured"] == 2
    here("study", "upgrade", folder)
    # Nothing was written anywhere else.
    assert [one.name for one in tmp_path.iterdir()] == [name]
    written = {"search.yaml", "study.db", "backup?.db", "copy%.db"}
    assert {one.name for one in folder.iterdir() if one.suffix in (".db", ".yaml")} == written


def aged(database: Path) -> None:
    """Make the database one of the second schema, which lacks a table."""
    with contextlib.closing(sqlite3.connect(database)) as plain, plain:
        plain.execute("UPDATE circuitsearch_studies SET schema_version = 2")
        plain.execute("DROP TABLE circuitsearch_speeds")


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("form", ["file", "folder", "path", "url"])
def test_upgrade_takes_what_its_siblings_take(tmp_path: Path, form: str, elsewhere: bool) -> None:
    storage = tmp_path / "elsewhere.db" if elsewhere else None
    file = searched(tmp_path / "out", storage=storage)
    database = storage or file.with_name("study.db")
    aged(database)
    forms = {"file": file, "folder": file.parent, "path": database, "url": f"sqlite:///{database}"}
    place = forms[form]
    assert "circuitsearch study upgrade" in here("status", place, code=4).stderr
    assert "converted: mine" in here("study", "upgrade", place).stderr
    assert "converted: none" in here("study", "upgrade", place).stderr
    assert told("status", place)["measured"] == 2


def test_upgrade_makes_no_database(tmp_path: Path) -> None:
    folder = searched(tmp_path / "out", storage=tmp_path / "elsewhere.db").parent
    (tmp_path / "elsewhere.db").unlink()
    for place in (folder, tmp_path / "none.db"):
        assert "there is no such file" in here("study", "upgrade", place, code=4).stderr
    assert "no search.yaml there" in here("study", "upgrade", tmp_path, code=2).stderr
    with contextlib.closing(sqlite3.connect(tmp_path / "notes.db")) as plain, plain:
        plain.execute("CREATE TABLE notes (text)")
    assert "holds no study" in here("study", "upgrade", tmp_path / "notes.db", code=4).stderr
    (tmp_path / "notes.db").unlink()
    assert list(tmp_path.glob("**/*.db")) == []


def test_status_tells_how_much_of_a_phase_is_done(tmp_path: Path) -> None:
    file = searched(tmp_path / "out")
    storage = open_storage(load_config(file).database)
    study = Study.attach(storage, "mine")
    phase = study.phase("full", {"steps": 9})
    plans = [(plan, "scores") for plan in list(SPACE.enumerate())[:3]]
    phase.run(evaluate, 1, plans)
    assert "study mine: 2 of 5 trainings done" in here("status", file).stderr
    shown = here("status", file, "--phase", "full").stderr
    assert "study mine, phase full: 1 of 3 trainings done, 2 queued" in shown
    whole, part = told("status", file), told("status", file, "--phase", "full")
    assert (whole["phase"], whole["trainings"], whole["measured"]) == (None, 5, 2)
    assert (part["phase"], part["trainings"], part["measured"]) == ("full", 3, 1)
    # One that no search file stands behind does not say how far it is to go.
    Study.open(storage, "bare", SPACE, {"steps": 3}, 1, "random").run(evaluate, 1)
    close_storage(storage)
    assert "study bare: 1 trainings done" in here("status", file, "--study", "bare").stderr
    assert told("status", file, "--study", "bare")["trainings"] is None


@pytest.mark.parametrize("kept", [("search.yaml",), ()])
def test_a_report_finds_the_study_in_a_folder_of_any_name(
    tmp_path: Path, kept: tuple[str, ...]
) -> None:
    folder = searched(tmp_path / "a?b%20c#d").parent
    write_result(folder, rows(), FACTS)
    moved = folder.rename(tmp_path / "e?f%20g#h")
    for file in moved.glob("*.yaml"):
        if file.name not in kept:
            file.unlink()
    assert "no study database there" not in here("report", moved).stderr
    assert (moved / "report.html").exists()


def test_the_database_lies_beside_everything_else_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    searched(Path("~mine"))  # the user's home folder in a shell, a name like any other here
    assert (tmp_path / "~mine" / "study.db").exists()
    assert told("status", "~mine")["measured"] == 2


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    notes = tmp_path / "notes.db"
    with contextlib.closing(sqlite3.connect(notes)) as connection:
        connection.execute("CREATE TABLE notes (text TEXT)")
        connection.commit()
    before = notes.read_bytes()
    (tmp_path / "empty.db").touch()
    for path in (notes, tmp_path / "empty.db"):
        for arguments in (("status", path), ("top", path), ("study", "list", path)):
            assert "holds no study" in here(*arguments, code=4).stderr
    assert notes.read_bytes() == before
    assert (tmp_path / "empty.db").stat().st_size == 0


def test_of_equal_quality_the_lower_loss_is_best_everywhere(tmp_path: Path) -> None:
    database = tmp_path / "study.db"
    storage = open_storage(database)
    losses = iter((0.5, 0.3, 0.4))

    def equal(plan: Plan, source: str) -> Measurement:
        return replace(evaluate(plan, source), quality=0.6, loss=next(losses))

    study = Study.open(storage, "mine", SPACE, {"steps": 3}, 1, "random")
    study.run(equal, 3)
    expected = [study.trials()[place].plan for place in (1, 2, 0)]
    close_storage(storage)
    assert [row["plan"] for row in told("top", database)] == expected
    assert told("status", database)["best"]["plan"] == expected[0]
    assert told("study", "list", database)[0]["best_plan"] == expected[0]


def test_a_copy_of_no_study_makes_no_database(tmp_path: Path) -> None:
    path = searched(tmp_path / "mine")
    copied = ("study", "copy", path, tmp_path / "new.db", "--study", "typo")
    assert "typo" in here(*copied, code=2).stderr
    assert not (tmp_path / "new.db").exists()
    assert "no phase 'full' yet" in here("status", path, "--phase", "full", code=2).stderr
