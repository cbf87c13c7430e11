"""Looking values up by key: planted ways are told apart, pages are what they promise."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from circuitsearch.core.components import Kind
from circuitsearch.core.findings import Finding, Table, Verdict
from circuitsearch.discovery.analyses.measures.retrieval import HYPOTHESES
from circuitsearch.discovery.analyses.measures.retrieval_pages import (
    LINES,
    VOCABULARIES,
    Drawer,
    layout_of,
)
from circuitsearch.discovery.analyses.retrieval import retrieval_analysis
from circuitsearch.teacher.documents.render import text_width
from circuitsearch.teacher.intervals import wilson_interval
from circuitsearch.teacher.loading import Teacher
from circuitsearch.teacher.tokens import PromptFormat
from tests.discovery.analyses.plants import material_of, without
from tests.discovery.analyses.retrieval_plants import WAYS, scripted
from tests.tiny import tiny_pages

PAGES = tiny_pages(1)
ANSWERS = {
    "place": {"place": "shown", "meaning": "open", "key": "not shown", "reading": "shown"},
    "meaning": {"place": "not shown", "meaning": "shown", "key": "shown", "reading": "not shown"},
    "memory": {"place": "open", "meaning": "not shown", "key": "not shown", "reading": "shown"},
}
"""Verdicts by the way that is planted."""


def ask(found: Finding) -> dict[str, Verdict]:
    return {verdict.claim.removeprefix("Proposition 5, "): verdict for verdict in found.verdicts}


def shares(table: Table, row: str) -> dict[str, float]:
    cells = next(cells for cells in table.rows if cells[0] == row)
    return {name: cells[table.head.index(name)] for name in HYPOTHESES}  # type: ignore[misc]


@pytest.fixture(scope="module")
def findings(tiny_teacher: Teacher) -> dict[str, Finding]:
    """What is found of each planted teacher."""
    with pytest.MonkeyPatch.context() as patch:
        return {
            way: retrieval_analysis(material_of(scripted(tiny_teacher, way, patch), PAGES))
            for way in WAYS
        }


@pytest.mark.parametrize("way", ANSWERS)
def test_the_planted_way_is_found(findings: dict[str, Finding], way: str) -> None:
    found = findings[way]
    assert {claim: verdict.answer for claim, verdict in ask(found).items()} == ANSWERS[way]
    by_vocabulary, by_run = found.tables[:2]
    for name in ("capital letters", "digits"):
        assert shares(by_vocabulary, name) == {h: float(h == way) for h in HYPOTHESES}
    counted = {row[0]: row for row in by_vocabulary.rows}
    assert counted["capital letters"][1] == counted["capital letters"][2] == 24
    low, high = wilson_interval(24, 24)
    place = by_vocabulary.head.index(way)
    assert counted["digits"][place + 1 : place + 3] == (low, high)
    # more than one token: this teacher closes an answer behind its first
    assert counted["names"][1:3] == (8, 0)
    assert counted["colours"][-4:] == (0.53, 0.31, 0.08, 0.08)
    runs = {str(row[0]).removesuffix(": all of them"): row[0] for row in by_run.rows}
    own = next(name for title, name in runs.items() if title.startswith("pairs shuffled, its own"))
    assert shares(by_run, str(own))["meaning"] == 1
    values = next(name for title, name in runs.items() if title.startswith("values shuffled, quer"))
    # place and meaning are one value there, so both count as place
    both = shares(by_run, str(values))
    assert (both["place"], both["meaning"]) == (float(way != "memory"), 0)
    back = next(name for title, name in runs.items() if title.startswith("clean page"))
    assert shares(by_run, str(back))[way] == 1
    assert found.examples == 48
    assert Finding.from_json(found.to_json()) == found


def test_attention_and_skipping_are_measured(findings: dict[str, Finding]) -> None:
    attention, skipped = findings["place"].tables[2:]
    rows = {row[0]: row for row in attention.rows}
    # the key is drawn at the left margin, where the first cross-attention looks
    assert rows["C0"][1] == pytest.approx(1)
    assert rows["C1"][1] == 0
    assert 1 / 24 <= rows["C0"][4] <= 4 / 24  # type: ignore[operator]
    without_one = {row[0]: row[1] for row in skipped.rows}
    assert without_one["C1"] == 0
    # without the place, four values are as good as each other, or none
    assert without_one["C0"] < 0.5  # type: ignore[operator]


def test_a_query_that_is_worth_nothing_is_not_judged(findings: dict[str, Finding]) -> None:
    verdicts = ask(findings["past"])
    assert verdicts["place"].answer == verdicts["meaning"].answer == "cannot be asked"
    # what it says follows the meaning all the same
    assert shares(findings["past"].tables[0], "digits")["meaning"] == 1
    assert verdicts["reading"].answer == "shown"
    past = {
        way: any("comes past" in note for note in found.notes) for way, found in findings.items()
    }
    assert past == {"place": False, "meaning": False, "memory": False, "past": True}


def test_the_same_seed_gives_the_same_finding(
    tiny_teacher: Teacher, findings: dict[str, Finding], monkeypatch: pytest.MonkeyPatch
) -> None:
    material = material_of(scripted(tiny_teacher, "place", monkeypatch), PAGES)
    assert retrieval_analysis(material) == findings["place"]
    assert retrieval_analysis(replace(material, seed=1)) != findings["place"]


@pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=lambda v: v.name)
def test_trials_tell_place_meaning_and_memory_apart(
    tiny_teacher: Teacher, vocabulary: object
) -> None:
    drawer = Drawer.of(vocabulary, tiny_teacher.tokens, 0)  # type: ignore[arg-type]
    assert drawer is not None
    trials = [drawer.trial(i) for i in range(40)]
    assert len({trial.clean for trial in trials}) > 30
    for trial in trials:
        assert drawer.trial(int(trial.name.split()[-1])) == trial
        assert trial.key in trial.question
        keys, values = zip(*trial.clean, strict=True)
        assert len({drawer.firsts[value] for value in values}) == LINES
        assert len(set(keys) | set(values)) == 2 * LINES
        for shuffled in (trial.pairs, trial.values):
            assert sorted(key for key, _ in shuffled) == sorted(keys)
            assert sorted(value for _, value in shuffled) == sorted(values)
        for page, origin in ((trial.pairs, trial.clean), (trial.clean, trial.pairs)):
            assert len(set(trial.expected(page, origin))) == 3
        assert trial.place(trial.pairs) != trial.place(trial.clean)
        assert [key for key, _ in trial.values] == list(keys)
        place, meaning, memory = trial.expected(trial.values, trial.clean)
        assert place == meaning != memory


def test_single_tokens_are_preferred(tiny_teacher: Teacher) -> None:
    letters = next(v for v in VOCABULARIES if v.name == "capital letters")
    mixed = replace(letters, values=(*letters.values[:5], "Oslo", "Rome"))
    drawer = Drawer.of(mixed, tiny_teacher.tokens, 0)
    assert drawer is not None
    assert drawer.values == letters.values[:5]
    few = replace(letters, values=(*letters.values[:2], "Oslo", "Rome"))
    drawer = Drawer.of(few, tiny_teacher.tokens, 0)
    assert drawer is not None
    assert drawer.values == few.values
    assert Drawer.of(replace(letters, values=("A", "B", "C")), tiny_teacher.tokens, 0) is None
    unknown = replace(letters, values=("A", "B", "C", "\u00e9"))
    assert Drawer.of(unknown, tiny_teacher.tokens, 0) is None


@pytest.mark.parametrize(("height", "width"), [(64, 128), (2560, 1920), (48, 200)])
def test_pages_fit(tiny_teacher: Teacher, height: int, width: int) -> None:
    for vocabulary in VOCABULARIES:
        drawer = Drawer.of(vocabulary, tiny_teacher.tokens, 0)
        assert drawer is not None
        trial = drawer.trial(0)
        drawn = [layout_of(page, height, width) for page in (trial.clean, trial.pairs)]
        assert drawn[0].size == drawn[1].size
        for layout in drawn:
            assert (layout.height, layout.width) == (height, width)
            ends = [
                line.x + text_width(line.text, layout.font, layout.size) for line in layout.lines
            ]
            assert max(ends) < width
            assert all(b.y - a.y >= layout.size for a, b in pairwise(layout.lines))


def test_what_cannot_be_asked(tiny_teacher: Teacher) -> None:
    parsing = replace(tiny_teacher, prompt=PromptFormat(template="<s_docvqa>"))
    for teacher, why in (
        (tiny_teacher, "none of the pages right"),
        (without(tiny_teacher, Kind.CROSS), "no cross-attention"),
        (parsing, "answers no questions"),
    ):
        found = retrieval_analysis(material_of(teacher, PAGES))
        assert {verdict.answer for verdict in found.verdicts} == {"cannot be asked"}
        assert why in found.verdicts[0].here
        assert Finding.from_json(found.to_json()) == found
