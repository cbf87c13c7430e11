"""Every code block of README and docs/ works: Python runs, YAML loads, commands parse."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cached_property
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import typer
import typer.main
import yaml

from circuitsearch.cli.main import app
from circuitsearch.config import SearchConfig
from circuitsearch.configfile import load_config
from circuitsearch.pipeline import Pipeline
from tests.docs.blocks import PAGES, ROOT, Block, blocks, commands, inline_commands
from tests.docs.running import run_page

EXAMPLE = ROOT / "docs" / "example.md"
ALL = [block for page in PAGES for block in blocks(page)]
LANGUAGES = {"python", "yaml", "sh", "text", "json"}
SEARCH = """\
name: mine
output: results/mine
budget: [{quantity: parameters, limit: 50%}]
"""


def names(found: list[Block]) -> list[str]:
    return [block.place for block in found]


def test_the_example_runs_and_leaves_what_it_says(example_folder: Path) -> None:
    for name in ("result.md", "circuit.html", "study.db", "student/model.safetensors"):
        assert (example_folder / "results/example" / name).stat().st_size > 0
    assert (example_folder / "results/mine-by-hand/config.json").exists()


RUN = [
    page
    for page in PAGES
    if page != EXAMPLE and any(b.language == "python" and not b.needs for b in blocks(page))
]


@pytest.mark.parametrize("page", RUN, ids=[str(page.relative_to(ROOT)) for page in RUN])
def test_python_blocks_run_in_order(page: Path, reader_folder: Path, tiny_folder: Path) -> None:
    run_page(page, reader_folder, tiny_folder)


FAR = [block for block in ALL if block.needs]


@pytest.mark.parametrize("block", FAR, ids=names(FAR))
def test_blocks_that_need_more_name_what_exists(block: Block) -> None:
    assert block.language == "python"
    for part in ast.walk(ast.parse(block.text)):
        if isinstance(part, ast.ImportFrom) and (part.module or "").startswith("circuitsearch"):
            module = importlib.import_module(part.module or "")
            missing = [one.name for one in part.names if not hasattr(module, one.name)]
            assert missing == [], block.place
        if isinstance(part, ast.Import):
            for one in part.names:
                importlib.import_module(one.name)


def test_fences_name_a_language_that_is_checked() -> None:
    assert [block.place for block in ALL if block.language not in LANGUAGES] == []
    assert len(FAR) >= 1
    assert len(RUN) >= 3


SETTINGS = [b for b in ALL if b.language == "yaml" and "apiVersion" not in b.text]


@pytest.mark.parametrize("block", SETTINGS, ids=names(SETTINGS))
def test_yaml_is_a_search_or_a_section_of_one(block: Block, tmp_path: Path) -> None:
    given = yaml.safe_load(block.text)
    assert set(given) <= set(SearchConfig.model_fields), block.place
    base = {} if "name" in given else yaml.safe_load(SEARCH)
    path = tmp_path / "search.yaml"
    path.write_text(block.text if not base else yaml.safe_dump(base | given, sort_keys=False))
    load_config(path)


LAUNCHED = [
    (page, number, words[words.index("circuitsearch") + 1 :])
    for page in PAGES
    for number, program, words in commands(page)
    if program == "accelerate" and "circuitsearch" in words
]
WHOLE = LAUNCHED + [
    (page, number, words)
    for page in PAGES
    for number, program, words in commands(page)
    if program == "circuitsearch"
]


@pytest.mark.parametrize(
    ("page", "line", "words"),
    WHOLE,
    ids=[f"{page.relative_to(ROOT)}:{number}" for page, number, _ in WHOLE],
)
def test_command_lines_are_understood(
    page: Path, line: int, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIRCUITSEARCH_STORAGE", "study.db")  # the pages say to set it
    parsed(words)


def parsed(words: list[str]) -> None:
    """Parse a command line as the program does, without running it."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("circuitsearch", list(words))
    while hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


def test_a_wrong_command_line_is_found() -> None:
    """The check itself: unknown words and options, a missing argument and one too many."""
    usage_error = typer.BadParameter.__mro__[1]  # typer brings a click of its own
    assert usage_error.__name__ == "UsageError"
    wrong = ["run a.yaml --fast", "run", "run a.yaml b.yaml", "top . many", "study export x"]
    for line in (*wrong, "paint", "study", "study copy x"):
        with pytest.raises(usage_error):
            parsed(line.split())
    parsed(["run", "search.yaml", "-o", "seed=3", "--json"])


def test_commands_inside_sentences_exist() -> None:
    command: Any = typer.main.get_command(app)
    found = 0
    for page in PAGES:
        for number, words in inline_commands(page):
            at = command
            names_, options = [w for w in words if re.fullmatch(r"[a-z-]+", w)], []
            while hasattr(at, "commands") and words and words[0] in at.commands:
                at, words = at.commands[words[0]], words[1:]
            place = f"{page.relative_to(ROOT)}:{number} {names_}"
            assert at is not command or words[0].startswith("-"), place
            options = [w.split("=")[0] for w in words if w.startswith("--")]
            known = {name for one in at.params for name in [*one.opts, "--help"]}
            assert set(options) <= known, place
            found += 1
    assert found >= 5


def test_every_command_is_in_the_table_of_the_readme() -> None:
    table = [line for line in (ROOT / "README.md").read_text().splitlines() if line[:3] == "| `"]
    named = {one for line in table for one in re.findall(r"`([^`]+)`", line)}
    commands_ = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    missing = [name for name in commands_ if not any(one.split()[0] == name for one in named)]
    assert missing == []


def test_how_it_works_names_every_stage_in_order() -> None:
    kinds = cached_property, FunctionType
    stages = {name for name, one in vars(Pipeline).items() if isinstance(one, kinds)}
    text = (ROOT / "docs" / "how-it-works.md").read_text()
    headings = re.findall(r"^## \d+\. (.+)$", text, re.MULTILINE)
    named = [name for heading in headings for name in re.findall(r"`(\w+)`", heading)]
    numbers = re.findall(r"^## (\d+)\.", text, re.MULTILINE)
    assert [int(one) for one in numbers] == list(range(1, len(numbers) + 1))
    assert sorted(named) == sorted(name for name in stages if not name.startswith("_"))
    assert named[0] == "teacher"
    assert named[-1] == "run"


MAKES = [
    (page, words) for page in PAGES for _, program, words in commands(page) if program == "make"
]


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert MAKES
    for page, words in MAKES:
        assert {w for w in words if "=" not in w} <= targets, page


def test_links_and_files_that_pages_name_exist() -> None:
    """mkdocs checks links inside docs/; README's, and files that pages name, are checked here."""
    for link in re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text()):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link
    for page in PAGES:
        named = re.findall(r"`((?:tests|searches|results)/[\w./-]+\.\w+)`", page.read_text())
        # what a run leaves beside a result table is not in the repository
        missing = [name for name in named if not (ROOT / name).exists()]
        assert missing == [], page
