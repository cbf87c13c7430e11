"""Keyword questions: planted carriers, pages and places are told apart; numbers by slow counts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.findings import Finding, Verdict
from circuitsearch.discovery.analyses.keywords import keywords_analysis
from circuitsearch.discovery.analyses.measures.keyword_questions import keyword_questions
from circuitsearch.discovery.analyses.measures.query_losses import judged_query
from circuitsearch.discovery.analyses.measures.query_variance import QueryTable, query_table
from circuitsearch.discovery.analyses.measures.text_places import answer_place
from circuitsearch.discovery.lens.attention_maps import attention_map
from circuitsearch.discovery.patching.queries import queries, stream_before
from circuitsearch.teacher.decoders import write
from circuitsearch.teacher.documents.records import Page, Question
from circuitsearch.teacher.documents.render import Layout, Line, characters
from circuitsearch.teacher.loading import Teacher
from tests.discovery.analyses.keyword_plants import carrier, keyword_pages, taught
from tests.discovery.analyses.plants import material_of, silent, without
from tests.tiny import tiny_pages


def ask(found: Finding) -> dict[str, Verdict]:
    return {verdict.claim.removeprefix("Proposition 4, "): verdict for verdict in found.verdicts}


@pytest.mark.parametrize(
    ("names", "answer"),
    [(["S0", "S1", "S2"], "shown"), (["S1"], "partly"), (["S3"], "not shown")],
    ids=["three", "one", "the last"],
)
def test_the_planted_carriers_are_found(
    tiny_teacher: Teacher, names: list[str], answer: str
) -> None:
    teacher = carrier(tiny_teacher, names)
    found = keywords_analysis(material_of(teacher, taught(teacher, keyword_pages(16))))
    verdict = ask(found)["flow"]
    assert verdict.answer == answer
    assert found.values is not None
    rises = found.values["rises"]
    assert {name for name in ("S0", "S1", "S2", "S3") if rises[name] > 0.05} == set(names)
    assert rises["all"] > 1
    if len(names) == 1:
        assert rises[f"all but {names[0]}"] == 0
        assert rises[f"{names[0]} at <s_answer>"] == rises[names[0]]
    assert Finding.from_json(found.to_json()) == found


@pytest.mark.parametrize("reads_page", [False, True])
def test_a_query_that_depends_on_the_page_is_found(tiny_teacher: Teacher, reads_page: bool) -> None:
    teacher = carrier(tiny_teacher, ["S0"], ["C1", "C3"] if reads_page else ["C3"])
    verdicts = ask(keywords_analysis(material_of(teacher, taught(teacher, keyword_pages(10)))))
    expected = "not shown" if reads_page else "shown"
    assert verdicts["query"].answer == verdicts["page"].answer == expected


class InkEncoder(nn.Module):
    """Says of each patch of 8 x 8 pixels whether it holds ink."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, pixel_values: Tensor) -> Any:
        # green paper is the same everywhere
        bright = nn.functional.avg_pool2d(pixel_values[:, 1:2], 8).flatten(1)
        states = torch.zeros(*bright.shape, self.width)
        states[..., 0] = (bright < bright.max() - 0.02).float()
        return SimpleNamespace(last_hidden_state=states)


def printed_pages(count: int) -> list[Page]:
    pages = []
    for i in range(count):
        answer = f"{i + 1}.5{i}"
        layout = Layout(
            (Line(answer, 2 + i % 3, 2), Line("mo", 2, 20)), size=8, height=32, width=48
        )
        question = Question(f"q{i}", "What is the total?", (answer,))
        pages.append(Page(f"p{i}", f"p{i}", (question,), layout))
    return pages


@pytest.mark.parametrize("looks", [False, True])
def test_attention_on_the_answer_is_found(tiny_teacher: Teacher, looks: bool) -> None:
    pages = printed_pages(6)
    teacher = silent(tiny_teacher, pages)
    teacher.model.encoder = InkEncoder(32)
    attention = teacher.model.decoder.model.decoder.layers[3].encoder_attn
    with torch.no_grad():
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.zero_()
            projection.bias.zero_()
        attention.q_proj.bias.fill_(1)
        attention.k_proj.weight[:, 0] = 100.0 if looks else 0.0
    found = keywords_analysis(material_of(teacher, pages))
    verdict = ask(found)["place"]
    assert verdict.answer == ("shown" if looks else "not shown")
    share = next(t for t in found.tables if "hold the answer" in t.caption).rows[0]
    if not looks:
        assert share[1] == pytest.approx(share[4], abs=1e-6)
    # one question text only: nothing to compare the pages with
    assert ask(found)["query"].answer == "cannot be asked"


