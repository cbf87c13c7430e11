from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsearch.core.errors import DataError
from circuitsearch.core.files import read_json, write_json
from circuitsearch.show.report_record import GROUPS, Record, Said, choose, outcomes
from tests.show.report_fixtures import answers, asked, record

RIGHT = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=20)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = record().write(tmp_path)
    assert Record.read(tmp_path) == record()
    before = path.read_bytes()
    record().write(tmp_path)
    assert path.read_bytes() == before


def test_a_folder_without_the_file_has_no_record(tmp_path: Path) -> None:
    assert Record.read(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "format 1"),
        ({"comand": "x"}, "did you mean 'command'"),
        ({"asked": 3}, "asked"),
        ({"asked": [{"question": "x"}]}, "missing field"),
        ({"outcomes": {"both": -1}}, "outcomes: both"),
        ({"settings": []}, "settings"),
        ({"command": 3}, "command"),
    ],
)
def test_a_malformed_record_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = record().write(tmp_path)
    write_json(path, {**read_json(path), **change})
    with pytest.raises(DataError, match=message):
        Record.read(tmp_path)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("not base64!", "base64"),
        (base64.b64encode(b"<svg onload=x>").decode(), "no PNG"),
        (base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(2**20)).decode(), "1,048,576"),
        (7, "base64"),
    ],
)
def test_what_is_no_small_png_is_no_image(tmp_path: Path, image: object, message: str) -> None:
    path = record().write(tmp_path)
    data = read_json(path)
    data["asked"][0]["image"] = image
    write_json(path, data)
    with pytest.raises(DataError, match=message):
        Record.read(tmp_path)


def test_impossible_answers_are_refused_together() -> None:
    with pytest.raises(DataError, match="2 problems"):
        Said(3, 1.5, True)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="golds"):
        asked(golds="12.50")


@given(RIGHT)
def test_outcomes_count_every_question_once(right: list[tuple[bool, bool]]) -> None:
    teacher, student = answers([a for a, _ in right]), answers([b for _, b in right])
    # the order of the other file does not matter
    groups = outcomes(teacher, replace(student, rows=student.rows[::-1]))
    expected = [(True, True), (True, False), (False, True), (False, False)]
    for name, wanted in zip(GROUPS, expected, strict=True):
        assert len(groups[name]) == sum(pair == wanted for pair in right)
        assert all(one.question == other.question for one, other in groups[name])
        assert all((one.exact, other.exact) == wanted for one, other in groups[name])


def test_runs_over_other_questions_are_refused() -> None:
    with pytest.raises(DataError, match="different questions"):
        outcomes(answers([True]), answers([True, False]))


@given(RIGHT, st.integers(0, 8))
def test_chosen_questions_differ_and_groups_take_turns(
    right: list[tuple[bool, bool]], amount: int
) -> None:
    groups = outcomes(answers([a for a, _ in right]), answers([b for _, b in right]))
    sizes = {name: len(group) for name, group in groups.items()}
    chosen = choose(groups, amount)
    assert {name: len(group) for name, group in groups.items()} == sizes
    names = [one.question for one, _ in chosen]
    assert len(names) == len(set(names)) == min(amount, len(right))
    taken = {n: sum(pair in groups[n] for pair in chosen) for n in GROUPS}
    # a group has fewer than another only where it has no more, or its turn was still to come
    for one in GROUPS:
        for other in GROUPS:
            assert taken[one] == sizes[one] or taken[other] - taken[one] <= 1


def test_pages_differ_where_they_can() -> None:
    groups = outcomes(answers([True] * 12, pages=12), answers([True] * 12, pages=12))
    first = choose(groups, 6)
    assert len({one.page for one, _ in first}) == 6
    assert choose(groups, 6) == first
    few = outcomes(answers([True] * 6, pages=2), answers([True] * 6, pages=2))
    assert [len({one.page for one, _ in choose(few, n)}) for n in (1, 2, 4)] == [1, 2, 2]
