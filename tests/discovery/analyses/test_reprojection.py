"""Reprojection: what is lost and what is not in front of the first feed-forward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from circuitsearch.core.components import Kind
from circuitsearch.core.findings import Finding
from circuitsearch.discovery.analyses.reprojection import reprojection_analysis
from circuitsearch.discovery.lens.reprojection import ReprojectionOptions, reprojection_effects
from circuitsearch.teacher.loading import Teacher
from tests.discovery.analyses.plants import material_of, silent, speak, without
from tests.tiny import tiny_pages

PAGES = tiny_pages(4)
NAMES = [f"{kind}{layer}" for layer in range(4) for kind in "SCM"]


@pytest.fixture(scope="module")
def random_finding(tiny_teacher: Teacher) -> Finding:
    return reprojection_analysis(material_of(tiny_teacher, PAGES))


@pytest.mark.parametrize(("speaker", "answer"), [("C1", "shown"), ("C0", "not shown")])
def test_what_no_token_holds_is_lost(tiny_teacher: Teacher, speaker: str, answer: str) -> None:
    """C0 writes, in front of M0, what no embedding holds; C1 writes it behind M0."""
    teacher = silent(tiny_teacher, PAGES)
    speak(teacher, speaker, 0.5)
    found = reprojection_analysis(material_of(teacher, PAGES))
    assert found.verdicts[0].answer == answer
    rises = {row[0]: row[1] for row in found.tables[0].rows}
    assert (rises["M0"] == 0) == (answer == "shown")
    lost = [name for name in NAMES if name > speaker and NAMES.index(name) > NAMES.index(speaker)]
    assert all(rises[name] > 0.5 for name in lost)  # type: ignore[operator]
    assert Finding.from_json(found.to_json()) == found


@pytest.mark.parametrize(("swapped", "answer"), [(True, "shown"), (False, "not shown")])
def test_special_tokens_that_read_as_others(
    tiny_teacher: Teacher, swapped: bool, answer: str
) -> None:
    teacher = silent(tiny_teacher, PAGES)
    ids = teacher.tokens.tokenizer.convert_tokens_to_ids(["<s_question>", "</s_question>"])
    if swapped:
        said = teacher.model.decoder.lm_head.weight
        with torch.no_grad():
            said[ids] = said[ids[::-1]].clone()
    found = reprojection_analysis(material_of(teacher, PAGES))
    assert found.verdicts[1].answer == answer
    read = {row[0]: row[1:3] for row in found.tables[3].rows}
    assert read["<s_question>"] == ("</s_question>" if swapped else "<s_question>", 1.0)
    kept = {row[0]: row[1] for row in found.tables[2].rows}
    assert kept["C0, special tokens"] == (0.5 if swapped else 1.0)
    assert kept["C0, other tokens"] == 1.0


@pytest.mark.parametrize(
    ("reading", "options"),
    [
        ("no norm, raw embedding", ReprojectionOptions(norm="none", into="raw")),
        ("final norm, full embedding, prompt only", ReprojectionOptions(positions="prompt")),
        ("final norm, full embedding, behind the sub-layer", ReprojectionOptions(at="output")),
    ],
)
def test_readings_are_those_of_the_engine(
    tiny_teacher: Teacher, random_finding: Finding, reading: str, options: ReprojectionOptions
) -> None:
    sample = material_of(tiny_teacher, PAGES).sample
    tokens = [len(row.ids) - row.prompt for row in sample.rows]
    effects = reprojection_effects(tiny_teacher.decoder, sample, options)
    assert random_finding.values is not None
    found = random_finding.values["log-ratios"][reading]
    assert list(found) == NAMES
    for name in NAMES:
        expected = np.average(effects[name], weights=tokens)
        assert found[name] == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_every_reading_is_told(random_finding: Finding) -> None:
    readings = [row[0] for row in random_finding.tables[1].rows]
    assert len(readings) == len(set(readings)) == 2 * 4 + 2
    assert [series.name for series in random_finding.charts[1].series] == readings
    by_sublayer, by_reading = (table.rows for table in random_finding.tables[:2])
    in_front = next(row for row in by_sublayer if row[0] == "M0")
    assert in_front[1:7] == by_reading[0][1:]
    low, high = in_front[2], in_front[3]
    assert low <= in_front[1] <= high  # type: ignore[operator]


def test_an_embedding_that_is_not_shown(tiny_teacher: Teacher) -> None:
    hidden: Any = _Hidden(tiny_teacher.decoder)
    found = reprojection_analysis(material_of(replace(tiny_teacher, decoder=hidden), PAGES))
    readings = [str(row[0]) for row in found.tables[1].rows]
    assert readings[:2] == ["final norm, full embedding", "no norm, full embedding"]
    assert not any("raw" in reading for reading in readings)


def test_without_feed_forward_it_cannot_be_asked(tiny_teacher: Teacher) -> None:
    found = reprojection_analysis(material_of(without(tiny_teacher, Kind.FEED), PAGES))
    assert [v.answer for v in found.verdicts] == ["cannot be asked"] * 2
    assert len(found.tables) == 1
    assert len(found.tables[0].rows) == 8


class _Hidden:
    """A view that keeps the pieces of its embedding to itself."""

    def __init__(self, view: Any) -> None:
        self._view = view

    def __getattr__(self, name: str) -> Any:
        if name == "embedding":
            raise AttributeError(name)
        return getattr(self._view, name)
