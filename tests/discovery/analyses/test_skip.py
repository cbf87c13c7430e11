"""Skipping sub-layers: the planted one is found, numbers equal a literal count."""

from __future__ import annotations

import math
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.findings import Finding, Table
from circuitsearch.discovery.analyses.skip import skip_analysis
from circuitsearch.teacher.loading import Teacher
from tests.discovery.analyses.plants import material_of, silent, speak, without
from tests.discovery.literal import all_rows, replaced
from tests.tiny import tiny_pages

PAGES = tiny_pages(6)
NAMES = [f"{kind}{layer}" for layer in range(4) for kind in "SCM"]


@pytest.fixture(scope="module")
def random_finding(tiny_teacher: Teacher) -> Finding:
    return skip_analysis(material_of(tiny_teacher, PAGES))


def column(table: Table, title: str) -> dict[str, float]:
    place = table.head.index(title)
    return {str(row[0]): row[place] for row in table.rows}  # type: ignore[misc]


def literal_losses(teacher: Teacher, *skipped: str) -> tuple[np.ndarray, np.ndarray]:
    """Summed losses of the answer tokens and of those in front of the closing tags, [n, 2], and
    counts [n, 2], from the Hugging Face model with hooks."""
    material = material_of(teacher, PAGES)
    batch, states = all_rows(material.sample)
    model = teacher.model.decoder
    with ExitStack() as stack, torch.no_grad():
        for name in skipped:
            stack.enter_context(replaced(model, SubLayer.parse(name), torch.zeros_like))
        logits = model(input_ids=batch.ids, encoder_hidden_states=states, use_cache=False).logits
    sums, counts = [], []
    for row, labels in zip(logits.double().log_softmax(-1), batch.labels.tolist(), strict=True):
        losses = [-float(row[t, label]) for t, label in enumerate(labels) if label != -100]
        parts = losses, losses[:-2]  # every answer closes with </s_answer></s>
        sums.append([sum(part) for part in parts])
        counts.append([len(part) for part in parts])
    return np.array(sums), np.array(counts)


@pytest.mark.parametrize(("loud", "answer"), [("C3", "shown"), ("M1", "not shown")])
def test_the_sublayer_that_speaks_is_found(tiny_teacher: Teacher, loud: str, answer: str) -> None:
    teacher = silent(tiny_teacher, PAGES)
    quiet = "M1" if loud == "C3" else "C3"
    speak(teacher, loud, 3.0)
    speak(teacher, quiet, 0.3)
    found = skip_analysis(material_of(teacher, PAGES))
    effects = column(found.tables[1], "over answer tokens")
    assert max(effects, key=effects.__getitem__) == loud
    assert effects[loud] > effects[quiet] > 0
    assert [effects[name] for name in NAMES if name not in (loud, quiet)] == [0.0] * 10
    (verdict,) = found.verdicts
    assert verdict.answer == answer
    assert loud in verdict.here
    assert quiet in verdict.here
    assert Finding.from_json(found.to_json()) == found


def test_numbers_equal_a_literal_count(tiny_teacher: Teacher, random_finding: Finding) -> None:
    perplexity, effects = random_finding.tables[:2]
    clean, counts = literal_losses(tiny_teacher)
    for name in ("none (clean)", "S1", "C3", "M0"):
        sums = clean if name.startswith("none") else literal_losses(tiny_teacher, name)[0]
        by_token = math.exp(sums[:, 0].sum() / counts[:, 0].sum())
        by_answer = math.exp((sums[:, 0] / counts[:, 0]).mean())
        assert column(perplexity, "over answer tokens")[name] == pytest.approx(by_token, rel=1e-4)
        assert column(perplexity, "over questions")[name] == pytest.approx(by_answer, rel=1e-4)
        if not name.startswith("none"):
            bare = (sums - clean)[:, 1].sum() / counts[:, 1].sum()
            found = column(effects, "without closing tags")[name]
            assert found == pytest.approx(bare, rel=1e-3, abs=1e-5)


def test_interactions_and_pairs(tiny_teacher: Teacher, random_finding: Finding) -> None:
    table = random_finding.tables[3]
    clean, counts = literal_losses(tiny_teacher)
    tokens = counts[:, 0].sum()

    def effect(*names: str) -> float:
        return float((literal_losses(tiny_teacher, *names)[0] - clean)[:, 0].sum() / tokens)

    for pair, together, apart, difference, low, high in table.rows[:3]:
        a, b = str(pair).split()
        assert together == pytest.approx(effect(a, b), rel=1e-3, abs=1e-5)
        assert apart == pytest.approx(effect(a) + effect(b), rel=1e-3, abs=1e-5)
        assert low < difference < high  # type: ignore[operator]
    sizes = [abs(float(str(row[3]))) for row in table.rows]
    assert sizes == sorted(sizes, reverse=True)
    heat = random_finding.charts[1]
    grid = np.array([series.y for series in heat.series], dtype=np.float64)
    np.testing.assert_array_equal(grid, grid.T)
    assert random_finding.values is not None
    assert len(random_finding.values["pairs"]) == 66
    singles = column(random_finding.tables[1], "over answer tokens")
    np.testing.assert_allclose(np.diag(grid), [singles[name] for name in NAMES], rtol=1e-9)


def test_estimates_stand_beside_effects(random_finding: Finding) -> None:
    rows = {row[0]: row[1:] for row in random_finding.tables[2].rows}
    value, low, high, count = rows["activations-2"]
    assert count == 12
    assert low <= value <= high  # type: ignore[operator]
    # the tiny teacher is nearly linear: two points on the way are close to the effects
    assert value > 0.9  # type: ignore[operator]
    scores = column(random_finding.tables[1], "score")
    assert random_finding.values is not None
    assert scores == pytest.approx(random_finding.values["scores"]["activations-2"])


def test_without_cross_attention_it_cannot_be_asked(tiny_teacher: Teacher) -> None:
    found = skip_analysis(material_of(without(tiny_teacher, Kind.CROSS), PAGES[:2]))
    assert found.verdicts[0].answer == "cannot be asked"
    assert "no cross-attention" in found.verdicts[0].here
    assert len(found.tables[1].rows) == 8


def test_one_document_leaves_it_open(tiny_teacher: Teacher) -> None:
    found = skip_analysis(material_of(tiny_teacher, PAGES[:2]))
    assert found.verdicts[0].answer == "open"
    assert found.tables[0].rows[0][2] is None
    assert found.tables[2].rows[0][2] is None


def test_the_same_again(tiny_teacher: Teacher, random_finding: Finding) -> None:
    assert skip_analysis(material_of(tiny_teacher, PAGES)) == random_finding
