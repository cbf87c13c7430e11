"""The stage of the analyses: each is computed once, in order, and sees what it has named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from circuitsearch.config import SearchConfig
from circuitsearch.core.errors import ConfigError
from circuitsearch.core.findings import Finding
from circuitsearch.discovery.analyses.material import Material
from circuitsearch.discovery.analyses.registry import ANALYSES, Analysis
from circuitsearch.progress import QuietReporter, Work
from circuitsearch.stages import analyze, chosen_analyses, outputs
from circuitsearch.teacher.documents.records import Page
from circuitsearch.teacher.loading import Teacher
from circuitsearch.workspace import Workspace
from tests.fake_analyses import fakes, made
from tests.tiny import tiny_pages

Pages = dict[str, list[Page]]


@pytest.fixture
def pages() -> Pages:
    every = tiny_pages(8)
    return {"score": every[:4], "select": every[4:]}


@pytest.fixture
def ran() -> list[str]:
    """Names of the analyses that were computed."""
    return []


@pytest.fixture
def three(ran: list[str]) -> dict[str, Analysis]:
    return fakes(ran.append)


def workspace(folder: Path, **changes: Any) -> Workspace:
    given = {"name": "trial", "output": folder / "out", "analyses": {"pages": 3}}
    limits = {"budget": [{"quantity": "macs", "limit": "50%"}]}
    return Workspace(SearchConfig.model_validate({**given, **limits, **changes}), QuietReporter())


def page(work: Workspace) -> str:
    return outputs(work)["analyses"].read_text("utf-8")


def test_a_second_run_computes_nothing_and_writes_the_same(
    tmp_path: Path, tiny_teacher: Teacher, pages: Pages, ran: list[str], three: dict[str, Analysis]
) -> None:
    work = workspace(tmp_path)
    found = analyze(work, tiny_teacher, pages, analyses=three)
    assert [*found] == ran == ["first", "second", "third"]
    files = {path: path.read_bytes() for path in (work.folder / "analyses").iterdir()}
    assert {path.name for path in files} == {
        *("analyses.json", "analyses.md", "analyses.html"),
        *(f"{name}{end}" for name in three for end in (".json", "-1.png", "-1.svg")),
    }
    assert analyze(workspace(tmp_path), tiny_teacher, pages, analyses=three) == found
    assert len(ran) == 3
    assert {path: path.read_bytes() for path in files} == files
    told = json.loads((work.folder / "analyses" / "second.json").read_text())
    assert Finding.from_json(told) == found["second"]


def test_what_an_analysis_is_given(
    tmp_path: Path, tiny_teacher: Teacher, pages: Pages, three: dict[str, Analysis]
) -> None:
    found = analyze(workspace(tmp_path, seed=7), tiny_teacher, pages, analyses=three)
    assert found["first"].verdicts[0].here == "3 and 3 pages, seed 7"
    assert found["first"].examples == 1 + 2 + 3
    # findings that it reads, and no others
    assert [one.values["seen"] for one in found.values() if one.values] == [[], ["first"], []]
    every = workspace(tmp_path / "all", analyses={"pages": 0})
    assert analyze(every, tiny_teacher, pages, analyses=three)["first"].verdicts[0].here == (
        "4 and 4 pages, seed 0"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"analyses": {"pages": 2}},
        {"generation": {"prompt": 9, "passes": 3}},
    ],
)
def test_changed_settings_are_computed_again(
    tmp_path: Path,
    tiny_teacher: Teacher,
    pages: Pages,
    ran: list[str],
    three: dict[str, Analysis],
    changes: dict[str, Any],
) -> None:
    analyze(workspace(tmp_path), tiny_teacher, pages, ["first"], three)
    analyze(workspace(tmp_path, **changes), tiny_teacher, pages, ["first"], three)
    assert ran == ["first", "first"]


def test_another_teacher_and_other_pages_are_computed_again(
    tmp_path: Path, tiny_teacher: Teacher, pages: Pages, ran: list[str], three: dict[str, Analysis]
) -> None:
    work = workspace(tmp_path)
    analyze(work, tiny_teacher, pages, ["third"], three)
    for changed in ({**pages, "score": pages["select"]}, {**pages, "select": pages["score"]}):
        analyze(work, tiny_teacher, changed, ["third"], three)
    other = replace(tiny_teacher, fingerprint="another")
    analyze(work, other, pages, ["third"], three)
    assert ran == ["third"] * 4


def test_a_finding_that_is_read_counts_among_the_inputs(
    tmp_path: Path, tiny_teacher: Teacher, pages: Pages, ran: list[str], three: dict[str, Analysis]
) -> None:
    work = workspace(tmp_path)
    analyze(work, tiny_teacher, pages, ["second"], three)
    assert ran == ["first", "second"]
    again = {**three, "first": replace(three["first"], after=("third",))}
    analyze(work, tiny_teacher, pages, ["second"], again)
    assert ran[2:] == ["third", "first", "second"]


def test_killed_in_between_it_keeps_what_was_finished(
    tmp_path: Path, tiny_teacher: Teacher, pages: Pages, ran: list[str], three: dict[str, Analysis]
) -> None:
    def killed(material: Material) -> Finding:
        raise KeyboardInterrupt

    broken = {**three, "second": replace(three["second"], run=killed)}
    with pytest.raises(KeyboardInterrupt):
        analyze(workspace(tmp_path), tiny_teacher, pages, analyses=broken)
    assert ran == ["first"]
    analyze(workspace(tmp_path), tiny_teacher, pages, analyses=three)
    assert ran == ["first", "second", "third"]


def test_only_some_and_what_they_read(
    tmp_path: Path, tiny_teacher: Teacher, pages: Pages, ran: list[str], three: dict[str, Analysis]
) -> None:
    work = workspace(tmp_path)
    assert [*analyze(work, tiny_teacher, pages, ["second"], three)] == ["first", "second"]
    assert "analysis-third" not in page(work)
    # what was found before under the same settings stays on the page, in the registry's order
    assert [*analyze(work, tiny_teacher, pages, ["third"], three)] == ["third"]
    assert ran == ["first", "second", "third"]
    whole = page(work)
    assert whole.index('id="analysis-second"') < whole.index('id="analysis-third"')
    # under other settings it does not
    other = workspace(tmp_path, seed=1)
    analyze(other, tiny_teacher, pages, ["third"], three)
    assert "analysis-second" not in page(other)
    assert not (other.folder / "analyses" / "second.json").exists()
    analyze(work, tiny_teacher, pages, [], three)
    assert 'id="analysis-second"' in page(work)
    assert len(ran) == 4


def test_order_and_names_are_checked() -> None:
    run = lambda material: made("x", material)  # noqa: E731
    late = {name: Analysis(run, "", after) for name, after in (("a", ("b",)), ("b", ()), ("c", ()))}
    assert chosen_analyses(None, late) == ["b", "a", "c"]
    assert chosen_analyses(["c", "a", "a"], late) == ["b", "a", "c"]
    assert chosen_analyses([], late) == []
    several = {"skip": late["b"], "cleaner": late["b"]}
    with pytest.raises(ConfigError, match="did you mean 'cleaner'") as told:
        chosen_analyses(["skipp", "skip", "claener", ""], several)
    assert "3 problems" in str(told.value)
    assert "did you mean 'skip'" in str(told.value)


def test_progress_reaches_the_person(
    tmp_path: Path, tiny_teacher: Teacher, pages: Pages, three: dict[str, Analysis]
) -> None:
    class Noting(QuietReporter):
        said: list[object] = []  # noqa: RUF012

        @contextmanager
        def stage(self, title: str) -> Iterator[Work]:
            self.said.append(title)
            yield lambda done, total, detail="": self.said.append((done, total, detail))

        @contextmanager
        def budget(self, title: str) -> Iterator[Work]:
            yield lambda done, total, detail="": self.said.append((title, done, total))

    work = replace(workspace(tmp_path), say=Noting())
    analyze(work, tiny_teacher, pages, ["first"], three)
    assert Noting.said == [
        ("analyses", 0, 1),
        "first: it is first",
        (1, 2, "counting"),
        ("analyses", 1, 1),
        "drawing charts",
    ]


def test_the_registry_names_files_and_reads_what_is_in_it() -> None:
    for name, analysis in ANALYSES.items():
        # a name stands in file names, addresses and on the command line
        assert name == name.strip().lower()
        assert name.replace("-", "").isalnum()
        assert analysis.about
        assert set(analysis.after) < set(ANALYSES)
    assert set(chosen_analyses(None)) == set(ANALYSES)
