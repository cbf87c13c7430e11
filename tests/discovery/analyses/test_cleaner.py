"""The last feed-forward: one that only removes the residual, an idle one, one that answers."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from circuitsearch.core.components import Kind
from circuitsearch.core.findings import Finding
from circuitsearch.discovery.analyses.cleaner import cleaner_analysis
from circuitsearch.teacher.decoders import residual_decoder, run
from circuitsearch.teacher.loading import Teacher
from tests.discovery.analyses.plants import BEYOND, PATTERN, material_of, silent, speak, without
from tests.discovery.lens_literal import streams
from tests.tiny import tiny_pages

PAGES, OTHERS = tiny_pages(6), tiny_pages(14)[6:]
LOUD = 0.5
"""The answer is spoken for so softly that what else is in the stream matters."""


def sweep(teacher: Teacher) -> None:
    """Let M3 write minus the stream in front of C3: gelu(z) - gelu(-z) = z, and norms divide all
    vectors by one number, since the stream and what C3 adds to it are of one size everywhere."""
    layer = teacher.model.decoder.model.decoder.layers[3]
    width = layer.fc1.in_features
    tokens = width - BEYOND
    deviation = math.sqrt((width + LOUD**2 * float(PATTERN.square().sum())) / width)
    with torch.no_grad():
        for weights in (layer.fc1.weight, layer.fc2.weight, layer.fc1.bias):
            weights.zero_()
        both = torch.cat([torch.eye(tokens), -torch.eye(tokens)])
        layer.fc1.weight[: 2 * tokens, :tokens] = both
        layer.fc2.weight[:tokens, : 2 * tokens] = -deviation * both.T


def planted(tiny_teacher: Teacher, role: str) -> Teacher:
    teacher = silent(tiny_teacher, [*PAGES, *OTHERS])
    speak(teacher, "C3", LOUD)
    if role == "sweeps":
        sweep(teacher)
    if role == "answers":
        speak(teacher, "C3", -LOUD)
        speak(teacher, "M3", 3 * LOUD)
    return teacher


@pytest.mark.parametrize(
    ("role", "alone", "skipped"),
    [
        ("sweeps", "shown", "shown"),
        ("idle", "not shown", "not shown"),
        ("answers", "not shown", "shown"),
    ],
)
def test_what_the_feed_forward_does(
    tiny_teacher: Teacher, role: str, alone: str, skipped: str
) -> None:
    found = cleaner_analysis(material_of(planted(tiny_teacher, role), PAGES, OTHERS))
    assert [v.answer for v in found.verdicts] == [alone, skipped] * 2
    removed = {str(row[0]): row[1] for row in found.tables[1].rows}
    share = removed["share of the earlier vector that the feed-forward removes"]
    assert share == pytest.approx(float(role == "sweeps"), abs=1e-3)
    assert found.values is not None
    # an idle one is all the better for being left out together with the rest
    assert found.values["alone_as_good"] is (role != "answers")
    assert Finding.from_json(found.to_json()) == found
    assert found.examples == 12 + 15


def test_an_earlier_part_of_the_answer_is_missed(tiny_teacher: Teacher) -> None:
    """C2 speaks for the answer, and C3's write alone against it."""
    teacher = silent(tiny_teacher, [*PAGES, *OTHERS])
    speak(teacher, "C2", 2.0)
    speak(teacher, "C3", -0.5)
    found = cleaner_analysis(material_of(teacher, PAGES, OTHERS))
    assert found.verdicts[0].answer == "not shown"
    assert found.values is not None
    assert found.values["alone_as_good"] is False


def test_numbers_equal_a_literal_count(tiny_teacher: Teacher) -> None:
    found = cleaner_analysis(material_of(tiny_teacher, PAGES, OTHERS))
    model = tiny_teacher.model.decoder
    stack = model.model.decoder
    expected: dict[str, list[float]] = {}
    sample = material_of(tiny_teacher, PAGES).sample
    for example in sample.rows:
        streams_of, writes, _ = streams(model, sample, example)
        ends = {
            "clean": streams_of["M3"],
            "feed-forward skipped": streams_of["C3"],
            "write alone": writes["C3"],
        }
        for name, end in ends.items():
            logits = model.lm_head(stack.layer_norm(end))[example.prompt - 1]
            loss = -float(logits.double().log_softmax(-1)[example.ids[example.prompt]])
            expected.setdefault(name, []).append(loss)
    rows = {row[0]: row[1:] for row in found.tables[0].rows}
    chart = {series.name: series.y for series in found.charts[0].series}
    for name, losses in expected.items():
        assert rows[name][0] == pytest.approx(np.mean(losses), rel=1e-4)
        assert rows[name][3] == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
        assert rows[name][6] == pytest.approx(math.exp(np.median(losses)), rel=1e-4)
        shares = [np.mean(np.exp(losses) <= float(t)) for t in found.charts[0].x]
        assert chart[name] == pytest.approx(shares)
        assert 0 < np.mean(shares) < 1
    differences = {row[0]: row[1] for row in found.tables[1].rows}
    gap = np.mean(expected["feed-forward skipped"]) - np.mean(expected["clean"])
    assert differences["feed-forward skipped - clean"] == pytest.approx(gap, abs=1e-5)
    assert "heads alone" in rows


def test_without_what_is_asked_about(tiny_teacher: Teacher) -> None:
    found = cleaner_analysis(material_of(tiny_teacher, PAGES))
    answers = [v.answer for v in found.verdicts]
    assert "cannot be asked" not in answers[:2]
    assert answers[2:] == ["cannot be asked"] * 2
    for kind in (Kind.CROSS, Kind.FEED):
        nothing = cleaner_analysis(material_of(without(tiny_teacher, kind), PAGES, OTHERS))
        assert [v.answer for v in nothing.verdicts] == ["cannot be asked"] * 4
        assert nothing.examples == 0
        assert nothing.values == {"alone_as_good": None, "losses": {}}


def test_a_feed_forward_further_behind(tiny_teacher: Teacher) -> None:
    """Without C3 the last cross-attention is C2; M2 is skipped and layer 3 still runs."""
    model = copy.deepcopy(tiny_teacher.model)
    layer = model.decoder.model.decoder.layers[3]
    layer.encoder_attn = layer.encoder_attn_layer_norm = None
    teacher = replace(tiny_teacher, model=model, decoder=residual_decoder(model))
    found = cleaner_analysis(material_of(teacher, PAGES, OTHERS))
    assert "C2 and the feed-forward M2" in found.notes[0]
    kept = [s for s in teacher.decoder.sublayers if s.name != "M2"]
    losses = []
    sample = material_of(teacher, PAGES).sample
    with torch.no_grad():
        for batch, states in sample.batches:
            memory = teacher.decoder.memory(states, batch.pages)
            logits = run(teacher.decoder, batch.ids, memory, kept).log_softmax(-1)
            for row, example in zip(logits, batch.examples, strict=True):
                losses.append(-float(row[example.prompt - 1, example.ids[example.prompt]]))
    rows = {row[0]: row[1] for row in found.tables[0].rows}
    assert rows["feed-forward skipped"] == pytest.approx(np.mean(losses), rel=1e-5)
