"""Paths of a keyword: the planted path is found, numbers are those of the engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from circuitsearch.core.components import Kind
from circuitsearch.core.findings import Finding
from circuitsearch.discovery.analyses.measures.keyword_questions import GENERIC_FIELDS
from circuitsearch.discovery.analyses.paths import paths_analysis
from circuitsearch.discovery.keywords import question_words
from circuitsearch.discovery.paths.keyword import keyword_paths
from circuitsearch.teacher.documents.records import Page, Question
from circuitsearch.teacher.loading import Teacher
from tests.discovery.analyses.keyword_plants import carrier, keyword_pages, taught
from tests.discovery.analyses.plants import material_of, without
from tests.tiny import tiny_pages


@pytest.mark.parametrize("name", ["S3", "S1"])
def test_the_planted_path_is_found(tiny_teacher: Teacher, name: str) -> None:
    teacher = carrier(tiny_teacher, [name])
    pages = taught(teacher, keyword_pages(8))
    found = paths_analysis(material_of(teacher, pages, taught(teacher, keyword_pages(4, 8))))
    assert found.values is not None
    assert found.values["minimal"] == found.values["best"] == [name]
    # the stream holds the last prompt token too, a fortieth as loud
    assert found.values["effectiveness"][name] > 0.98
    last = name == "S3"
    best, same = found.verdicts
    assert best.answer == ("shown" if last else "not shown")
    assert f"{name} alone" in best.here if last else f"rival {name}" in best.here
    assert same.answer == ("shown" if last else "not shown")
    assert "24 questions about 8 documents" in best.here
    strongest = found.tables[1].rows[0]
    assert strongest[0] == name
    # another keyword's turned letters point elsewhere
    assert strongest[4] == pytest.approx(1, abs=0.6)
    assert Finding.from_json(found.to_json()) == found


def test_a_query_that_is_worth_nothing_is_not_judged(tiny_teacher: Teacher) -> None:
    teacher = carrier(tiny_teacher, ["S3"], cross=())
    pages = taught(teacher, keyword_pages(4))
    _, same = paths_analysis(material_of(teacher, pages, pages)).verdicts
    assert same.answer == "cannot be asked"


def test_numbers_are_those_of_the_path_tables(tiny_teacher: Teacher) -> None:
    pages, others = tiny_pages(6), tiny_pages(9)[6:]
    material = material_of(tiny_teacher, pages, others)
    found = paths_analysis(material)
    find = question_words(tiny_teacher.tokens.tokenizer, GENERIC_FIELDS)
    sets = {row[0]: row for row in found.tables[0].rows}
    assert len(found.tables) == 1 + len(sets)
    for table, (title, row), name in zip(
        found.tables[1:], sets.items(), ("paper", "literal", "full"), strict=True
    ):
        engine = keyword_paths(tiny_teacher, material.sample, find, sublayers=name)
        assert " ".join(engine.sublayers) in str(title)
        assert row[1:3] == (len(engine.paths), engine.best().name)
        assert row[3] == pytest.approx(engine.best().effectiveness)
        listed = {cells[0]: cells for cells in table.rows}
        for path in engine.paths:
            if path.name in listed:
                assert listed[path.name][1] == pytest.approx(path.effectiveness)
                assert listed[path.name][7] == pytest.approx(path.overlap)
                assert listed[path.name][10] == pytest.approx(path.loss)
        assert listed["the clean query"][10] == pytest.approx(engine.clean_loss)
        assert "residual" in listed
    assert found.examples == sum(len(page.questions) for page in pages)


def test_the_minimal_path_is_short_and_good(tiny_teacher: Teacher) -> None:
    pages = tiny_pages(6)
    values = paths_analysis(material_of(tiny_teacher, pages, pages)).values
    assert values is not None
    scores = values["effectiveness"]
    best = max(scores.values())
    good = {name for name, score in scores.items() if score >= 0.95 * best}
    minimal = " ".join(values["minimal"]) or "residual"
    assert minimal in good
    lengths = {name: 0 if name == "residual" else len(name.split()) for name in good}
    assert lengths[minimal] == min(lengths.values())


def test_other_pages_need_not_ask_for_keywords(tiny_teacher: Teacher) -> None:
    pages = tiny_pages(4)
    silent = [replace(pages[0], questions=(Question("q", "Who?", ("x",)),))]
    alone = paths_analysis(material_of(tiny_teacher, pages, silent))
    assert any("was chosen on these" in note for note in alone.notes)
    both = paths_analysis(material_of(tiny_teacher, pages, tiny_pages(6)[4:]))
    assert not any("was chosen on these" in note for note in both.notes)


@pytest.mark.parametrize("named", [False, True])
def test_only_keyword_questions_count(tiny_teacher: Teacher, named: bool) -> None:
    questions = (
        Question("a", "What is the date?", ("x",), "keyword" if named else "form"),
        Question("b", "What is the total?", ("x",), "form"),
        Question("c", "Who is it?", ("x",), "form"),
    )
    pages = [replace(page, questions=questions) for page in tiny_pages(3)]
    found = paths_analysis(material_of(tiny_teacher, pages, pages))
    assert found.examples == (3 if named else 6)


def _page_without_keywords(pages: list[Page]) -> list[Page]:
    return [replace(page, questions=(Question(page.id, "Who is it?", ("x",)),)) for page in pages]


def test_what_cannot_be_asked(tiny_teacher: Teacher) -> None:
    pages = tiny_pages(3)
    silent = material_of(tiny_teacher, _page_without_keywords(pages), pages)
    for material in (
        silent,
        material_of(without(tiny_teacher, Kind.CROSS), pages, pages),
        material_of(without(tiny_teacher, Kind.SELF), pages, pages),
    ):
        found = paths_analysis(material)
        assert {verdict.answer for verdict in found.verdicts} == {"cannot be asked"}
        assert found.examples == 0
        assert Finding.from_json(found.to_json()) == found
    assert "generic field" in paths_analysis(silent).verdicts[0].here


def test_one_document_leaves_verdicts_open(tiny_teacher: Teacher) -> None:
    pages = tiny_pages(2)  # both of one document
    found = paths_analysis(material_of(tiny_teacher, pages, pages))
    assert found.verdicts[0].answer == "open"
    assert np.isfinite(found.tables[1].rows[0][1])
    assert found.tables[1].rows[0][2] is None
