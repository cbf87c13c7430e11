"""Costs: the published table, the teacher at hand, decoders that cannot be counted."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from circuitsearch.core.cost import Generation
from circuitsearch.core.findings import Finding
from circuitsearch.core.shapes import known_shape
from circuitsearch.discovery.analyses.costs import costs_analysis
from circuitsearch.discovery.analyses.material import Material
from circuitsearch.teacher.loading import Teacher


def finding_of(teacher: Teacher, generation: Generation | None = None) -> Finding:
    return costs_analysis(Material(teacher, (), (), generation or Generation()))


def test_the_published_table(tiny_teacher: Teacher) -> None:
    finding = finding_of(tiny_teacher)
    table, bottleneck = finding.verdicts
    rows = {row[0]: row for row in finding.tables[-1].rows}
    # 2^20 weights a matrix of 1024 x 1024: four of them in an attention, eight in a feed-forward
    assert rows["self-attention, parameters"][1:] == ("4 Mi", "4.0000 Mi", 0.0, "yes")
    assert rows["feed-forward, parameters"][1:] == ("8 Mi", "8.0000 Mi", 0.0, "yes")
    # 1.565 T rounds to the published 1.57 T; 365.98 G does not round to 366.11 G
    assert rows["decoder, MACs"][2:] == ("1.5650 T", -0.318, "yes")
    assert rows["cross-attention, MACs"][2:] == ("365.9791 G", -0.036, "no")
    assert rows["embedding, MACs"][1:] == ("0", "0.0000", 0.0, "yes")
    assert table.answer == "partly"
    assert "8 of 16 figures equal" in table.here
    assert "parameters of encoder, is 1.1% off" in table.here
    assert finding.examples == 0
    assert bottleneck.claim == "Table 1, bottleneck"


def literal_shares(d: int, w: int, f: int, tokens: int, n: int, passes: int) -> dict[str, float]:
    """Share of each kind in a decoder's MACs without a cache, product by product."""
    macs = dict.fromkeys("SCM", 0)
    for length in range(n, n + passes):
        macs["S"] += 4 * length * d * w + 2 * length * length * w
        macs["C"] += 2 * tokens * d * w + 2 * length * d * w + 2 * length * tokens * w
        macs["M"] += 2 * length * d * f
    return {kind: value / sum(macs.values()) for kind, value in macs.items()}


@pytest.mark.parametrize(("name", "answer"), [("donut-base", "shown"), ("tiny", "not shown")])
def test_where_the_arithmetic_is(tiny_teacher: Teacher, name: str, answer: str) -> None:
    """4,800 encoder tokens make cross-attention dear; with a handful of them it is not."""
    shape = known_shape(name) if name == "donut-base" else tiny_teacher.shape
    finding = finding_of(replace(tiny_teacher, shape=shape), Generation(10, 5))
    decoder = shape.decoder
    shares = literal_shares(
        decoder.d_model,
        decoder.heads * decoder.head_dim,
        decoder.ffn,
        shape.encoder.tokens,
        10,
        5,
    )
    assert finding.values is not None
    assert finding.values["cross_share"] == pytest.approx(shares["C"])
    assert finding.verdicts[1].answer == answer
    bars = {series.name: series.y for series in finding.charts[0].series}
    assert bars["MACs, paper"] == pytest.approx([100 * shares[kind] for kind in "SCM"])
    rows: dict[Any, Any] = {row[0]: row for row in finding.tables[0].rows}
    assert rows["decoder"][1] == 4 * (
        rows["each self-attention"][1] + rows["each cross-attention"][1]
    ) + (4 * rows["each feed-forward"][1])


def test_a_decoder_that_cannot_be_counted(tiny_teacher: Teacher) -> None:
    gated = replace(tiny_teacher.shape.decoder, gated=True)
    finding = finding_of(replace(tiny_teacher, shape=replace(tiny_teacher.shape, decoder=gated)))
    assert finding.verdicts[0].answer == "partly"
    assert finding.verdicts[1].answer == "cannot be asked"
    assert "gated" in finding.notes[-1]
    assert finding.charts == ()
    assert finding.values is not None
    assert finding.values["cross_share"] is None


def test_the_record_travels(tiny_teacher: Teacher) -> None:
    finding = finding_of(tiny_teacher)
    assert Finding.from_json(json.loads(json.dumps(finding.to_json()))) == finding
