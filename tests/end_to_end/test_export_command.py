"""`circuitsearch export`: files that are checked against the checkpoint they come from."""

from __future__ import annotations

import json
from pathlib import Path

from circuitsearch.answer import answer_question
from circuitsearch.core.plan import Plan
from circuitsearch.students import build_student, save_student
from circuitsearch.teacher.loading import Teacher
from tests.end_to_end.shell import circuitsearch
from tests.tiny import tiny_pages


def test_export_and_check(tiny_teacher: Teacher, tmp_path: Path) -> None:
    student = build_student(tiny_teacher, Plan.parse("M0:9 C2 S3[0-1]"))
    save_student(student, tiny_teacher, tmp_path / "student")
    tiny_pages(1)[0].image().save(tmp_path / "page.png")
    done = circuitsearch(
        *("export", tmp_path / "student", tmp_path / "onnx", "--check", tmp_path / "page.png"),
        *("--question", "What is the date?", "--question", "Who?", "--time", "--json"),
    )
    data = json.loads(done.stdout)
    assert data["files"] == [
        "answer_onnx.py",
        "decoder.onnx",
        "encoder.onnx",
        "manifest.json",
        "tokenizer.json",
    ]
    assert [row["question"] for row in data["checked"]] == ["What is the date?", "Who?"]
    for row in data["checked"]:
        assert row["equal"] is True
        assert row["torch"] == row["onnx"] == row["batched"]
        assert 0 <= row["difference"] <= 1e-4
    assert set(data["milliseconds"]) == {"PyTorch", "ONNX Runtime"}
    for times in data["milliseconds"].values():
        assert set(times) == {"encoder", "first token", "per token"}
        assert min(times.values()) >= 0
    answer = answer_question(str(tmp_path / "student"), tmp_path / "page.png", "What is the date?")
    assert answer == data["checked"][0]["onnx"]
