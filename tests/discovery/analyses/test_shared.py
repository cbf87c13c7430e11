"""What analyses share: intervals by document, wording, and the rule of verdicts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from circuitsearch.core.components import SubLayer
from circuitsearch.core.errors import DataError
from circuitsearch.discovery.analyses.shared import (
    Averages,
    cannot,
    counted,
    judged,
    judged_within,
    landmarks,
    mean_interval,
    perplexities,
    poor_note,
    share_interval,
    told,
    without_end,
)
from circuitsearch.discovery.patching.components import sample_metric
from circuitsearch.discovery.sample import make_sample
from circuitsearch.teacher.intervals import bootstrap_interval, wilson_interval
from circuitsearch.teacher.loading import Teacher
from tests.tiny import tiny_pages


def test_mean_interval_draws_documents() -> None:
    values, documents = [0.0, 0.0, 3.0, 5.0, 1.0], ["a", "a", "b", "b", "c"]
    assert mean_interval(values, documents, 3) == (1.8, *bootstrap_interval(values, documents, 3))  # type: ignore[misc]
    assert mean_interval(values, ["a"] * 5, 3) == (1.8, None, None)
    with pytest.raises(DataError):
        mean_interval([], [], 0)


def test_share_interval_has_width_where_all_agree() -> None:
    documents = [str(i // 2) for i in range(20)]
    share, low, high = share_interval(np.ones(20, dtype=bool), documents, 0)
    assert (share, low, high) == (1.0, *wilson_interval(20, 20))
    # both questions of a document agree: it is they that have to be drawn
    hits = [i % 4 < 2 for i in range(20)]
    share, low, high = share_interval(hits, documents, 0)
    assert (low, high) == bootstrap_interval(hits, documents, 0)
    assert share_interval(hits, ["a"] * 20, 0) == (0.5, None, None)


def test_averages_weigh_tokens_or_questions() -> None:
    averages = Averages(("a", "b", "c"), (1, 3, 2), 0)
    values = [6.0, 0.0, 3.0]
    by_token, by_answer = averages.over_tokens(values), averages.over_answers(values)
    assert by_token[0] == 2.0
    assert by_answer[0] == 3.0
    spelled = [6.0, 0.0, 0.0, 0.0, 3.0, 3.0]
    assert by_token[1:] == bootstrap_interval(spelled, ["a", "b", "b", "b", "c", "c"], 0)
    assert averages.count == "n = 3 questions about 3 documents"


def test_perplexities() -> None:
    assert perplexities((0.0, None, None)) == (1.0, None, None)
    assert perplexities((1.0, 0.5, 1e4)) == (math.e, math.exp(0.5), None)


def test_answers_without_closing_tags(tiny_teacher: Teacher) -> None:
    pages = tiny_pages(5)
    first = pages[0].questions[0]
    pages[0] = replace(pages[0], questions=(replace(first, answers=("",)),))
    sample = make_sample(tiny_teacher, pages, batch_size=4)
    end = tiny_teacher.tokens.answer_ids("")
    bare = without_end(sample, end)
    assert bare is not None
    # the empty answer is left out, and the others still read their own pages
    assert bare.examples == sample.examples - 1
    assert bare.documents == sample.documents[1:]
    assert [row.ids for row in bare.rows] == [row.ids[: -len(end)] for row in sample.rows[1:]]
    assert bare.fingerprint != sample.fingerprint
    whole, part = (sample_metric(tiny_teacher.decoder, s) for s in (sample, bare))
    longer = np.array([len(row.ids) - row.prompt for row in sample.rows[1:]])
    # what is left of each sum is the loss of the closing tags, which is positive
    assert (whole[1:] * longer > part * (longer - len(end))).all()
    assert without_end(sample, [3, *end]) is None
    assert without_end(sample, []) is None
    assert without_end(replace(sample, rows=sample.rows[:1]), end) is None


def test_told() -> None:
    assert told(0.123, 0.08, 0.151, unit="nats") == "0.12 (0.08 to 0.15) nats"
    assert told(-0.001, -0.2, 0.1, digits=1) == "0.0 (-0.2 to 0.1)"
    assert told(2.0, None, None) == "2.00, without an interval"
    assert told(None, None, None) == "beyond what can be written"
    assert counted(1, "tokens", ["a"]) == "n = 1 tokens about 1 document"
    assert counted(3, "heads") == "n = 3 heads"


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [
        (0.6, 0.9, "shown", "not shown"),
        (0.1, 0.5, "not shown", "open"),
        (0.1, 0.4, "not shown", "shown"),
        (0.4, 0.6, "open", "open"),
        (0.5, 0.5, "not shown", "not shown"),
        (None, None, "open", "open"),
    ],
)
def test_judged(low: float | None, high: float | None, above: str, below: str) -> None:
    assert judged(low, high, 0.5) == above
    assert judged(low, high, 0.5, above=False) == below


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [
        (-0.04, 0.04, "shown"),
        (0.06, 0.1, "not shown"),
        (-0.2, -0.06, "not shown"),
        (-0.06, 0.06, "open"),
        (0.01, 0.06, "open"),
        (None, None, "open"),
    ],
)
def test_judged_within(low: float | None, high: float | None, answer: str) -> None:
    assert judged_within(low, high, 0.05) == answer


def test_landmarks() -> None:
    order = [SubLayer(i) for i in range(12)]
    marks = landmarks(order)
    assert [str(s) for s in (marks.first_feed, marks.last_cross, marks.feed_behind)] == [
        "M0",
        "C3",
        "M3",
    ]
    named = [SubLayer.parse(name) for name in ("C0", "S1", "M1", "C2", "S3")]
    marks = landmarks(named)
    assert (str(marks.first_feed), str(marks.last_cross), marks.feed_behind) == ("M1", "C2", None)
    assert landmarks([SubLayer.parse("S0")]).last_cross is None


def test_notes_and_refusals() -> None:
    assert poor_note(0.1) == ()
    assert "perplexity 20" in poor_note(3.0)[0]
    verdict = cannot("Figure 3", "it is so", "", "nothing there", "a rule")
    assert (verdict.answer, verdict.here) == ("cannot be asked", "nothing there")
