"""Two predictions on the same questions: seeds averaged, families apart, mismatches refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from circuitsearch.core.errors import DataError
from circuitsearch.teacher.comparison import OVERALL, compare_answers
from circuitsearch.teacher.metrics import anls
from tests.core.test_answers import row, run

GOLD = "abcd"
SAID = {"right": "abcd", "near": "abcx", "half": "abxy", "wrong": "§"}
WORTH = {"right": 1.0, "near": 0.75, "half": 0.5, "wrong": 0.0}


def side(*words: str, seed: int = 0, plan: str = "C3"):
    rows = [
        row(
            question=str(i),
            answer=SAID[word],
            golds=(GOLD,),
            document=f"d{i // 2}",
            family="odd" if i % 2 else "even",
        )
        for i, word in enumerate(words)
    ]
    return run(*rows, seed=seed, plan=plan)


def test_differences_overall_and_by_family() -> None:
    first = side("right", "near", "right", "half")
    second = side("near", "near", "wrong", "wrong", plan="C2")
    found = compare_answers([first], [second])
    assert list(found) == [OVERALL, "even", "odd"]
    assert found[OVERALL].first == (1 + 0.75 + 1 + 0.5) / 4
    assert found[OVERALL].second == 1.5 / 4
    assert found[OVERALL].mean == (0.25 + 0 + 1 + 0.5) / 4
    assert (found["even"].mean, found["odd"].mean) == (0.625, 0.25)
    assert (found["odd"].questions, found["odd"].documents) == (2, 2)


def test_strict_anls_drops_a_similarity_of_one_half() -> None:
    sides = [side("half", "right")], [side("wrong", "right", plan="C2")]
    assert compare_answers(*sides)[OVERALL].mean == 0.25
    assert compare_answers(*sides, rule="strict")[OVERALL].mean == 0.0
    assert anls(SAID["half"], [GOLD], strict=True) == 0.0


def test_seeds_are_averaged_per_question_before_they_are_compared() -> None:
    words = [("right", "half", "wrong", "near"), ("near", "wrong", "wrong", "right")]
    first = [side(*each, seed=seed) for seed, each in enumerate(words)]
    second = [side("half", "half", "near", "near", plan="C2")]
    found = compare_answers(first, second)[OVERALL]
    means = [(WORTH[a] + WORTH[b]) / 2 for a, b in zip(*words, strict=True)]
    assert found.first == pytest.approx(sum(means) / 4, abs=1e-12)  # rounding of the sums
    assert found.questions == 4  # not 8: seeds are no new questions
    assert compare_answers(first[::-1], second)[OVERALL] == found


def test_the_order_of_lines_does_not_matter() -> None:
    first, second = side("right", "near", "wrong", "half"), side(*["near"] * 4, plan="C2")
    turned = replace(first, rows=first.rows[::-1])
    assert compare_answers([turned], [second]) == compare_answers([first], [second])


def test_other_questions_are_refused_with_the_first_ids() -> None:
    first = side("right", "near", "wrong", "half")
    second = side("right", "near", plan="C2")
    extra = replace(second, rows=(*second.rows, row(question="99")))
    other = replace(extra, rows=(replace(extra.rows[0], golds=("other",)), *extra.rows[1:]))
    with pytest.raises(DataError) as caught:
        compare_answers([first], [other])
    said = str(caught.value)
    assert "2 questions are answered on the first side only, first '2', '3'" in said
    assert "1 questions are answered on the second side only, first '99'" in said
    assert "1 questions have another gold on the two sides, first '0'" in said


def test_a_side_is_one_plan_with_different_seeds() -> None:
    first = side("right", "near")
    with pytest.raises(DataError, match=r"(?s)mixes plans: 'C3', 'C2'.*seed 0 twice"):
        compare_answers([first, side("right", "near", plan="C2")], [first])
    with pytest.raises(DataError, match="the second side holds no run"):
        compare_answers([first], [])
    with pytest.raises(DataError, match="not in both seeds 0 and 1"):
        compare_answers([first, side("right", seed=1)], [first])
