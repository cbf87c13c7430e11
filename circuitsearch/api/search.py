"""A search from Python: what the commands that take a SEARCH.yaml do, as methods of one class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from circuitsearch.core.errors import ConfigError, choice_problem
from circuitsearch.core.plan import Plan

if TYPE_CHECKING:
    from circuitsearch.config import SearchConfig
    from circuitsearch.core.answers import AnlsRule, Answers
    from circuitsearch.core.findings import Finding
    from circuitsearch.core.measurement import Measurement
    from circuitsearch.core.scores import Scores
    from circuitsearch.discovery.paths.table import PathTable
    from circuitsearch.pipeline import Pipeline

__all__ = ["Search"]


class Search:
    """One search: its settings, its folder and every stage of its pipeline.

    Each method runs the stages it needs and no more; results are kept in the output folder, so a
    second call, a second process or the command line goes on with them. While a method runs, its
    process alone works in the folder.

    Attributes:
        config: The resolved settings.
        path: The search file; in the output folder where settings were given.
    """

    def __init__(
        self,
        search: str | Path | SearchConfig,
        overrides: Sequence[str] = (),
        *,
        quiet: bool = False,
    ) -> None:
        """Read a search; nothing runs yet.

        Args:
            search: A search file (YAML), the output folder of a search that was run, or settings.
            overrides: `key.sub=value` texts that win over a file, as `--override` does.
            quiet: Whether to say nothing on standard error.

        Raises:
            ConfigError: Naming every fault of the file with its key and line; if a folder is not
                that of a search; if overrides are given with settings.
        """
        from circuitsearch.config import SearchConfig
        from circuitsearch.configfile import load_config
        from circuitsearch.processes import here
        from circuitsearch.progress import reporter
        from circuitsearch.workspace import CONFIG_FILE, Workspace, config_in

        if isinstance(search, SearchConfig):
            if overrides:
                raise ConfigError("overrides: they win over a file; change the settings instead")
            self.config, self.path = search, search.output / CONFIG_FILE
        else:
            path = Path(search)
            self.path = config_in(path) if path.is_dir() else path
            self.config = load_config(self.path, overrides)
        self._overrides = tuple(overrides)
        said = reporter(quiet=quiet or not here().is_main)
        self.work = Workspace(self.config, said, here())

    @property
    def folder(self) -> Path:
        """The output folder."""
        return self.config.output

    @cached_property
    def pipeline(self) -> Pipeline:
        """Every stage as a property, in order, for what the methods below do not give."""
        import optuna

        from circuitsearch.pipeline import Pipeline

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return Pipeline(self.work)

    @contextmanager
    def _claimed(self, *, several: bool = False, beside: bool = False) -> Iterator[Pipeline]:
        """Give the pipeline while no other process works in the folder, `several` of one job.

        `beside` is `Workspace.write_config`'s.
        """
        if not several:
            self.work.processes.refuse("Search")
        lock = self.work.claim()
        try:
            self.work.write_config(beside=beside)
            yield self.pipeline
        finally:
            lock.release()

    def validate(self, *, measure: bool = True) -> dict[str, Any]:
        """Check settings, teacher, pages and budget, and price the search, without running it.

        Args:
            measure: Whether to estimate the time by a short measurement on this machine.

        Returns:
            Pages and questions per split, every limit of the budget resolved, the number of plans
            within it, the smallest student, trainings, disk space and, if measured, time.

        Raises:
            ConfigError: If the teacher cannot be used.
            DataError: If pages cannot be read.
            InfeasibleError: If no legal student fits the budget.
        """
        from circuitsearch import stages

        # as in the command: another process may run the search meanwhile
        self.work.write_config(beside=True)
        line = self.pipeline
        given = self.work, line.teacher, line.pages, line.space
        facts = stages.preview(*given) | stages.price(*given)
        return facts | {"time": stages.measure_time(*given)} if measure else facts

    def run(self) -> dict[str, Any]:
        """Run the search from teacher to result table, or what is left of it.

        Returns:
            The content of `result.json`: a row per student, and the facts of the search. Qualities
            are ANLS in [0, 1], losses nats per token, costs parameters and multiply-adds.

        Raises:
            ConfigError: If settings or teacher cannot be used, or the folder is another search's.
            DataError: If pages cannot be read.
            InfeasibleError: If no legal student fits the budget.
            StorageError: If another process runs the search, or folder or database fail.
            TrainingError: If more trainings failed than `search.max_failures`.
        """
        with self._claimed() as line:
            return line.run()

    def scores(self) -> Scores:
        """Score all components and measure their exact effects.

        Returns:
            One entry per sub-layer and head; positive where removing it raises the metric
            (docs/conventions.md).

        Raises:
            CircuitSearchError: As `run`.
        """
        with self._claimed() as line:
            return line.scores

    def paths(self) -> PathTable:
        """Trace the residual and sub-layer paths from the keyword to the last cross-attention.

        Returns:
            All paths with the cosine of their query and the clean one, in [-1, 1].

        Raises:
            CircuitSearchError: As `run`.

        Source: Donut-MINT, arXiv 2509.26235.
        """
        with self._claimed() as line:
            return line.paths

    def graph(self) -> dict[str, Any]:
        """Draw the circuit graph; writes `circuit.json`, `circuit.graphml` and `circuit.html`.

        Returns:
            The graph as node-link JSON; `discovery/graph/schema.py` documents every attribute.

        Raises:
            CircuitSearchError: As `run`.
        """
        with self._claimed() as line:
            return line.circuit

    def analyze(self, only: Sequence[str] | None = None) -> dict[str, Finding]:
        """Run the published analyses on the teacher; writes the folder `analyses`.

        Args:
            only: Names of analyses (`discovery.analyses.registry.ANALYSES`); those that they read
                are run, too. Default all.

        Returns:
            Finding by analysis: tables, charts, and a verdict per published claim.

        Raises:
            ConfigError: If a name is unknown.
            CircuitSearchError: As `run`.

        Source: Donut-MINT, arXiv 2509.26235.
        """
        from circuitsearch import stages

        stages.chosen_analyses(only)  # refused before a model is loaded
        with self._claimed() as line:
            return line.findings(only)

    def enumerate(self) -> dict[str, list[tuple[Plan, float]]]:
        """Rank every plan within the budget without training; of too many plans, a sample.

        Returns:
            `untrained`: plan and loss (nats per token) under the teacher, best first; `elastic`:
            the same under the elastic teacher, `predicted`: as the search ranks them, by both
            losses together or, of a sample, by the loss under weights between both; empty where
            the search does without an elastic teacher.

        Raises:
            CircuitSearchError: As `run`.
        """
        with self._claimed() as line:
            return {
                "untrained": line.untrained,
                "elastic": line.elastic_ranking,
                "predicted": line.predicted,
            }

    def trials(self) -> list[Measurement]:
        """Run the warm-started search without the final comparison.

        Returns:
            The measurements of all students, in the order in which they were tried.

        Raises:
            CircuitSearchError: As `run`.
        """
        with self._claimed() as line:
            return list(line.study.measurements())

    def distill(
        self,
        plan: str | Plan,
        output: str | Path,
        *,
        steps: int | None = None,
        seed: int | None = None,
        stock: bool = False,
    ) -> Measurement:
        """Distil one plan of your own and save the student.

        A script under `accelerate launch` trains it on all its processes (docs/distillation.md).

        Args:
            plan: E.g. `M0 C2 S3 C3`; it need not be within the budget.
            output: Folder for the student, an ordinary Hugging Face checkpoint.
            steps: Steps of the training; default `distill.steps` of the search.
            seed: Seed of the training; default `seed` of the search.
            stock: Whether to write a stock model where the plan allows it (docs/deployment.md).

        Returns:
            How good the student is on the pages to choose on.

        Raises:
            PlanError: If the plan is malformed or does not fit the decoder.
            TrainingError: If the training fails.
            CircuitSearchError: As `run`.
        """
        from circuitsearch import stages

        chosen = Plan.parse(plan) if isinstance(plan, str) else plan

        def distilled() -> Measurement:
            with self._claimed(several=True, beside=True) as line:
                return stages.distill_plan(
                    self.work.processes.main_first(lambda: line.trainer),
                    chosen,
                    Path(output),
                    search=self.path,
                    steps=steps,
                    seed=seed,
                    stock=stock,
                    overrides=self._overrides,
                )

        return self.work.processes.together(distilled)

    def evaluate(
        self,
        student: str | Path = "teacher",
        *,
        split: Literal["select", "final"] = "final",
        strict: bool = False,
    ) -> tuple[Measurement, Answers]:
        """Measure a checkpoint on the search's pages, once: the same weights are served from file.

        Args:
            student: A student's folder, or `teacher`.
            split: Which pages; every new plan on `final` is counted (docs/evaluation.md).
            strict: Whether ANLS is read as in its paper: a similarity of one half scores 0.

        Returns:
            The measurement (ANLS in [0, 1] with interval, loss in nats per token, costs) and the
            answers question by question.

        Raises:
            ConfigError: If the folder holds no student, or the split is unknown.
            CircuitSearchError: As `run`.

        Source: ANLS, Biten et al., arXiv 1905.13648.
        """
        from circuitsearch import stages

        if split not in ("select", "final"):
            raise ConfigError(choice_problem("split", split, ("select", "final")))
        with self._claimed(beside=True) as line:
            rule: AnlsRule | None = "strict" if strict else None
            return stages.evaluate(line.trainer, str(student), split, rule)

    def outputs(self) -> dict[str, Path]:
        """Return what the search has left in its folder.

        Returns:
            Name -> path of each file and folder that exists by now.
        """
        from circuitsearch import stages

        return stages.outputs(self.work)
