"""The transcription lens on planted states: text, noise, text that only some heads carry."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitsearch.core.cost import Generation
from circuitsearch.core.findings import Finding
from circuitsearch.discovery.analyses.material import Material
from circuitsearch.discovery.analyses.measures.printed import Printed, fitted_map, printed_on
from circuitsearch.discovery.analyses.transcription import transcription_analysis
from circuitsearch.discovery.lens.transcription import printed_tokens, transcribe
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.documents.records import Page, Question
from circuitsearch.teacher.documents.render import Layout, Line
from circuitsearch.teacher.loading import Teacher
from tests.tiny import tiny_pages

TEXTS = ("Rome", "May 7", "12.50", "Oka", "total", "x9", "name", "B4")


def page_of(index: int) -> Page:
    """A page of the tiny encoder's size: 24 patches of 8 x 8 pixels."""
    lines = tuple(Line(TEXTS[(index + 3 * row) % len(TEXTS)], 1, 10 * row) for row in range(3))
    layout = Layout(lines, size=8, height=32, width=48)
    questions = (Question(f"q{index}", "What is it?", (lines[0].text,)),)
    return Page(f"p{index}", f"d{index}", questions, layout)


def material_of(teacher: Teacher, model: Any = None, pages: int = 8) -> Material:
    if model is not None:
        teacher = replace(teacher, model=model, decoder=residual_decoder(model))
    made = [page_of(index) for index in range(2 * pages)]
    return Material(teacher, tuple(made[:pages]), tuple(made[pages:]), Generation())


def reader(teacher: Teacher, sharp: tuple[int, ...] = (0, 1)) -> Any:
    """A model whose last cross-attention passes states on; only `sharp` heads attend to places."""
    model = copy.deepcopy(teacher.model)
    attention = model.decoder.model.decoder.layers[-1].encoder_attn
    with torch.no_grad():
        for linear in (attention.v_proj, attention.out_proj):
            linear.weight.copy_(torch.eye(32))
            linear.bias.zero_()
        rows = model.decoder.lm_head.weight
        rows.copy_(rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-9))
        for head in range(4):
            part = slice(8 * head, 8 * head + 8)
            attention.q_proj.weight[part] *= 10.0 if head in sharp else 0.0
            attention.q_proj.bias[part] *= 10.0 if head in sharp else 0.0
    return model


def plant(material: Material, first: int = 32, noise: float = 0.0) -> Material:
    """Put the printed character into the first channels of every state, and noise into the rest."""
    for seed, (name, pages) in enumerate(
        (("sample", material.pages), ("other_sample", material.others))
    ):
        sample = getattr(material, name)
        printed = printed_on(material.teacher, pages, sample)
        assert isinstance(printed, Printed)
        rows = material.teacher.model.decoder.lm_head.weight.detach()
        states = noise * torch.randn(
            sample.states.shape, generator=torch.Generator().manual_seed(seed)
        )
        for page, place, ids in zip(printed.pages, printed.places, printed.tokens, strict=True):
            states[page, place, :first] = 5 * rows[min(ids), :first]
        material.__dict__[name] = replace(sample, states=states)
    return material


def answers(finding: Finding) -> dict[str, str]:
    return {verdict.claim: verdict.answer for verdict in finding.verdicts}


def test_states_that_are_text_are_transcribed(tiny_teacher: Teacher) -> None:
    finding = transcription_analysis(plant(material_of(tiny_teacher, reader(tiny_teacher))))
    found = answers(finding)
    assert found["Proposition 1"] == "shown"
    assert found["Proposition 1, any linear map"] == "shown"
    assert found["Figure 4, fewer heads"] == "not shown"  # nothing is better than everything
    assert finding.values is not None
    assert finding.values["accuracy"] == 1.0
    # the other cross-attentions do not pass states on
    rows: dict[Any, Any] = {row[:2]: row for row in finding.tables[0].rows}
    assert rows["C3", "none"][2] == 100
    assert rows["C0", "none"][2] < 50
    assert Finding.from_json(json.loads(json.dumps(finding.to_json()))) == finding


def test_states_of_noise_are_not(tiny_teacher: Teacher) -> None:
    material = plant(material_of(tiny_teacher, reader(tiny_teacher)), first=0, noise=1.0)
    found = answers(transcription_analysis(material))
    assert found["Proposition 1"] == "not shown"
    assert found["Proposition 1, any linear map"] in ("not shown", "open")


