"""The public names: lazy, documented, with the defaults of the commands and of the settings."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

import circuitsearch
from circuitsearch.api import functions
from circuitsearch.api.search import Search
from circuitsearch.cli.main import app
from circuitsearch.config import GenerationConfig, SearchConfig
from circuitsearch.configfile import load_config
from circuitsearch.core.errors import ConfigError, PlanError, StorageError
from circuitsearch.students.export.files import OPSET, OPSETS
from tests.docs.blocks import ROOT

METHODS = {
    name: one
    for name, one in vars(Search).items()
    if inspect.isfunction(one) and not name.startswith("_")
}
CALLS: dict[str, Callable[..., Any]] = {
    **{name: getattr(functions, name) for name in functions.__all__ if name != "shape_of"},
    "load_config": load_config,
    "join_study": circuitsearch.join_study,
    "Search": Search.__init__,
    **{f"Search.{name}": one for name, one in METHODS.items()},
}
CODE = """
import json, sys
import circuitsearch
names = sorted(sys.modules)
shown = dir(circuitsearch)
circuitsearch.Plan, circuitsearch.cost, circuitsearch.Search
print(json.dumps([names, shown, sorted(sys.modules)]))
"""


def test_names_are_looked_up_when_they_are_used() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded, shown, later = json.loads(done.stdout)
    assert not {"torch", "transformers", "pydantic", "optuna", "numpy"} & set(loaded)
    assert not {"torch", "transformers", "optuna"} & set(later)
    assert set(circuitsearch.__all__) <= set(shown)


def test_every_name_is_there_and_no_other() -> None:
    for name in circuitsearch.__all__:
        assert getattr(circuitsearch, name) is not None
    assert len(circuitsearch.__all__) <= 14
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        circuitsearch.serach  # noqa: B018
    named = (ROOT / "docs" / "api.md").read_text()
    for name in circuitsearch.__all__:
        assert name.startswith("__") or f".{name}\n" in named, name


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_typed_and_documented(name: str) -> None:
    call = CALLS[name]
    signature, text = inspect.signature(call), inspect.getdoc(call) or ""
    given = [one for one in signature.parameters.values() if one.name != "self"]
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(one.annotation is not inspect.Parameter.empty for one in given)
    if given:
        assert "\nArgs:\n" in text
    for one in given:
        assert f"\n    {one.name}: " in text, one.name
    if signature.return_annotation != "None":
        assert "\nReturns:\n" in text or text.startswith("Return ")
    if name != "Search.outputs":
        assert "\nRaises:\n" in text


def option(command: str, name: str) -> Any:
    """Return the default of a command's option or argument."""
    found = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    return next(one.default for one in found.params if one.name == name)


def default(call: Callable[..., Any], name: str) -> Any:
    return inspect.signature(call).parameters[name].default


@pytest.mark.parametrize(
    ("call", "command", "names"),
    [
        (functions.cost, "cost", ("plan", "teacher", "accounting", "prompt", "passes")),
        (functions.compare, "compare", ("strict", "seed", "draws")),
        (functions.export, "export", ("opset",)),
        (circuitsearch.join_study, "worker", ("study", "output", "quiet")),
        (Search.validate, "validate", ("measure",)),
        (Search.analyze, "analyze", ("only",)),
        (Search.distill, "distill", ("steps", "seed", "stock")),
        (Search.evaluate, "evaluate", ("student", "split", "strict")),
    ],
)
def test_defaults_are_those_of_the_commands(
    call: Callable[..., Any], command: str, names: tuple[str, ...]
) -> None:
    for name in names:
        assert default(call, name) == option(command, name), name


def test_defaults_are_those_of_the_settings() -> None:
    lengths = GenerationConfig()
    assert default(functions.cost, "prompt") == lengths.prompt
    assert default(functions.cost, "passes") == lengths.passes
    teacher = SearchConfig.model_fields["teacher"].default
    assert default(functions.cost, "teacher") == default(functions.load_teacher, "teacher")
    assert default(functions.cost, "teacher") == teacher
    text = inspect.getdoc(functions.export) or ""
    assert f"{OPSETS[0]} to {OPSETS[-1]}; default {OPSET}" in text


def small(folder: Path, teacher: Path) -> SearchConfig:
    return SearchConfig.model_validate(
        {
            "name": "small",
            "output": folder / "out",
            "teacher": str(teacher),
            "data": {"source": "rendered", "train": 4, "score": 2, "select": 2, "final": 2},
            "budget": [{"quantity": "parameters", "limit": "50%"}],
        }
    )


def test_a_search_from_settings_is_that_of_its_folder(tmp_path: Path, tiny_folder: Path) -> None:
    config = small(tmp_path, tiny_folder)
    search = Search(config, quiet=True)
    facts = search.validate(measure=False)
    again = Search(tmp_path / "out", ["seed=3"], quiet=True)
    assert again.config == config.model_copy(update={"seed": 3})
    assert Search(again.path, quiet=True).validate(measure=False) == facts
    assert search.outputs() == {"configuration": search.folder / "search.yaml"}


def test_faults_are_refused_with_the_projects_errors(tmp_path: Path, tiny_folder: Path) -> None:
    config = small(tmp_path, tiny_folder)
    with pytest.raises(ConfigError, match="win over a file"):
        Search(config, ["seed=3"])
    with pytest.raises(ConfigError, match="output folder of a search that was run"):
        Search(tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        Search(tmp_path / "none.yaml")
    search = Search(config, quiet=True)
    with pytest.raises(ConfigError, match="split: got 'test'"):
        search.evaluate(split="test")  # type: ignore[arg-type]
    with pytest.raises(PlanError):
        search.distill("X9", tmp_path / "student")
    with pytest.raises(StorageError, match="no such file"), circuitsearch.open_study("none.db"):
        pass
    with pytest.raises(PlanError, match="4 layers"):
        circuitsearch.cost("M7", tiny_folder)


def test_a_folder_that_is_worked_in_is_refused_until_it_is_free(
    tmp_path: Path, tiny_folder: Path
) -> None:
    search = Search(small(tmp_path, tiny_folder), quiet=True)
    lock = search.work.claim()
    with pytest.raises(StorageError, match="another process runs this search"):
        search.scores()
    lock.release()
    assert search.scores().components
    # a notebook's cell that is run again makes a second object beside the first
    assert Search(search.folder, quiet=True).scores() == search.scores()