def test_places_are_those_of_the_glyphs(tiny_teacher: Teacher) -> None:
    page = printed_pages(1)[0]
    assert isinstance(page.source, Layout)
    found = answer_place(tiny_teacher, page, page.questions[0], 24)
    centres = characters(page.source)[: len(page.questions[0].answers[0])]
    assert found == tuple(sorted({int(y // 8) * 6 + int(x // 8) for _, x, y in centres}))
    behind = replace(page.source, lines=(Line("id: mo", 2, 2), Line("mo ki", 2, 20)))
    asked = Question("q", "What is the id?", ("mo",))
    value = answer_place(tiny_teacher, replace(page, source=behind), asked, 24)
    ends = characters(behind)[3:5]
    assert value == tuple(sorted({int(y // 8) * 6 + int(x // 8) for _, x, y in ends}))


@pytest.mark.parametrize(
    ("change", "tokens", "why"),
    [
        ({"height": 64}, 24, "another size"),
        ({}, 23, "no grid"),
        ({"lines": (Line("moki", 2, 2),)}, 24, "no line of their own"),
        ({"lines": (Line("1.50", 90, 2),)}, 24, "outside the page"),
    ],
)
def test_places_that_cannot_be_known(
    tiny_teacher: Teacher, change: dict[str, Any], tokens: int, why: str
) -> None:
    page = printed_pages(1)[0]
    assert isinstance(page.source, Layout)
    changed = replace(page, source=replace(page.source, **change))
    found = answer_place(tiny_teacher, changed, page.questions[0], tokens)
    assert isinstance(found, str)
    assert why in found


def test_attention_and_flow_equal_a_slow_count(tiny_teacher: Teacher) -> None:
    pages = tiny_pages(4)
    material = material_of(tiny_teacher, pages)
    found = keywords_analysis(material)
    asked = keyword_questions(tiny_teacher, material.sample)
    assert asked is not None
    shares: dict[str, list[float]] = {}
    flows: dict[str, list[float]] = {}
    view = tiny_teacher.decoder
    with torch.no_grad():
        for row in asked.sample.rows:
            ids = torch.tensor([row.ids[: row.prompt]])
            memory = view.memory(asked.sample.states[row.page][None])
            x, last = view.embed(ids), row.prompt - 1
            rolled = np.eye(row.prompt)
            for sublayer in view.sublayers:
                if sublayer.kind is Kind.SELF:
                    weights = attention_map(view, sublayer, x, memory)[0].numpy()
                    rolled = (0.5 * weights.mean(axis=0) + 0.5 * np.eye(row.prompt)) @ rolled
                    flows.setdefault(sublayer.name, []).append(
                        sum(rolled[last, k] for k in asked.find(row))
                    )
                    for h, head in enumerate(weights):
                        seen = sum(head[last, k] for k in asked.find(row))
                        shares.setdefault(f"{sublayer}.H{h}", []).append(seen)
                x = x + write(view, sublayer, x, memory)
    attention, flow = found.tables[:2]
    cells = {row[0]: row for row in attention.rows}
    for name, values in shares.items():
        assert cells[name][1] == pytest.approx(np.mean(values), rel=1e-4)
    even = np.mean([len(asked.find(row)) / row.prompt for row in asked.sample.rows])
    assert cells["S0"][4] == pytest.approx(even)
    for name, value, *_ in flow.rows:
        assert value == pytest.approx(np.mean(flows[str(name)]), rel=1e-4)


def test_variances_equal_a_slow_count(tiny_teacher: Teacher) -> None:
    material = material_of(tiny_teacher, tiny_pages(6))
    asked, target = keyword_questions(tiny_teacher, material.sample), SubLayer.parse("C3")
    assert asked is not None
    table = query_table(tiny_teacher.decoder, asked, target, material.progress)
    assert isinstance(table, QueryTable)
    assert table.values.shape == (6, 3, 4, 8)
    view, tokens = tiny_teacher.decoder, tiny_teacher.tokens
    with torch.no_grad():
        for p, q in ((0, 0), (3, 1), (5, 2)):
            ids = torch.tensor([tokens.prompt_ids(table.questions[q])])
            memory = view.memory(material.sample.states[p][None])
            query = queries(view, target, stream_before(view, ids, memory, target))[0, :, -1]
            np.testing.assert_allclose(table.values[p, q], query.numpy(), atol=1e-5)
    found = table.variances(2, seed=0)
    head = table.values[:, :, 2]
    over_pages = np.mean([np.cov(head[:, q].T).trace() for q in range(3)])
    over_questions = np.mean([np.cov(head[p].T).trace() for p in range(6)])
    assert found.pages == pytest.approx(over_pages)
    assert found.questions == pytest.approx(over_questions)
    share, low, high = found.share
    assert share == pytest.approx(over_pages / (over_pages + over_questions))
    assert low is not None
    assert high is not None
    assert low < share < high


def test_a_query_is_judged_only_where_it_is_worth_something() -> None:
    as_good, worse, unsure = (0.0, -0.01, 0.01), (1.0, 0.8, 1.2), (0.1, 0.0, 0.2)
    assert judged_query(as_good, worth=worse) == "shown"
    assert judged_query(worse, worth=worse) == "not shown"
    assert judged_query(unsure, worth=worse) == "open"
    assert judged_query(as_good, worth=unsure) == "open"
    assert judged_query(as_good, worth=as_good) == "cannot be asked"


def test_what_cannot_be_asked(tiny_teacher: Teacher) -> None:
    pages = tiny_pages(3)
    silenced = [
        replace(page, questions=(Question(page.id, "Who is it?", ("x",)),)) for page in pages
    ]
    for material in (
        material_of(tiny_teacher, silenced),
        material_of(without(tiny_teacher, Kind.CROSS), pages),
        material_of(without(tiny_teacher, Kind.SELF), pages),
    ):
        found = keywords_analysis(material)
        assert {verdict.answer for verdict in found.verdicts} == {"cannot be asked"}
        assert Finding.from_json(found.to_json()) == found
    one_page = ask(keywords_analysis(material_of(tiny_teacher, pages[2:])))
    assert "one page only" in one_page["page"].here
    assert one_page["query"].answer == one_page["place"].answer == "cannot be asked"
    assert one_page["flow"].answer == "open"
