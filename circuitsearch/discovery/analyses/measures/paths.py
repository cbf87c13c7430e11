"""The paths of every keyword token, and which of them are strong and short; see `paths`.

One run over all sub-layers serves every reading: the paths of a smaller set of sub-layers are those
that pass the others by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.files import seed_from
from circuitsearch.discovery.paths.keyword import keyword_rows
from circuitsearch.discovery.paths.rows import PathRows
from circuitsearch.teacher.decoders import ResidualDecoder

from ..material import Material
from ..shared import Interval, counted, landmarks, mean_interval
from .keyword_questions import KeywordQuestions, keyword_questions
from .query_losses import query_losses

__all__ = ["ENOUGH", "MOST", "MeasuredPaths", "Path", "measured_paths"]

Path = tuple[str, ...]
"""Names of the sub-layers that a path passes through, in order; () is the residual path."""

ENOUGH = 0.95
"""Share of the strongest path's effectiveness at which a path with fewer sub-layers will do."""

MOST = 10
"""Sub-layers that can be enumerated at all: 2^10 paths."""

_SET = 5
"""Sub-layers of the published sets."""


@dataclass(frozen=True)
class MeasuredPaths:
    """What was measured.

    Attributes:
        asked: the keyword questions.
        target: the cross-attention whose query is explained.
        last: the last self-attention in front of it.
        rows: measures of all paths on them.
        worth: [K] rise of the first answer token's loss (nats) when the target asks with no query
            and looks everywhere alike, of each keyword token's question.
        elsewhere: the same on other pages, None where these ask no keyword question.
        sets: indices of paths by the name of the set of sub-layers, the judged one first.
        seed: of the intervals.
    """

    asked: KeywordQuestions
    target: str
    last: str
    rows: PathRows
    worth: np.ndarray
    elsewhere: PathRows | None
    sets: Mapping[str, tuple[int, ...]]
    seed: int

    @cached_property
    def means(self) -> Mapping[Path, float]:
        """Mean effectiveness of every path."""
        means = self.rows.effectiveness.mean(axis=1).tolist()
        return dict(zip(self.rows.paths, means, strict=True))

    @property
    def judged(self) -> tuple[Path, ...]:
        """The paths of the judged set."""
        return self.of(next(iter(self.sets)))

    @property
    def count(self) -> str:
        """How many keyword tokens, questions and documents."""
        tokens, documents = len(self.rows.examples), self.asked.documents
        questions = counted(len(documents), "questions", documents).removeprefix("n = ")
        return f"{counted(tokens, 'keyword tokens')} of {questions}"

    def of(self, name: str) -> tuple[Path, ...]:
        """The paths of a set."""
        return tuple(self.rows.paths[i] for i in self.sets[name])

    def at(self, values: np.ndarray, path: Path) -> np.ndarray:
        """Values [K] of one path, of a table [n, K]."""
        row: np.ndarray = values[self.rows.paths.index(path)]
        return row

    def interval(self, values: np.ndarray) -> Interval:
        """Mean over keyword tokens with its interval over documents; tokens without a value out."""
        known = np.isfinite(values)
        documents = np.array(self.asked.documents)[self.rows.examples]
        return mean_interval(values[known], documents[known].tolist(), self.seed)

    def minimal(self, paths: tuple[Path, ...]) -> Path:
        """The path with fewest sub-layers that does nearly as well as the best of some paths."""
        enough = ENOUGH * max(self.means[path] for path in paths)
        able = [path for path in paths if self.means[path] >= enough] or [self.best(paths)]
        return min(able, key=lambda path: (len(path), -self.means[path]))

    def best(self, paths: tuple[Path, ...]) -> Path:
        """The most effective of some paths, of equal ones the shortest."""
        return max(paths, key=lambda path: (self.means[path], -len(path)))


def measured_paths(material: Material, asked: KeywordQuestions) -> MeasuredPaths | None:
    """Run all paths, None where the decoder has none."""
    order, target = _order(material.view)
    selfs = [name for name in order if name[0] == Kind.SELF.value]
    if target is None or not selfs:
        return None

    def rows(questions: KeywordQuestions, names: Path) -> PathRows:
        return keyword_rows(
            material.teacher,
            questions.sample,
            questions.find,
            target=target,
            sublayers=names,
            progress=material.progress,
        )

    found = rows(asked, order)
    losses = query_losses(material.view, asked.sample, SubLayer.parse(target))
    other = None
    if any(page.questions for page in material.others):
        other = keyword_questions(material.teacher, material.other_sample)
    named = {f"last {_SET}": order[-_SET:], f"first {_SET}": order[:_SET], "all": order}
    if len(order) <= _SET:
        named = {"all": order}
    return MeasuredPaths(
        asked=asked,
        target=target,
        last=selfs[-1],
        rows=found,
        worth=(losses["even"] - losses["clean"])[found.examples],
        elsewhere=None if other is None else rows(other, order[-_SET:]),
        sets={
            f"{name} ({' '.join(chosen)})": tuple(
                i for i, path in enumerate(found.paths) if set(path) <= set(chosen)
            )
            for name, chosen in named.items()
        },
        seed=seed_from("paths", asked.sample.fingerprint, material.seed),
    )


def _order(decoder: ResidualDecoder) -> tuple[Path, str | None]:
    """Return the sub-layers in front of the last cross-attention that read no page, and it."""
    target = landmarks(decoder.sublayers).last_cross
    if target is None:
        return (), None
    before = [s.name for s in decoder.sublayers if s < target and s.kind is not Kind.CROSS]
    return tuple(before[-MOST:]), target.name
