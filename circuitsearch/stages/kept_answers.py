"""What is kept beside a measurement: the answers, and how often the final pages were looked at.

The final pages are there to be used once per final plan: whoever measures on them, looks, changes
the search and measures again has chosen on them. The tool cannot forbid that, so it counts.
`final_uses.jsonl` in the search's folder has one line per measurement of a student on the final
pages. Measurements that are served from their kept file add none, and another seed of a plan is
the same plan. The line is written before the result is, so no result is without its line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitsearch.core.answers import AnlsRule, Answers, read_answers, read_header
from circuitsearch.core.errors import DataError
from circuitsearch.core.files import canonical_json, read_json, write_text
from circuitsearch.core.measurement import Measurement
from circuitsearch.students.saving.stock import numbered_by_plan
from circuitsearch.students.scoring import rescored, scores_of
from circuitsearch.teacher.loading import Teacher

__all__ = [
    "FINAL_USES",
    "FinalUses",
    "by_rule",
    "find_kept",
    "one_run",
    "reading_problems",
    "trained_as",
    "weights_of",
]

FINAL_USES = "final_uses.jsonl"
"""Name of the count in a search's folder."""


class FinalUses:
    """The count of measurements on the final pages; the search's lock keeps it to one writer."""

    def __init__(self, folder: Path) -> None:
        """Bind the count to a search's folder; there may be no file yet."""
        self._path = folder / FINAL_USES

    def add(self, made: Measurement, weights: str, command: str) -> None:
        """Write one more line, atomically.

        Args:
            made: What was measured.
            weights: Hash of the student's weights.
            command: Which command measured.
        """
        line = {
            "plan": made.plan,
            "plan_hash": made.plan_hash,
            "seed": made.seed,
            "steps": made.steps,
            "source": made.source,
            "weights": weights,
            "command": command,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        earlier = "".join(f"{canonical_json(one)}\n" for one in self.lines())
        write_text(self._path, f"{earlier}{canonical_json(line)}\n")

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines, oldest first.

        Raises:
            DataError: If the file is damaged.
        """
        if not self._path.exists():
            return []
        found = []
        # not `splitlines`: it would cut at characters that are legal inside JSON strings
        for number, text in enumerate(self._path.read_text("utf-8").split("\n"), start=1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
            except ValueError as error:
                raise DataError(
                    f"{self._path}: line {number} is not JSON ({error}); take the line out if you "
                    "know what it was"
                ) from error
            if not isinstance(line, dict) or not isinstance(line.get("plan_hash"), str):
                raise DataError(
                    f"{self._path}: line {number} names no plan; take the line out if you know "
                    "what it was"
                )
            found.append(line)
        return found

    def plans(self, besides: Iterable[str] = ()) -> int:
        """Return how many different plans were measured.

        Args:
            besides: Hashes of plans that are known to be measured too (by a version that did not
                count yet).
        """
        return len({str(line["plan_hash"]) for line in self.lines()} | set(besides))


def weights_of(model: Any) -> str:
    """Return a hash of a model's decoder: two models with the same one give the same answers.

    The encoder is the teacher's; measurements read its cached states. A student has the same hash
    as a stock model, whose layers have other numbers.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(numbered_by_plan(model.decoder).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()[:16]


def reading_problems(model: Any, teacher: Teacher) -> list[str]:
    """Return why a model cannot be asked with a teacher's cached states and tokens."""
    other = teacher.model
    problems = []
    for name, what in (("d_model", "width of the decoder"), ("vocab_size", "vocabulary")):
        here, there = (getattr(one.decoder.config, name) for one in (model, other))
        if here != there:
            problems.append(f"{what} {here}, the search's teacher has {there}")
    own, wanted = _reading(model), _reading(other)
    if own.keys() != wanted.keys() or any(
        own[name].shape != wanted[name].shape or not own[name].equal(wanted[name]) for name in own
    ):
        problems.append(
            "its encoder is not that of the search's teacher, whose states it would be given; "
            "use the search that it was distilled in, or name its teacher in the search file"
        )
    return problems


def _reading(model: Any) -> dict[str, Tensor]:
    """Return the tensors through which a model reads a page, but for the decoder's."""
    state = model.state_dict()
    return {name: one for name, one in state.items() if not name.startswith("decoder.")}


def one_run(path: Path) -> Answers:
    """Read the answers kept beside a measurement.

    Raises:
        DataError: If the file is missing, damaged or holds several runs.
    """
    runs = read_answers(path)
    if len(runs) != 1:
        raise DataError(f"{path}: holds {len(runs)} runs, allowed is one")
    return runs[0]


def find_kept(
    folder: Path, *, plan_hash: str, split: str, teacher: str, pages: str, weights: str
) -> tuple[Measurement, Answers] | None:
    """Return the kept measurement of a model on a split, None when there is none.

    Args:
        folder: Where measurements are kept.
        plan_hash: Hash of the model's plan.
        split: The split.
        teacher: Fingerprint of the teacher.
        pages: Key of the split's features.
        weights: Hash of the model's weights.
    """
    for path in sorted(folder.glob(f"{plan_hash}-*-{split}-*.jsonl")):
        try:
            head = read_header(path)
            if (head.teacher, head.pages, head.weights) != (teacher, pages, weights):
                continue
            stored = read_json(path.with_suffix(".json"))
            return Measurement.from_json(stored["result"]), one_run(path)
        except (DataError, KeyError, TypeError):
            continue  # a damaged file is an unfinished measurement
    return None


def trained_as(folder: Path, *, plan_hash: str, teacher: str, weights: str) -> tuple[int, int]:
    """Return seed and steps of the training that made these weights; zeros where none is known.

    The arguments are those of `find_kept`, of all splits.
    """
    for path in sorted(folder.glob(f"{plan_hash}-*.jsonl")):
        try:
            head = read_header(path)
        except DataError:
            continue  # a damaged file is an unfinished measurement
        if (head.teacher, head.weights) == (teacher, weights) and head.steps:
            return head.seed, head.steps
    return 0, 0


def by_rule(
    made: Measurement, answers: Answers, rule: AnlsRule, *, parses: bool
) -> tuple[Measurement, Answers]:
    """Return a measurement and its answers under a reading of ANLS, without asking again."""
    if answers.rule == rule:
        return made, answers
    rows = rescored(answers.rows, rule)
    scores = scores_of(rows, parses=parses, seed=made.seed)
    return replace(made, **scores), replace(answers, rule=rule, rows=rows)