def test_text_that_only_another_map_reads(tiny_teacher: Teacher) -> None:
    """The states hold the text, but the value projection turns it into something else."""
    model = reader(tiny_teacher)
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1)))[0]
    with torch.no_grad():
        model.decoder.model.decoder.layers[-1].encoder_attn.v_proj.weight.copy_(turn)
    found = answers(transcription_analysis(plant(material_of(tiny_teacher, model))))
    assert found["Proposition 1"] == "not shown"
    assert found["Proposition 1, any linear map"] == "shown"


@pytest.mark.parametrize(("sharp", "answer"), [((0, 1), "shown"), ((2, 3), "not shown")])
def test_heads_that_carry_the_text(
    tiny_teacher: Teacher, sharp: tuple[int, ...], answer: str
) -> None:
    """Heads 0 and 1 carry the character, 2 and 3 noise; the sharp ones are chosen."""
    material = plant(material_of(tiny_teacher, reader(tiny_teacher, sharp)), first=16, noise=4.0)
    finding = transcription_analysis(material)
    found = answers(finding)
    assert finding.values is not None
    assert finding.values["heads"] == list(sharp)
    assert found["Figure 4, fewer heads"] == answer
    assert found["Figure 4, choice of heads"] == answer
    lines = {series.name: series.y for series in finding.charts[0].series}
    assert lines["highest variance"][1] == finding.tables[1].rows[0][3]
    assert lines["highest variance"][3] == lines["lowest variance"][3] == lines["random"][3]


def test_shares_are_counted_patch_by_patch(tiny_teacher: Teacher) -> None:
    material = material_of(tiny_teacher, pages=4)
    finding = transcription_analysis(material)
    hits = total = 0
    for page in range(4):
        states: Tensor = material.sample.states[page][None]
        top = transcribe(material.view, states).top[0, :, 0]
        size, tokenizer = (32, 48), tiny_teacher.tokens.tokenizer
        layout = material.pages[page].source
        assert isinstance(layout, Layout)
        for place, ids in printed_tokens(layout, size, 24, tokenizer).items():
            hits += int(top[place]) in ids
            total += 1
    assert finding.values is not None
    assert finding.values["accuracy"] == pytest.approx(hits / total)
    assert f"n = {total} patches with text about 4 documents" in finding.tables[0].caption


def test_fitted_map_is_a_regression() -> None:
    """Three classes on a line of angles: the fitted map separates them, the shuffled one cannot."""
    angles = torch.arange(30).double() * 2 * torch.pi / 30
    states = torch.stack([angles.cos(), angles.sin()], dim=1)
    kinds = (np.arange(30) // 10) + 40

    def patches(ids: np.ndarray) -> Printed:
        tokens = tuple(frozenset({int(i)}) for i in ids)
        return Printed(states, tokens, ("d",) * 30, np.zeros(30, int), np.arange(30))

    assert fitted_map(patches(kinds), patches(kinds)).mean() == 1.0
    shuffled = np.random.default_rng(0).permutation(kinds)
    assert fitted_map(patches(kinds), patches(shuffled)).mean() < 0.7


class _Words:
    """A tokenizer of words: it knows no single character."""

    unk_token_id = 3
    all_special_ids = (0, 1, 2, 3)

    def convert_tokens_to_ids(self, token: str) -> int:
        return 3


def test_what_cannot_be_asked(tiny_teacher: Teacher) -> None:
    scanned = Material(tiny_teacher, tuple(tiny_pages(4)), tuple(tiny_pages(4)), Generation())
    finding = transcription_analysis(scanned)
    found = answers(finding)
    assert found.pop("Proposition 1, retrieval") != "cannot be asked"  # the answers are known
    assert set(found.values()) == {"cannot be asked"}
    assert "images whose text is not known" in finding.verdicts[0].here
    assert "entropy" in finding.tables[0].head
    assert finding.charts == ()
    small = replace(page_of(0), source=Layout((Line("x", 1, 1),), height=8, width=8))
    why = printed_on(tiny_teacher, [small], scanned.sample)
    assert isinstance(why, str)
    assert "square patches tile" in why
    worded = replace(tiny_teacher, tokens=replace(tiny_teacher.tokens, tokenizer=_Words()))
    why = printed_on(worded, [page_of(0)], scanned.sample)
    assert isinstance(why, str)
    assert "not single characters" in why
    # other pages without text leave one question less
    mixed = replace(material_of(tiny_teacher, pages=4), others=tuple(tiny_pages(4)))
    found = answers(transcription_analysis(mixed))
    assert found["Proposition 1, any linear map"] == "cannot be asked"
    assert found["Proposition 1"] != "cannot be asked"
