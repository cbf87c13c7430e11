"""Case: a feed-forward that lowers it is found, by the lens and by leaving it out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitsearch.core.components import Kind
from circuitsearch.core.findings import Finding
from circuitsearch.discovery.analyses.case import case_analysis
from circuitsearch.teacher.documents.collate import collate, examples
from circuitsearch.teacher.documents.records import Page
from circuitsearch.teacher.loading import Teacher
from tests.discovery.analyses.plants import BEYOND, PATTERN, material_of, silent, unit_rows, without
from tests.discovery.literal import reference_loss
from tests.tiny import tiny_pages

CASE, OTHER = 22, 23
"""Channels that hold a letter's case: + and - in capitals, the other way round in lower case."""
DEPTH = 0.5


def _recased(page: Page) -> Page:
    """The first question in capitals, the second in title case, the third as it is; the answers
    have no case."""
    upper, title, kept = page.questions[:1], page.questions[1:2], page.questions[2:]
    questions = [
        *(replace(q, text=q.text.upper()) for q in upper),
        *(replace(q, text=q.text.title()) for q in title),
        *kept,
    ]
    numbered = (replace(q, answers=(str(7 * i + 3),)) for i, q in enumerate(questions))
    return replace(page, questions=tuple(numbered))


CAPITALS = [_recased(page) for page in tiny_pages(9)]


def cased_rows(teacher: Teacher, width: int) -> Tensor:
    """Embeddings of one length in which a letter's two forms differ by the case alone."""
    tokenizer = teacher.tokens.tokenizer
    vocabulary = tokenizer.get_vocab()
    rows = unit_rows(len(vocabulary), width, CASE)
    for letter in "abcdefghijklmnopqrstuvwxyz":
        shared = rows[vocabulary[letter]] * math.sqrt(1 - 2 * DEPTH**2)
        for form, sign in ((letter, -1), (letter.upper(), 1)):
            row = shared.clone()
            row[CASE], row[OTHER] = sign * DEPTH, -sign * DEPTH
            rows[vocabulary[form]] = row
    return rows


def planted(tiny_teacher: Teacher, *, lowers: bool) -> Teacher:
    """S1 tells how much of the prompt is in capitals, which speaks against the answer; M0 may turn
    capitals into their lowercase form before."""
    width = tiny_teacher.decoder.shape.d_model
    teacher = silent(tiny_teacher, CAPITALS, cased_rows(tiny_teacher, width))
    layers = teacher.model.decoder.model.decoder.layers
    attention, feed = layers[1].self_attn, layers[0]
    with torch.no_grad():
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            linear.weight.zero_()
            linear.bias.zero_()
        attention.v_proj.weight[0, CASE] = 1
        attention.out_proj.weight[-BEYOND:, 0] = -0.5 * PATTERN
        if lowers:
            feed.fc1.weight.zero_()
            feed.fc1.bias.zero_()
            # far from zero, gelu passes a capital's case whole and that of other letters not at all
            feed.fc1.weight[0, CASE] = 4
            feed.fc2.weight[CASE, 0], feed.fc2.weight[OTHER, 0] = -0.5, 0.5
    return teacher


def test_a_feed_forward_that_lowers_case_is_found(tiny_teacher: Teacher) -> None:
    found = case_analysis(material_of(planted(tiny_teacher, lowers=True), CAPITALS))
    assert [v.answer for v in found.verdicts] == ["shown"] * 4
    assert found.values == {"lowers_case": True}
    rows = {row[0]: row[1:] for row in found.tables[0].rows}
    assert rows["C0"][0] == 0
    assert rows["M0"][0] == 1
    assert [rows[place][6] for place in ("embedding", "C0", "M0")] == [1] * 3
    assert Finding.from_json(found.to_json()) == found


