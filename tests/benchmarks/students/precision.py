"""Which answers change when encoder outputs are kept in bfloat16 (`cache_precision`)?

    python tests/benchmarks/students/precision.py --student results/table2/student
        --out results/students/precision

The shipped teacher and a student answer the same fresh pages from encoder outputs in float32 and in
bfloat16, half as large.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from circuitsearch.core.files import write_json, write_text
from circuitsearch.students import greedy_answers, load_student, plan_of
from circuitsearch.students.features import prepare_features
from circuitsearch.teacher.documents.synthetic import rendered_pages
from circuitsearch.teacher.loading import load_teacher
from circuitsearch.teacher.metrics import anls

PRECISIONS = ("float32", "bfloat16")


def measured(student: Path, pages: int) -> dict[str, Any]:
    """Return how many answers of teacher and student differ, and ANLS with either precision."""
    teacher, small = load_teacher("shipped"), load_student(student)
    fresh = rendered_pages(pages, "precision of features")
    found: dict[str, Any] = {"pages": pages, "plan": str(plan_of(small))}
    with tempfile.TemporaryDirectory() as folder:
        read = {
            name: prepare_features(teacher, fresh, folder, precision=name)  # type: ignore[arg-type]
            for name in PRECISIONS
        }
        for who, model in (("teacher", teacher.model), ("student", small)):
            said = {
                name: greedy_answers(model, features, teacher.tokens)
                for name, features in read.items()
            }
            golds = [example.question.answers for example in read["float32"].examples]
            found[who] = {
                "questions": len(golds),
                "changed": sum(a != b for a, b in zip(*said.values(), strict=True)),
                "anls": {
                    name: sum(map(anls, answers, golds)) / len(golds)
                    for name, answers in said.items()
                },
            }
    return found


def table(found: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    lines = [
        "# Encoder outputs in bfloat16",
        "",
        "Made by `tests/benchmarks/students/precision.py`: the shipped teacher and a student of "
        f"it, `{found['plan']}`, on {found['pages']} fresh pages.",
        "",
        "| model | questions | answers that change | ANLS, float32 | ANLS, bfloat16 |",
        "|---|---:|---:|---:|---:|",
    ]
    for who in ("teacher", "student"):
        row = found[who]
        scores = " | ".join(f"{row['anls'][name]:.4f}" for name in PRECISIONS)
        lines.append(f"| {who} | {row['questions']} | {row['changed']} | {scores} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Answer with both and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", type=Path, required=True, help="of the shipped teacher")
    parser.add_argument("--pages", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    options = parser.parse_args()
    found = measured(options.student, options.pages)
    write_json(options.out.with_suffix(".json"), found)
    write_text(options.out.with_suffix(".md"), table(found))


if __name__ == "__main__":
    main()
