"""What the shell sees: completion, quick help without heavy imports, close names, streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from circuitsearch.cli.main import app
from circuitsearch.cli.shell import on_interrupt
from circuitsearch.config import SearchConfig
from circuitsearch.config.template import dotted_keys
from circuitsearch.configfile import load_config
from tests.end_to_end.shell import COMMAND, ROOT, environment

# `--help` in seconds of processor time; a process of its own, so neighbours do not count
HEAVY = ("torch", "transformers", "optuna", "matplotlib", "scipy", "numpy", "datasets", "yaml")


def completed(words: str, place: int) -> list[str]:
    """Ask for completions as bash does."""
    variables = {
        "_CIRCUITSEARCH_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(place),
    }
    code = "from circuitsearch.cli.main import app; app(prog_name='circuitsearch')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment() | variables, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_sub_commands_and_keys_are_completed() -> None:
    assert completed("circuitsearch va", 1) == ["validate"]
    assert completed("circuitsearch graph ", 2) == ["write", "show"]
    found = completed("circuitsearch run x.yaml -o search.war", 4)
    sources = ("scores", "edges", "pairs", "findings", "elastic", "baselines")
    assert found == [f"search.warm_{name}=" for name in sources]


def test_every_completed_key_can_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    for source in ("rendered", "docvqa", "huggingface"):
        place = "" if source == "rendered" else ", path: x"
        text = "name: a\noutput: o\nbudget: [{quantity: macs, limit: 50%}]\n"
        path.write_text(f"{text}data: {{source: {source}{place}}}\n")
        config = load_config(path).to_json()
        for key in dotted_keys():
            value: object = config
            for part in key.split("."):
                value = value[int(part)] if isinstance(value, list) else value.get(part, "absent")  # type: ignore[union-attr]
            if value != "absent":
                assert load_config(path, [f"{key}={json.dumps(value)}"]).to_json() == config, key
    assert {key.split(".")[0] for key in dotted_keys()} == set(SearchConfig.model_fields)


def test_no_help_imports_what_is_slow() -> None:
    commands = ["", *(str(one.name) for one in app.registered_commands), "graph show", "study list"]
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom circuitsearch.cli.main import app\n"
        f"for words in {commands!r}:\n"
        "    done = CliRunner().invoke(app, [*words.split(), '--help'])\n"
        "    assert done.exit_code == 0 and 'Usage' in done.output, words\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "7"}])
def test_commands_set_what_libraries_read_before_torch_is_imported(given: dict[str, str]) -> None:
    code = (
        "import os, sys\nfrom circuitsearch.cli.main import app\n"
        "before = 'torch' in sys.modules\n"
        "app(['cost', '--teacher', 'shipped', '--plan', 'C0', '--json'], standalone_mode=False)\n"
        "print(before, os.environ['GOMP_SPINCOUNT'], file=sys.stderr)\n"
    )
    set_by_others = {name: text for name, text in environment().items() if "GOMP" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code], env=set_by_others | given, cwd=ROOT, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.stderr.split() == ["False", given.get("GOMP_SPINCOUNT", "2000")]


@pytest.mark.parametrize(
    ("words", "named"), [(["validat"], "validate"), (["validate", "--jsn", "x"], "--json")]
)
def test_close_names_are_offered(words: list[str], named: str) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert named in done.stderr
    assert done.stdout == ""


def test_a_missing_search_says_how_to_begin(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["run", str(tmp_path / "none.yaml")])
    assert done.exit_code == 2
    assert "circuitsearch init" in done.stderr


def test_no_colour_where_none_is_wanted(tmp_path: Path) -> None:
    variables = {**os.environ, **environment(), "FORCE_COLOR": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        [*COMMAND, "run", str(tmp_path / "none.yaml")], env=variables, cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "\x1b[31m" not in done.stderr


def test_what_a_scheduler_sends_counts_as_an_interrupt() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        on_interrupt("circuitsearch resume x")
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