def test_a_model_that_reads_case_is_told_apart(tiny_teacher: Teacher) -> None:
    found = case_analysis(material_of(planted(tiny_teacher, lowers=False), CAPITALS))
    lens, needed, _, neutral = found.verdicts
    assert (lens.answer, needed.answer, neutral.answer) == ("not shown",) * 3
    assert found.values == {"lowers_case": False}
    differences = {row[0]: row[1] for row in found.tables[3].rows}
    assert differences["as cased - lower case, whole model"] > 0.1  # type: ignore[operator]
    assert differences["what skipping costs as cased"] == 0


def test_numbers_equal_a_literal_count(tiny_teacher: Teacher) -> None:
    found = case_analysis(material_of(tiny_teacher, CAPITALS))
    material = material_of(tiny_teacher, CAPITALS)
    runs = {row[0]: row[1:] for row in found.tables[2].rows}
    for name, pages in (("as cased", CAPITALS), ("lower case", lowered(CAPITALS))):
        rows = examples(pages, tiny_teacher.tokens)
        batch = collate(rows, material.sample.pad_id)
        losses = reference_loss(
            tiny_teacher.model.decoder, batch, material.sample.states[batch.pages]
        )
        tokens = [len(row.ids) - row.prompt for row in rows]
        expected = np.average(losses, weights=tokens)
        assert runs[f"{name}, whole model"][0] == pytest.approx(expected, rel=1e-5)
        assert runs[f"{name}, whole model"][3] == pytest.approx(float(losses.mean()), rel=1e-5)
    differences = {row[0]: row[1] for row in found.tables[3].rows}
    gap = runs["lower case, feed-forward skipped"][0] - runs["as cased, whole model"][0]  # type: ignore[operator]
    assert differences["lower case, feed-forward skipped - as cased, whole model"] == pytest.approx(
        gap, abs=1e-9
    )


def test_only_questions_with_case_are_asked(tiny_teacher: Teacher) -> None:
    mixed = [page if i % 2 else lowered([page])[0] for i, page in enumerate(CAPITALS)]
    found = case_analysis(material_of(tiny_teacher, mixed))
    kept = [page for i, page in enumerate(CAPITALS) if i % 2]
    assert found.examples == sum(len(page.questions) for page in kept)
    # pages whose questions are left out do not shift what the others read
    alone = case_analysis(material_of(tiny_teacher, kept))
    for table, other in zip(found.tables[2:], alone.tables[2:], strict=True):
        for row, same in zip(table.rows, other.rows, strict=True):
            assert row[1] == pytest.approx(same[1], rel=1e-5, abs=1e-6)


def test_a_prompt_that_lowers_by_itself_is_asked_as_cased(tiny_teacher: Teacher) -> None:
    prompt = replace(tiny_teacher.tokens.prompt, lowercase_question=True)
    lowering = replace(tiny_teacher, tokens=replace(tiny_teacher.tokens, prompt=prompt))
    found = case_analysis(material_of(lowering, CAPITALS))
    as_cased = case_analysis(material_of(tiny_teacher, CAPITALS))
    assert found.tables == as_cased.tables
    assert "lowers questions" in found.notes[1]


def test_without_case_or_feed_forward_it_cannot_be_asked(tiny_teacher: Teacher) -> None:
    found = case_analysis(material_of(tiny_teacher, lowered(CAPITALS)))
    assert [v.answer for v in found.verdicts] == ["cannot be asked"] * 4
    assert (found.examples, found.tables, found.charts) == (0, (), ())
    assert found.values == {"lowers_case": None}
    found = case_analysis(material_of(without(tiny_teacher, Kind.FEED), CAPITALS))
    *others, neutral = [v.answer for v in found.verdicts]
    assert others == ["cannot be asked"] * 3
    assert neutral != "cannot be asked"


def lowered(pages: list[Page]) -> list[Page]:
    return [
        replace(page, questions=tuple(replace(q, text=q.text.lower()) for q in page.questions))
        for page in pages
    ]
