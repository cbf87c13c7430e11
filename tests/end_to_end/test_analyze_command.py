"""`circuitsearch analyze` as a user runs it: verdicts, files, resuming, what is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from circuitsearch import Search
from circuitsearch.cli.main import app
from circuitsearch.core.errors import ConfigError
from circuitsearch.core.findings import Finding
from circuitsearch.discovery.analyses.registry import ANALYSES, Analysis
from tests.end_to_end.shell import ROOT, circuitsearch, environment
from tests.fake_analyses import fakes

SEARCH = """\
name: small
output: {output}
teacher: {teacher}
data: {{source: rendered, train: 2, score: 3, select: 3, final: 2}}
budget: [{{quantity: parameters, limit: 50%}}]
analyses: {{pages: 2}}
"""
FAKES = [sys.executable, "-m", "tests.fake_analyses", "analyze"]


def write_search(folder: Path, teacher: Path) -> Path:
    path = folder / "search.yaml"
    path.write_text(SEARCH.format(output=folder / "out", teacher=teacher))
    return path


@pytest.fixture
def search(tmp_path: Path, tiny_folder: Path) -> Path:
    return write_search(tmp_path, tiny_folder)


def surroundings(folder: Path) -> dict[str, str]:
    places = {"RAN": str(folder / "ran"), "WAIT": str(folder / "wait")}
    return environment() | places | {"PYTHONUNBUFFERED": "1"}


def faked(search: Path, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command with small analyses in the place of the real ones."""
    done = subprocess.run(
        [*FAKES, str(search), *options],
        capture_output=True, text=True, env=surroundings(search.parent), cwd=ROOT, timeout=280,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    return done


def started(search: Path) -> subprocess.Popen[str]:
    """Start the command and wait until its last analysis runs, which does not end."""
    (search.parent / "wait").touch()
    process = subprocess.Popen(
        [*FAKES, str(search)],
        env=surroundings(search.parent), cwd=ROOT, stderr=subprocess.PIPE, text=True,
        # a background shell starts its children deaf to Ctrl-C; a terminal does not
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 250
    while "third" not in ran(search):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"it ended early, or hangs: {process.communicate()[1]}")
        time.sleep(0.05)
    return process


def ran(search: Path) -> list[str]:
    path = search.parent / "ran"
    return path.read_text().split() if path.exists() else []


def test_stopped_twice_it_goes_on_and_ends_with_verdicts_and_files(search: Path) -> None:
    with started(search) as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert f"go on with: circuitsearch analyze {search.parent / 'out' / 'search.yaml'}" in said
    (search.parent / "ran").unlink()
    with started(search) as process:
        process.kill()
    (search.parent / "wait").unlink()
    done = faked(search)
    assert ran(search) == ["third", "third"]  # the others were kept, each time
    assert done.stdout == ""  # data only; words go to standard error
    for words in ("Claim second", "\N{CHECK MARK} shown", "3 claims: 3 shown.", "analyses.html"):
        assert words in done.stderr
    folder = search.parent / "out" / "analyses"
    for name in ("first.json", "first-1.png", "first-1.svg", "analyses.md", "analyses.html"):
        assert (folder / name).stat().st_size > 0


def test_findings_for_programs_of_some_and_under_other_settings(search: Path) -> None:
    done = faked(search, "--only", "third, second", "-o", "seed=3", "--json", "-q")
    assert ran(search) == ["first", "second", "third"]
    assert done.stderr == ""
    found = {name: Finding.from_json(one) for name, one in json.loads(done.stdout).items()}
    assert {one.analysis for one in found.values()} == set(found) == {"first", "second", "third"}
    assert found["third"].verdicts[0].here == "2 and 2 pages, seed 3"


def test_a_misspelt_name_is_refused_before_anything_runs(
    search: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(ANALYSES, dict)
    monkeypatch.setitem(ANALYSES, "first", Analysis(lambda _: pytest.fail("it ran"), "first"))
    done = CliRunner().invoke(app, ["analyze", str(search), "--only", "first,fisrt"])
    assert done.exit_code == 2
    assert "got 'fisrt', allowed are" in done.stderr
    assert "did you mean 'first'?" in done.stderr
    assert not (search.parent / "out").exists()


def test_from_python(search: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for name, analysis in fakes(ran.append).items():
        assert isinstance(ANALYSES, dict)
        monkeypatch.setitem(ANALYSES, name, analysis)
    found = Search(search, quiet=True).analyze(["second"])
    assert [*found] == ran == ["first", "second"]
    assert Search(search.parent / "out", quiet=True).analyze(only=["second"]) == found
    assert len(ran) == 2
    with pytest.raises(ConfigError, match="did you mean 'second'"):
        Search(search, quiet=True).analyze(["secnod"])


def test_every_analysis_ends_on_a_teacher_that_knows_nothing(search: Path) -> None:
    found = json.loads(circuitsearch("analyze", search, "--json").stdout)
    assert set(found) == set(ANALYSES)
    for name, one in found.items():
        finding = Finding.from_json(one)
        assert finding.analysis == name
        assert finding.verdicts
