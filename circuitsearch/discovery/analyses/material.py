"""What an analysis is given: the teacher, pages of two disjoint parts, and earlier findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from circuitsearch.core.cost import Generation
from circuitsearch.core.findings import Finding
from circuitsearch.discovery.ablation import Progress
from circuitsearch.discovery.sample import Sample, make_sample
from circuitsearch.teacher.decoders import ResidualDecoder
from circuitsearch.teacher.documents.records import Page
from circuitsearch.teacher.loading import Teacher

__all__ = ["Material"]


def _silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Material:
    """Teacher and pages of the analyses.

    Attributes:
        teacher: the teacher.
        pages: pages to measure on.
        others: further pages, of other documents, for what has to hold on both parts.
        generation: question and answer lengths that costs are counted at.
        seed: seed of every random choice.
        progress: called with (what, done, total).
        found: findings of analyses that ran before, by name.
    """

    teacher: Teacher
    pages: tuple[Page, ...]
    others: tuple[Page, ...]
    generation: Generation
    seed: int = 0
    progress: Progress = _silent
    found: Mapping[str, Finding] = field(default_factory=dict)

    @property
    def view(self) -> ResidualDecoder:
        """Residual-stream view of the teacher's decoder."""
        return self.teacher.decoder

    @cached_property
    def sample(self) -> Sample:
        """`pages`, encoded once for all analyses."""
        return make_sample(self.teacher, self.pages)

    @cached_property
    def other_sample(self) -> Sample:
        """`others`, encoded once for all analyses."""
        return make_sample(self.teacher, self.others)
