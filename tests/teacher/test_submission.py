"""The competition's file: complete, typed, and every fault named before it is handed in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.core.files import write_json
from circuitsearch.teacher.documents.submission import check_submission, write_submission

ASKED = ["49153", "24580", "7"]


def test_a_submission_is_the_list_that_the_server_takes(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    said = {"7": 'a "quoted" \u2028 text', "49153": "0.28", "24580": ""}
    write_submission(path, said, ASKED)
    entries = json.loads(path.read_text(encoding="utf-8"))
    assert entries == [
        {"questionId": 7, "answer": 'a "quoted" \u2028 text'},
        {"questionId": 24580, "answer": ""},
        {"questionId": 49153, "answer": "0.28"},
    ]
    assert check_submission(path, ASKED) == said


def test_all_faults_of_a_file_come_together(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    write_json(
        path,
        [
            {"questionId": 7, "answer": "x"},
            {"questionId": 7, "answer": "y"},
            {"questionId": "24580", "answer": "z"},
            {"questionId": 24580, "answer": None},
            {"questionId": 1, "answer": "w", "score": 1},
            {"questionId": True, "answer": "v"},
            "no object",
        ],
    )
    with pytest.raises(DataError) as caught:
        check_submission(path, ASKED)
    said = str(caught.value)
    for word in (
        "question 7 is answered 2 times",
        "entry 2: questionId is '24580' (str), allowed is a whole number",
        "entry 3: answer is None (NoneType), allowed is a text",
        "entry 4: question 1 is not in the split",
        "entry 4: unknown key 'score'",
        "entry 5: questionId is True (bool)",
        "entry 6: got a str",
        "question 49153 is not answered",
    ):
        assert word in said, word
    assert "question 24580 is not answered" not in said


def test_nothing_is_written_unless_every_question_has_its_answer(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    with pytest.raises(DataError, match=r"(?s)question 7 is not answered|2 problems"):
        write_submission(path, {"49153": "a", "24580": "b"}, ASKED)
    with pytest.raises(DataError, match="'9' "):
        write_submission(path, {"49153": "a", "24580": "b", "7": "c", "9": "d"}, ASKED)
    assert not path.exists()


@pytest.mark.parametrize("odd", ["q1", "", "-3", "1.5", "\uff11\uff12", "9" * 30])
def test_ids_that_are_no_numbers_are_refused_with_the_reason(tmp_path: Path, odd: str) -> None:
    with pytest.raises(ConfigError, match="no whole numbers"):
        write_submission(tmp_path / "out.json", {odd: "a", "7": "b"}, [odd, "7"])
    with pytest.raises(ConfigError, match=r"data\.source: docvqa"):
        check_submission(tmp_path / "out.json", [odd])


def test_many_faults_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    write_json(path, [])
    with pytest.raises(DataError, match="and 480 more"):
        check_submission(path, [str(number) for number in range(500)])
    write_json(path, {"questionId": 1})
    with pytest.raises(DataError, match="got a dict, allowed is a list"):
        check_submission(path, ASKED)
