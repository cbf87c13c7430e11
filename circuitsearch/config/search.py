"""The whole search file, checked across its sections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .base import FilePath, Natural, Positive, Section, Text, checked_names
from .data import DataConfig, RenderedData
from .sections import (
    AnalysesConfig,
    CircuitConfig,
    DistillConfig,
    ElasticConfig,
    EvaluationConfig,
    ExhaustiveConfig,
    FinalConfig,
    GenerationConfig,
    LimitConfig,
    ReportConfig,
    ScoresConfig,
    SpaceConfig,
    StudyConfig,
)


class SearchConfig(Section):
    """One search, from teacher to result table."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)] = Field(
        description="name of the search and of its study: letters, digits, dots, dashes"
    )
    output: FilePath = Field(description="folder for everything the search writes")
    teacher: Text = Field(
        "shipped", description="`shipped`, a checkpoint folder or a Hugging Face name"
    )
    device: Text = Field("auto", description="`auto` takes CUDA when present, else the CPU")
    seed: Natural = Field(0, description="seed of pages, students and proposals")
    data: DataConfig = Field(RenderedData(), description="where the pages come from")
    budget: list[LimitConfig] = Field(
        min_length=1, description="limits of the student; a plan must keep all of them"
    )
    generation: GenerationConfig = GenerationConfig()
    scores: ScoresConfig = ScoresConfig()
    circuit: CircuitConfig = CircuitConfig()
    analyses: AnalysesConfig = AnalysesConfig()
    space: SpaceConfig = SpaceConfig()
    elastic: ElasticConfig = ElasticConfig()
    distill: DistillConfig = DistillConfig()
    exhaustive: ExhaustiveConfig = ExhaustiveConfig()
    search: StudyConfig = StudyConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    final: FinalConfig = FinalConfig()
    report: ReportConfig = ReportConfig()
    baselines: list[str] = Field(
        default_factory=list,
        description="published pruning methods to compare with, by name (docs/baselines.md)",
    )
    cache: FilePath | None = Field(
        None,
        description="folder of encoder outputs, teacher logits and elastic teachers, which several "
        "searches and workers may share; default `work` in the output folder",
    )
    cache_gigabytes: Positive = Field(
        20, description="most that encoder outputs and logits may take there, in 10^9 bytes"
    )
    cache_precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="numbers of encoder outputs and logits on disk"
    )

    @field_validator("baselines")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        if not names:
            return names
        # imported here: the methods need torch, reading a configuration without them does not
        from circuitsearch.students.baselines import BASELINES

        return checked_names("baseline", names, [*BASELINES])

    @field_validator("budget")
    @classmethod
    def _different(cls, limits: list[LimitConfig]) -> list[LimitConfig]:
        names = [limit.spec().name for limit in limits]
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise ValueError(f"{', '.join(twice)}: limited twice; keep one of the limits")
        return limits

    @model_validator(mode="before")
    @classmethod
    def _without_elastic(cls, given: Any) -> Any:
        """Ask for no plans of an elastic teacher that is left out, unless the file does."""
        if not isinstance(given, dict):
            return given
        elastic, search = given.get("elastic"), given.get("search", {})
        if not isinstance(elastic, dict) or elastic.get("steps") != 0:
            return given
        if not isinstance(search, dict):
            return given
        return {**given, "search": {"warm_elastic": 0, "warm_pairs": 0, **search}}

    @model_validator(mode="after")
    def _coherent(self) -> SearchConfig:
        asked = [
            f"search.{name}"
            for name, wanted in (
                ("warm_elastic", self.search.warm_elastic > 0),
                ("warm_pairs", self.search.warm_pairs > 0),
                ("sampler", self.search.sampler == "elastic"),
            )
            if wanted
        ]
        asked += ["distill.start"] if self.distill.start == "elastic" else []
        problems = []
        if self.elastic.steps == 0 and asked:
            problems.append(
                f"{', '.join(asked)}: asks for the elastic teacher but elastic.steps is 0; "
                "set one of them otherwise"
            )
        if self.space.replacements and self.scores.metric != "answer_loss":
            problems.append(
                f"scores.metric: got {self.scores.metric!r} with space.replacements, whose worth "
                "is measured as answer_loss and added to the effects; set answer_loss, or leave "
                "the replacements out"
            )
        if self.search.promote and (self.final.steps or 0) <= self.distill.steps:
            problems.append(
                f"search.promote asks to distil {self.search.promote} plans again in full, but "
                f"final.steps is {self.final.steps or 'that of distill.steps'}; set it above "
                f"distill.steps ({self.distill.steps}), or search.promote to 0"
            )
        if problems:
            raise ValueError(". ".join(problems))
        return self

    @property
    def sampler(self) -> str:
        """Name of the sampler."""
        ranked = self.elastic.steps > 0 and self.space.coarse
        return self.search.sampler or ("elastic" if ranked else "circuit")

    @property
    def final_steps(self) -> int:
        """Steps of the final distillations."""
        return self.final.steps or self.distill.steps

    @property
    def warm_baselines(self) -> list[str]:
        """Names of the published methods whose plans are distilled first."""
        named = self.search.warm_baselines
        if named is not None:
            return named
        return [] if self.space.coarse else ["taylor", "finercut"]

    @property
    def work(self) -> Path:
        """Folder of everything that can be made again (features, states, trained students)."""
        return self.output / "work"

    @property
    def cached(self) -> Path:
        """Folder of what does not depend on the search's own results; others may use it, too."""
        return self.cache or self.work

    @property
    def database(self) -> str:
        """Where the study database is: a URL, or the path of an SQLite file.

        A path, since in a URL `?`, `#` and `%` mean something else; absolute, since every other
        file of the search takes a leading `~` as it stands.
        """
        return self.search.storage or str((self.output / "study.db").absolute())

    def to_json(self) -> dict[str, Any]:
        """Return the resolved configuration as plain JSON."""
        return self.model_dump(mode="json")
