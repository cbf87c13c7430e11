"""The predictions file: whatever stands in questions and answers, it reads back as written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuitsearch.core.answers import (
    Answer,
    Answers,
    read_answers,
    read_header,
    write_answers,
)
from circuitsearch.core.errors import DataError

# lone surrogates too: a tokenizer may decode half a pair
TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
HOSTILE = [
    'a"}\n{"format": "circuitsearch predictions 1"}',
    "line\u2028separator\u2029\x85\x0b\x0c\r\n",
    "\ud800 half a pair",
    "\x1b[31mred\x07\x00",
    "</script><img src=x onerror=alert(1)>",
    "\u202egnp.exe",
    "🦉" * 3,
]


def row(**changes: Any) -> Answer:
    values: dict[str, Any] = {
        "question": "7",
        "page": "p.png",
        "document": "d",
        "family": "form",
        "answer": "12",
        "golds": ("12", "twelve"),
        "anls": 1.0,
        "exact": True,
        "loss": 0.25,
        "tokens": 3,
    }
    return Answer(**{**values, **changes})


def run(*rows: Answer, **changes: Any) -> Answers:
    values: dict[str, Any] = {
        "teacher": "ab12",
        "pages": "cd34",
        "plan": "M0 C3",
        "plan_hash": "ef56",
        "weights": "0a0a",
        "split": "final",
        "seed": 1,
        "steps": 300,
        "decoding": {"method": "greedy", "max_length": 128},
        "rows": rows,
    }
    return Answers(**{**values, **changes})


def test_a_file_reads_back_as_written(tmp_path: Path) -> None:
    made = run(row(), row(question="8", family="", loss=-0.0, exact=False, anls=0.5))
    path = tmp_path / "a.jsonl"
    write_answers(path, made)
    assert read_answers(path) == (made,)
    assert read_header(path) == replace(made, rows=())
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]  # no temporary file stays


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_inside_its_string(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    fields = ("question", "page", "document", "family", "answer")
    made = run(row(**dict.fromkeys(fields, text), golds=(text,)), plan=text)
    write_answers(path, made)
    raw = path.read_bytes()
    assert raw.count(b"\n") == 2  # one header, one row
    assert all(byte in b"\n" or 32 <= byte < 127 for byte in raw)
    assert read_answers(path) == (made,)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXT, min_size=1, max_size=4, unique=True), answer=TEXT)
def test_any_text_makes_the_round_trip(tmp_path: Path, texts: list[str], answer: str) -> None:
    made = run(*(row(question=text, answer=answer, golds=(text, answer)) for text in texts))
    write_answers(tmp_path / "a.jsonl", made)
    assert read_answers(tmp_path / "a.jsonl") == (made,)


def test_runs_may_follow_each_other(tmp_path: Path) -> None:
    first, second = run(row()), run(row(answer="x"), seed=2)
    for name, one in (("a", first), ("b", second)):
        write_answers(tmp_path / name, one)
    joined = tmp_path / "both"
    joined.write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    assert read_answers(joined) == (first, second)
    write_answers(tmp_path / "c", [first, second])
    assert (tmp_path / "c").read_bytes() == joined.read_bytes()


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    write_answers(tmp_path / "good", run(row(), row(question="8")))
    return [json.loads(line) for line in (tmp_path / "good").read_text().splitlines()]


def write(tmp_path: Path, data: list[Any]) -> Path:
    path = tmp_path / "bad.jsonl"
    texts = [one if isinstance(one, str) else json.dumps(one) for one in data]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def test_all_bad_lines_come_together(tmp_path: Path) -> None:
    head, one, other = lines(tmp_path)
    bad = [
        head,
        {**one, "anls": 1.5, "golds": []},
        "{not json",
        [1],
        {**other, "exact": 1, "tokens": 0, "loss": None},
        {k: v for k, v in other.items() if k != "document"} | {"documnt": "d"},
        '{"question": NaN}',
    ]
    with pytest.raises(DataError) as caught:
        read_answers(write(tmp_path, bad))
    said = str(caught.value)
    for word in (
        "line 2", "anls: got 1.5", "golds: got []", "line 3: not JSON", "line 4: a list",
        "line 5", "exact: got 1", "tokens: got 0", "loss: got None", "line 6",
        "missing field 'document'", "did you mean 'document'", "line 7", "NaN",
    ):  # fmt: skip
        assert word in said, word


def test_other_files_are_refused(tmp_path: Path) -> None:
    head, one, _ = lines(tmp_path)
    cases = {
        "the header is missing": [one],
        "is answered twice": [head, one, one],
        "format: got 'other'": [{**head, "format": "other"}],
        "it is empty": [],
        "rule: got 'strct', allowed are rrc, strict; did you mean 'strict'": [
            {**head, "rule": "strct"}
        ],
        "unknown field 'rows'": [{**head, "rows": []}],
        "decoding: got 'greedy'": [{**head, "decoding": "greedy"}],
    }
    for words, data in cases.items():
        with pytest.raises(DataError, match=words.replace("?", r"\?")):
            read_answers(write(tmp_path, data))
    with pytest.raises(DataError, match="cannot be read"):
        read_answers(tmp_path / "none")
    with pytest.raises(DataError, match="no header"):
        read_header(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_answers(tmp_path / "bytes")
