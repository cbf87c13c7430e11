"""`graph show`: every number in its cell, whatever the terminal; `graph SEARCH` still writes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from circuitsearch.cli.main import app
from circuitsearch.core.errors import DataError
from circuitsearch.show.grid import grid_of, print_grid
from tests.show.circuits import EFFECTS, circuit


def here(*arguments: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == code, f"{done.stderr}\n{done.exception!r}"
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A search's folder with a circuit."""
    (tmp_path / "circuit.json").write_text(json.dumps(circuit()))
    return tmp_path


def printed(width: int, colour: bool = False, heads: int = 8) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=colour, highlight=False)
    print_grid(grid_of(circuit(heads)), console)
    return stream.getvalue()


def test_data_holds_every_number(folder: Path) -> None:
    numbers = {one["id"]: one for one in circuit()["nodes"]}
    for by in ("effect", "score"):
        told = json.loads(here("graph", "show", folder, "--by", by, "--json").stdout)
        assert set(told["sublayers"]) == set(EFFECTS)
        for name, row in told["sublayers"].items():
            assert row["value"] == numbers[name].get(by)
            assert len(row["heads"]) == (0 if name[0] == "M" else 8)
            assert row["heads"] == [
                numbers[f"{name}.H{i}"].get(by) for i in range(len(row["heads"]))
            ]


def test_sublayers_come_in_execution_order() -> None:
    assert list(grid_of(circuit())["sublayers"]) == list(EFFECTS)


def test_numbers_stand_in_a_grid_of_layers_and_heads() -> None:
    lines = printed(120).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()[:1] != []}
    nodes = {one["id"]: one for one in circuit()["nodes"]}
    for name, effect in EFFECTS.items():
        assert rows[name][0] == f"{effect:+.2f}"
        heads = [nodes[f"{name}.H{i}"]["effect"] for i in range(8)] if name[0] != "M" else []
        assert rows[name][1:] == [f"{one:+.2f}" for one in heads]
    assert "+ helps" in lines[-1]


@pytest.mark.parametrize("heads", [8, 16])
def test_a_narrow_terminal_gets_signs_and_bars(heads: int) -> None:
    lines = printed(64, heads=heads).splitlines()
    assert max(map(len, lines)) <= 64
    row = next(line for line in lines if line.split()[:1] == ["C3"])
    nodes = {one["id"]: one for one in circuit(heads)["nodes"]}
    effects = [nodes[f"C3.H{i}"]["effect"] for i in range(heads)]
    signs = [letter for letter in row.split("2.74")[1] if letter in "+-"]
    assert signs == ["-" if effect < 0 else "+" for effect in effects]
    assert "█" in "".join(lines)


def test_signs_are_coloured_where_colours_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[32m+2.74" in printed(120, colour=True)
    assert "\x1b[2;31m-0.06" in printed(120, colour=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in printed(120, colour=True)


def test_what_cannot_be_shown_is_refused(folder: Path) -> None:
    assert "did you mean 'effect'" in here("graph", "show", folder, "--by", "efect", code=2).stderr
    (folder / "empty").mkdir()
    missing = here("graph", "show", folder / "empty", code=2)
    assert "circuitsearch graph" in missing.stderr.replace("\n", "")
    (folder / "circuit.json").write_text("{}")
    assert "nodes" in here("graph", "show", folder / "circuit.json", code=2).stderr
    bare = circuit()
    for one in bare["nodes"]:
        one.pop("effect", None)
    with pytest.raises(DataError, match=r"no effect of any component; it has --by score"):
        grid_of(bare)


def test_the_bare_command_still_writes(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text("name: x\n")
    for arguments in (["graph", path], ["graph", "--json", path], ["graph", "write", path]):
        assert "budget: missing" in here(*arguments, code=2).stderr
    assert "show" in here("graph", "--help").stdout
