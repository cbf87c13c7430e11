"""Head statistics: planted heads whose look tells their worth, or tells the opposite."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from circuitsearch.core.cost import Generation
from circuitsearch.core.findings import Finding
from circuitsearch.discovery.analyses.heads import heads_analysis
from circuitsearch.discovery.analyses.material import Material
from circuitsearch.discovery.analyses.measures.agreement import rank_agreement
from circuitsearch.discovery.lens.heads import head_statistics
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.documents.records import Page, Question
from circuitsearch.teacher.loading import Teacher
from tests.tiny import tiny_model, tiny_pages

HEADS, WIDTH = 4, 8


def material_of(teacher: Teacher, model: Any, pages: int = 6) -> Material:
    teacher = replace(teacher, model=model, decoder=residual_decoder(model))
    asked = [_asking_for_x(page) for page in tiny_pages(2 * pages)]
    return Material(teacher, tuple(asked[:pages]), tuple(asked[pages:]), Generation())


def _asking_for_x(page: Page) -> Page:
    """Every answer is a row of x: what raises its logit helps."""
    questions = tuple(Question(q.id, q.text, ("x" * 12,)) for q in page.questions)
    return replace(page, questions=questions)


def planted(teacher: Teacher, sharp_matters: bool) -> Any:
    """A model in which every head adds a known amount of one direction, the one that says x.

    Values do not depend on what is attended to, feed-forwards write nothing. Heads differ in how
    sharply they attend and in how much they write; the two go together or against each other.
    """
    model = copy.deepcopy(teacher.model)
    decoder = model.decoder.model.decoder
    x = teacher.tokens.tokenizer.convert_tokens_to_ids("x")
    direction = model.decoder.lm_head.weight[x] * decoder.layer_norm.weight
    direction = direction - direction.mean()
    kinds = {"S": "self_attn", "C": "encoder_attn"}
    order = list(itertools.product(range(len(decoder.layers)), range(HEADS)))
    np.random.default_rng(0).shuffle(order)
    with torch.no_grad():
        for layer in decoder.layers:
            layer.fc2.weight.zero_()
            layer.fc2.bias.zero_()
            for name in kinds.values():
                attention = getattr(layer, name)
                for part in (attention.v_proj, attention.out_proj):
                    part.weight.zero_()
                    part.bias.zero_()
                attention.v_proj.bias.fill_(1.0)
        for place, (layer, head) in enumerate(order):
            amount = (1 + place if sharp_matters else len(order) - place) / 100
            for name in kinds.values():
                attention = getattr(decoder.layers[layer], name)
                rows = slice(WIDTH * head, WIDTH * (head + 1))
                attention.q_proj.weight[rows] *= 0.1 * 1.6**place
                attention.q_proj.bias[rows] *= 0.1 * 1.6**place
                attention.out_proj.weight[:, WIDTH * head] = amount * direction
    return model


@pytest.mark.parametrize(("together", "answer"), [(True, "shown"), (False, "not shown")])
def test_planted_heads(tiny_teacher: Teacher, together: bool, answer: str) -> None:
    finding = heads_analysis(material_of(tiny_teacher, planted(tiny_teacher, together)))
    assert [verdict.answer for verdict in finding.verdicts] == [answer, answer]
    assert finding.values is not None
    assert finding.values["agreement"]["C"] * (1 if together else -1) > 0.8
    # every head adds to the right token, so removing any of them hurts
    assert len(finding.values["effects"]) == 32
    assert min(finding.values["effects"].values()) > 0
    # the other reading of variance turns the sign
    readings: list[Any] = [
        row for row in finding.tables[1].rows if row[0] == "C" and row[1] == "variance"
    ]
    low = next(row for row in readings if row[2] == "low")
    assert low[6] == pytest.approx(-readings[0][6])
    assert Finding.from_json(json.loads(json.dumps(finding.to_json()))) == finding


def test_numbers_are_those_of_the_engines(tiny_teacher: Teacher) -> None:
    material = material_of(tiny_teacher, tiny_teacher.model, 4)
    finding = heads_analysis(material)
    assert finding.values is not None
    table = head_statistics(material.view, material.sample)
    wanted = table.agreement(finding.values["effects"])
    found = {row[0]: row[2] for row in finding.tables[0].rows if row[1] == "loss, skipped"}
    assert found == {group: pytest.approx(rho) for group, rho in wanted.items()}
    assert finding.values["statistic"] == {
        entry.head: pytest.approx(entry.value) for entry in table.heads
    }
    rows: dict[Any, Any] = {row[0]: row for row in finding.tables[2].rows}
    assert {name: row[3] for name, row in rows.items()} == finding.values["effects"]
    assert all(low <= mean <= high for _, _, _, mean, low, high, *_ in rows.values())
    assert finding.charts[0].series[0].y[2] == finding.values["statistic"]["S0.H2"]
    assert [chart.kind for chart in finding.charts] == ["heat"] * 4
    assert finding.examples == material.sample.examples


def test_two_heads_have_no_order(tiny_teacher: Teacher) -> None:
    start = tiny_teacher.model.config.decoder_start_token_id
    vocabulary = tiny_teacher.shape.decoder.vocabulary
    model = tiny_model(vocabulary, start, layers=1, heads=2)
    finding = heads_analysis(material_of(tiny_teacher, model, 2))
    assert [verdict.answer for verdict in finding.verdicts] == ["cannot be asked"] * 2
    assert finding.values is not None
    assert finding.values["agreement"] == {"S": None, "C": None}
    assert len(finding.values["effects"]) == 4


def test_agreement_against_all_permutations() -> None:
    statistic = [0.3, 0.1, 0.5, 0.2, 0.4, 0.6]
    effects = np.array([[3, 1, 4, 2, 6, 5], [3, 2, 5, 2, 5, 7.0]])
    found = rank_agreement(statistic, effects, ["a", "b"], 0)
    assert found is not None
    ranks = np.array([3, 1, 5, 2, 4, 6.0])
    theirs = effects.mean(axis=0).argsort().argsort() + 1.0
    rho = np.corrcoef(ranks, theirs)[0, 1]
    every = [np.corrcoef(ranks, p)[0, 1] for p in itertools.permutations(theirs)]
    assert found.rho == pytest.approx(rho)
    # 9,999 draws of a share: three standard errors
    exact = np.mean(np.abs(every) >= rho - 1e-9)
    assert found.p == pytest.approx(exact, abs=3 * np.sqrt(exact / 9999))
    half = 1.959963984540054 * np.sqrt(1.06 / 3)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= np.tanh(np.arctanh(rho) - half) + 1e-9
    assert found.high >= np.tanh(np.arctanh(rho) + half) - 1e-9
    assert found.n == 6


def test_what_an_agreement_needs() -> None:
    effects = np.array([[1.0, 2.0, 3.5, 4.0], [2.0, 4.0, 3.0, 5.0]])
    one = rank_agreement([1, 2, 3, 4], effects, ["a", "a"], 0)
    assert one is not None
    assert one.rho == pytest.approx(1)
    assert (one.low, one.high) == (None, None)
    two = rank_agreement([1, 2, 3, 4], effects, ["a", "b"], 0)
    assert two is not None
    assert two.low is not None
    assert two.high is not None
    assert two.low < two.rho <= two.high
    assert rank_agreement([1, 2], effects[:, :2], ["a", "b"], 0) is None
    assert rank_agreement([1, 1, 1, 1], effects, ["a", "b"], 0) is None
    assert rank_agreement([1, 2, 3, 4], np.ones((2, 4)), ["a", "b"], 0) is None
