"""The main path: one property per stage, each made from the ones above it.

    teacher + pages -> features -> scores, paths -> circuit graph
                    -> space under budget -> elastic teacher -> rankings -> search -> report

A property runs its stage when it is first asked for, and the stages keep their results on disk
(`workspace`), so a command that needs the scores computes no more than the scores, and a search
that was stopped goes on where it was. What each stage does is in `stages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from circuitsearch import stages
from circuitsearch.core.findings import Finding
from circuitsearch.core.scores import Scores
from circuitsearch.discovery.paths.table import PathTable
from circuitsearch.search.samplers import Prior
from circuitsearch.search.space import Space
from circuitsearch.search.study import Study
from circuitsearch.show.rows import ResultRow
from circuitsearch.stages import Ranking
from circuitsearch.students.baselines import Proposal
from circuitsearch.students.features import Features
from circuitsearch.students.plan_view import neuron_order
from circuitsearch.students.replacements import Replacements
from circuitsearch.teacher.decoders import ResidualDecoder
from circuitsearch.teacher.documents.records import Page
from circuitsearch.teacher.loading import Teacher
from circuitsearch.workspace import Workspace

__all__ = ["Pipeline"]


class Pipeline:
    """One search, stage by stage.

    Attributes:
        work: The search's folder, configuration and progress.
    """

    def __init__(self, work: Workspace) -> None:
        """Prepare a search; nothing runs before a stage is asked for."""
        self.work = work

    @cached_property
    def teacher(self) -> Teacher:
        """The trained document model."""
        return stages.load(self.work)

    @cached_property
    def space(self) -> Space:
        """All plans within the budget; an impossible budget is refused here."""
        return stages.plan_space(self.work, self.teacher, lambda: self.scores)

    @cached_property
    def pages(self) -> dict[str, list[Page]]:
        """Pages by split, cut by document."""
        return stages.documents(self.work, self.teacher)

    @cached_property
    def features(self) -> dict[str, Features]:
        """Encoder states and teacher logits of the splits that students meet, computed once."""
        return stages.compute_features(self.work, self.teacher, self.pages)

    @cached_property
    def scores(self) -> Scores:
        """Score and exact effect of every sub-layer and head."""
        return stages.score(self.work, self.teacher, self.pages["score"])

    @cached_property
    def paths(self) -> PathTable:
        """The residual / sub-layer paths from the keyword to the last cross-attention's query."""
        return stages.trace_paths(self.work, self.teacher, self.pages["score"])

    @cached_property
    def circuit(self) -> dict[str, Any]:
        """The circuit graph, written as node-link JSON, GraphML and one page."""
        return stages.draw_circuit(self.work, self.teacher, self.pages["score"], self.paths)

    def findings(self, only: Sequence[str] | None = None) -> dict[str, Finding]:
        """What the published analyses find in this teacher: a verdict per claim."""
        return stages.analyze(self.work, self.teacher, self.pages, only)

    @cached_property
    def replacements(self) -> Replacements | None:
        """What stands in for sub-layers, fitted to the teacher; None when no plan may use it."""
        return stages.fit(self.work, self.teacher, self.features["train"])

    @cached_property
    def worths(self) -> dict[str, float]:
        """What every unit of a plan is worth by the teacher's effects."""
        return stages.worths(
            self.work, self.teacher, self.space, self.scores, self.features, self.replacements
        )

    @cached_property
    def elastic(self) -> ResidualDecoder | None:
        """The elastic teacher's decoder, None when the search does without."""
        return stages.train_elastic(
            self.work,
            self.teacher,
            self.space,
            self.features["train"],
            worths=lambda: self.worths,
            replacements=self.replacements,
        )

    @cached_property
    def untrained(self) -> Ranking:
        """Every feasible plan by its loss without training, best first: the exhaustive baseline."""
        return self._ranked(self.teacher.decoder, "untrained")

    @cached_property
    def elastic_ranking(self) -> Ranking:
        """Every feasible plan by its loss under the elastic teacher, best first."""
        return [] if self.elastic is None else self._ranked(self.elastic, "elastic")

    @cached_property
    def predicted(self) -> Ranking:
        """Every feasible plan by what it is predicted to reach, best first.

        Where all plans are listed, by their losses under the elastic teacher and, with the weight
        `elastic.untrained`, without training; of a larger space, by their loss between teacher and
        elastic teacher (`elastic.interpolation`). Empty without an elastic teacher.
        """
        settings = self.work.config.elastic
        if self.elastic is None:
            return []
        if self._listed and settings.untrained == 0:
            return self.elastic_ranking
        if self._listed:
            return stages.mixed(self.elastic_ranking, self.untrained, settings.untrained)
        between = stages.interpolated(self.teacher.decoder, self.elastic, settings.interpolation)
        return self._ranked(between, "interpolated")

    @property
    def _listed(self) -> bool:
        """Whether every feasible plan is ranked, not a sample of them."""
        return not self.space.exceeds(self.work.config.exhaustive.plans)

    def _ranked(self, view: ResidualDecoder, name: str) -> Ranking:
        return stages.rank(
            self.work,
            self.space,
            view,
            self.features["select"],
            name,
            neurons=neuron_order(self.teacher.decoder),
            replacements=self.replacements,
            limit=self.work.config.exhaustive.plans,
            memory_bytes=self.work.config.exhaustive.memory_gigabytes * 1e9,
        )

    @cached_property
    def trainer(self) -> stages.StudentTrainer:
        """The shared trainer."""
        return stages.StudentTrainer(
            self.work, self.teacher, self.features, self.replacements, elastic=lambda: self.elastic
        )

    @cached_property
    def curves(self) -> dict[str, Any]:
        """What effects and ranking predict at every tenth of the budget."""
        return stages.predict(self.work, self.space, self.worths, self.predicted)

    @cached_property
    def prior(self) -> Prior:
        """What the search knows before the first training."""
        self.curves  # noqa: B018  # written where people look for it, before anything is trained
        return Prior(self.worths, tuple(self.predicted))

    @cached_property
    def warm(self) -> stages.WarmPlans:
        """The plans to distil first, by source."""
        return stages.warm_start(
            self.work,
            self.teacher,
            self.space,
            prior=self.prior,
            circuit=self.circuit,
            elastic=self.elastic,
            pages=self.pages["score"],
            findings=lambda: self.findings(["plans"]),
            proposals=self._proposed,
        )

    @cached_property
    def study(self) -> Study:
        """The finished search: every plan it distilled, measured on the pages to choose on."""
        return stages.search(self.work, self.space, self.prior, self.trainer, self.warm)

    @cached_property
    def chosen(self) -> Study:
        """The phase whose best plan is handed over: full distillation where it was asked for."""
        return stages.promote(self.work, self.study, self.trainer)

    @cached_property
    def baselines(self) -> list[tuple[str, Proposal]]:
        """What published methods propose under the same budget."""
        return self._proposed(self.work.config.baselines)

    def _proposed(self, names: Sequence[str]) -> list[tuple[str, Proposal]]:
        return stages.propose(self.work, self.teacher, self.features["train"], self.space, names)

    @cached_property
    def rows(self) -> tuple[ResultRow, ...]:
        """The final comparison on fresh pages: teacher, baselines, the search's best."""
        return stages.compare(
            self.work,
            self.trainer,
            untrained=self.untrained,
            baselines=self.baselines,
            study=self.study,
            chosen=self.chosen,
            passes=self.spent,
        )

    @property
    def spent(self) -> int:
        """Passes of the search before its first training."""
        walked = [self.predicted]
        if self.elastic is not None and self._listed and self.work.config.elastic.untrained:
            walked = [self.elastic_ranking, self.untrained]
        return stages.passes_before(
            self.work,
            self.space,
            self.scores,
            self.circuit,
            self._proposed(self.work.config.warm_baselines),
            walked,
            len(self.features["select"].examples),
        )

    def run(self) -> dict[str, Any]:
        """Run all stages and write the report.

        Returns:
            The content of `result.json`.
        """
        stages.check_storage(self.work)
        self.teacher, self.space, self.pages, self.features  # noqa: B018  # refuse faults first
        stages.check_study(self.work, self.space, self.trainer)
        self.scores, self.circuit, self.study, self.chosen  # noqa: B018  # then what is compared
        result = stages.report(
            self.work,
            self.trainer,
            rows=self.rows,
            study=self.study,
            chosen=self.chosen,
            scores=self.scores,
            circuit=self.circuit,
            pages=self.pages,
        )
        stages.hand_over(self.work, self.trainer, self.chosen, self.pages["final"])
        return result
