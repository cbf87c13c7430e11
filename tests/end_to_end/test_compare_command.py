"""Handing in and comparing from the command line: predictions, submission, paired difference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from circuitsearch.api import load_teacher
from circuitsearch.cli.main import app
from circuitsearch.core.answers import read_answers, write_answers
from circuitsearch.core.plan import Plan
from circuitsearch.students import build_student, save_student
from circuitsearch.teacher.documents.submission import check_submission
from circuitsearch.teacher.documents.synthetic import rendered_pages
from tests.core.test_answers import run
from tests.data_fixtures import write_docvqa
from tests.end_to_end.shell import circuitsearch
from tests.teacher.test_comparison import side


def here(*arguments: str | Path, code: int = 0) -> Result:
    """Run a command in this process: no start of Python for every refusal."""
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == code, f"{done.stdout}\n{done.stderr}\n{done.exception!r}"
    return done


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_answers(first, [side("right", "near", "right", "half", seed=seed) for seed in (0, 1)])
    write_answers(second, side("near", "near", "wrong", "wrong", plan="C2"))
    return first, second


def test_two_predictions_are_compared(files: tuple[Path, Path]) -> None:
    done = circuitsearch("compare", *files, "--json")
    told = json.loads(done.stdout)
    assert told["A"]["seeds"] == [0, 1]
    assert (told["B"]["plan"], told["anls"]) == ("C2", "rrc")
    assert told["differences"]["all"]["mean"] == 0.4375
    assert list(told["differences"]) == ["all", "even", "odd"]
    again = here("compare", *files, "--json")
    assert again.stdout == done.stdout
    table = here("compare", *files)
    assert table.stdout == ""
    for word in ("+0.438", "all", "even", "odd", "C3, 300 steps, seed 0, 1", "95 % interval"):
        assert word in table.stderr, word
    strict = json.loads(here("compare", *files, "--strict", "--json").stdout)
    assert strict["differences"]["all"]["mean"] == 0.3125  # the tie of one half is gone


def test_what_cannot_be_compared_is_refused(tmp_path: Path, files: tuple[Path, Path]) -> None:
    other = tmp_path / "c.jsonl"
    write_answers(other, side("near", "near", plan="C2"))
    done = here("compare", files[0], other, code=2)
    assert "2 questions are answered on the first side only, first '2', '3'" in done.stderr
    write_answers(other, run())
    assert "answers no question" in here("compare", files[0], other, code=2).stderr
    other.write_text("no json")
    assert "line 1: not JSON" in here("compare", files[0], other, code=2).stderr
    missing = here("compare", files[0], tmp_path / "none", code=2)
    assert "No such file" in missing.stderr


SEARCH = """\
name: docvqa
output: {output}
teacher: {teacher}
data: {{source: docvqa, path: {path}, train: {train}}}
budget:
  - {{quantity: parameters, limit: 50%}}
"""


def test_docvqa_is_dealt_evaluated_and_handed_in(tmp_path: Path, tiny_folder: Path) -> None:
    train = write_docvqa(rendered_pages(3, "handing in"), tmp_path / "train", "train")
    val = write_docvqa(rendered_pages(5, "handing in", first=3), tmp_path / "val", "val", first=3)
    test = write_docvqa(rendered_pages(2, "test"), tmp_path / "test", "test", first=50)
    unanswered = json.loads(test.read_text())
    for record in unanswered["data"]:
        del record["answers"]
    test.write_text(json.dumps(unanswered))
    search = tmp_path / "search.yaml"
    search.write_text(
        SEARCH.format(output=tmp_path / "out", teacher=tiny_folder, path=val, train=train)
    )
    out, told = tmp_path / "s.json", tmp_path / "p.jsonl"
    options = ["--submission", out, "--predictions", told, "--json", "--quiet"]
    made = json.loads(circuitsearch("evaluate", search, "teacher", *options).stdout)
    (answers,) = read_answers(told)
    assert len({row.document for row in answers.rows}) == 3  # 60 % of five documents
    assert made["examples"] == len(answers.rows)
    assert made["perplexity"] > 1.0
    said = check_submission(out, [row.question for row in answers.rows])
    assert said == {row.question: row.answer for row in answers.rows}
    assert not (tmp_path / "out" / "final_uses.jsonl").exists()  # the teacher does not count

    handed = tmp_path / "test.json"
    options = ["--questions", test, "--submission", handed, "--json", "--quiet"]
    circuitsearch("evaluate", search, "teacher", *options)
    asked = [str(record["questionId"]) for record in unanswered["data"]]
    assert set(check_submission(handed, asked)) == set(asked)
    # a student answers alike in its own form and as a stock model
    teacher = load_teacher(tiny_folder)
    student = build_student(teacher, Plan.parse("S1 C1 M1 S2 C2 M2"))
    said, measured = [], []
    for form in ("no", "auto"):
        folder = save_student(student, teacher, tmp_path / form, stock=form)
        circuitsearch("evaluate", search, folder, *options)
        said.append(check_submission(handed, asked))
        told = circuitsearch("evaluate", search, folder, "--split", "select", "--json", "--quiet")
        found = json.loads(told.stdout)
        measured.append({name: found[name] for name in ("plan", "quality", "cost", "families")})
        measured[-1]["loss"] = round(found["loss"], 5)
    assert said[0] == said[1]
    assert measured[0] == measured[1]
    assert measured[0]["plan"] == "S1 C1 M1 S2 C2 M2"
    assert (tmp_path / "no" / "modeling.py").exists()
    assert not (tmp_path / "auto" / "modeling.py").exists()


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text("name: x\n")
    done = here("evaluate", path, "--split", "train", "--questions", "q.json", "--strict", code=2)
    assert "--split: got 'train'" in done.stderr
    assert "--questions: its answers are not known" in done.stderr
    alone = here("evaluate", path, "--images", "x", code=2)
    assert "--images: belongs to --questions" in alone.stderr
