"""The configuration of a search: one YAML file, checked whole before anything runs.

Every field has its unit and meaning here and its default nowhere else; unknown keys are refused
with the nearest known one. Paths are relative to the folder the command is run in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from circuitsearch.core.budget import Limited, LimitSpec
from circuitsearch.core.components import SubLayer
from circuitsearch.core.cost import QUANTITIES, Accounting, Generation, Scope
from circuitsearch.core.errors import PlanError, choice_problem
from circuitsearch.core.speed import MEASURED, MEASURED_SCOPES
from circuitsearch.search.units import AttentionUnits

__all__ = [
    "SPLITS",
    "DataConfig",
    "DistillConfig",
    "DocVQAData",
    "ElasticConfig",
    "EvaluationConfig",
    "ExhaustiveConfig",
    "FinalConfig",
    "LimitConfig",
    "RenderedData",
    "RowsData",
    "ScoresConfig",
    "SearchConfig",
    "SpaceConfig",
    "StudyConfig",
]

SPLITS = ("train", "score", "select", "final")
"""What pages are for: distilling, scoring components, choosing plans, the final comparison."""

Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
LossName = Literal[
    "cross_entropy",
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "hidden_mse",
    "hidden_cosine",
    "self_attention_kl",
    "cross_attention_kl",
]
LossWeight = Annotated[float, Field(ge=0)] | Literal["balanced"]


def _place(text: str) -> str:
    """Check a place of the stream: `end`, or the name of a sub-layer."""
    if text != "end":
        try:
            SubLayer.parse(text)
        except PlanError as error:
            raise ValueError(f"write 'end', or a sub-layer ({error})") from error
    return text


Place = Annotated[str, AfterValidator(_place)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class RenderedData(_Section):
    """Pages that circuitsearch renders (see `teacher.documents.synthetic`)."""

    source: Literal["rendered"] = "rendered"
    train: Count = Field(1500, description="pages to distil on")
    score: Count = Field(80, description="pages to score components on")
    select: Count = Field(80, description="pages to choose plans on")
    final: Count = Field(150, description="pages of the final comparison, used once per student")


SplitName = Literal["train", "score", "select", "final"]


class _FilesData(_Section):
    faults: Literal["error", "skip"] = Field(
        "error", description="broken rows: stop, or skip and count"
    )
    shares: dict[SplitName, Share] = Field(
        default={"train": 0.6, "score": 0.1, "select": 0.1, "final": 0.2},
        description="share of the documents per split; a split never cuts a document",
    )

    @field_validator("shares")
    @classmethod
    def _all_splits(cls, shares: dict[SplitName, float]) -> dict[SplitName, float]:
        # whether `train` has to be there is for the whole section to say
        missing = [name for name in SPLITS if name not in shares and name != "train"]
        if missing:
            raise ValueError(
                f"missing {', '.join(missing)}; give a share for each of {', '.join(SPLITS)}"
            )
        if sum(shares.values()) > 1 + 1e-9:
            raise ValueError(f"the shares sum to {sum(shares.values()):g}, allowed at most 1")
        return shares

    @model_validator(mode="after")
    def _train_once(self) -> _FilesData:
        apart = getattr(self, "train", None) is not None
        if apart and "train" in self.shares:
            raise ValueError(
                "shares.train: the pages to distil on are in data.train, a file of their own; "
                "leave this share out"
            )
        if not apart and "train" not in self.shares:
            raise ValueError(f"shares: missing train; give a share for each of {', '.join(SPLITS)}")
        return self


class DocVQAData(_FilesData):
    """A data set in DocVQA's official JSON format.

    With `train`, `path` is dealt 20/20/60 to scores, selection and the final comparison, as
    Donut-MINT deals DocVQA's validation file.
    """

    source: Literal["docvqa"]
    path: Path = Field(description="the JSON file")
    train: Path | None = Field(
        None, description="a JSON file to distil on; `path` then serves the other splits alone"
    )
    train_images: Path | None = Field(
        None, description="root of its image paths; default that file's folder"
    )
    images: Path | None = Field(
        None, description="root of the image paths; default the JSON's folder"
    )

    @model_validator(mode="before")
    @classmethod
    def _dealt(cls, given: Any) -> Any:
        """Deal 20/20/60 where the pages to distil on are a file of their own."""
        if isinstance(given, dict) and given.get("train") is not None and "shares" not in given:
            return {**given, "shares": {"score": 0.2, "select": 0.2, "final": 0.6}}
        return given


class RowsData(_FilesData):
    """Rows of a Hugging Face data set: a saved folder, a Parquet file or a name."""

    source: Literal["huggingface"]
    path: str = Field(description="folder, Parquet file or name")
    split: str | None = Field(None, description="split of the data set, where it has several")
    columns: dict[str, str] = Field(
        default_factory=dict, description="role -> column, where unusual"
    )


DataConfig = Annotated[RenderedData | DocVQAData | RowsData, Field(discriminator="source")]


class LimitConfig(_Section):
    """One limit of the budget; a plan must keep all of them."""

    quantity: Limited = Field(
        description="parameters, macs; latency or memory, measured on this machine for one answer"
    )
    limit: str | int = Field(
        description="`31.25%` of the teacher, `20M`, `20Mi`, `757G` or a number; of a latency "
        "`12ms`, of memory `1.5GiB`"
    )
    scope: Scope = Field("decoder", description="of a latency or memory: decoder or total")
    accounting: Accounting | None = Field(
        None, description="`paper` (the default) or `cached`; none for latency and memory"
    )

    @model_validator(mode="before")
    @classmethod
    def _counted(cls, given: Any) -> Any:
        """Fill in the accounting of what is counted."""
        if isinstance(given, dict) and given.get("quantity") in QUANTITIES:
            return {**given, "accounting": given.get("accounting") or "paper"}
        return given

    @model_validator(mode="after")
    def _of_what_is_measured(self) -> LimitConfig:
        """Refuse words that a measured limit does not have."""
        if self.quantity in MEASURED and self.accounting is not None:
            raise ValueError(f"a measured {self.quantity} has no accounting; leave it out")
        if self.quantity in MEASURED and self.scope not in MEASURED_SCOPES:
            raise ValueError(
                f"scope: got {self.scope!r}, a measured {self.quantity} has "
                f"{' and '.join(MEASURED_SCOPES)}"
            )
        return self

    def spec(self) -> LimitSpec:
        """Return the limit as floor 0 knows it."""
        return LimitSpec(self.quantity, self.limit, self.scope, self.accounting)


class GenerationConfig(_Section):
    """The generation that MACs are counted for and speed is measured for (42 and 34: the paper)."""

    prompt: Count = 42
    passes: Count = 34

    def counted(self) -> Generation:
        """Return the lengths as floor 0 knows them."""
        return Generation(prompt=self.prompt, passes=self.passes)


class ScoresConfig(_Section):
    """Component scores and effects on the teacher."""

    ablation: Literal["zero", "mean", "position_mean", "resample"] = Field(
        "zero", description="what replaces a removed component"
    )
    metric: Literal["answer_loss", "soft_loss", "margin", "logit", "error"] = Field(
        "answer_loss", description="what effects and scores are about; larger is worse"
    )


class CircuitConfig(_Section):
    """The circuit graph."""

    ablation: Literal["zero", "mean", "position_mean", "resample"] = Field(
        "mean", description="what a removed component or edge carries instead"
    )
    metric: Literal["answer_loss", "soft_loss", "margin", "logit", "error"] = Field(
        "margin", description="what its numbers are about; larger is worse"
    )
    level: Literal["sublayers", "heads"] = Field("sublayers", description="what edges join")
    pages: Annotated[int, Field(ge=2)] = Field(
        24, description="pages, of those to score on, that edges are scored and measured on"
    )
    memory_gigabytes: Annotated[float, Field(gt=0)] = Field(
        4, description="memory of a pass beside weights and pages, in 10^9 bytes; bounds its batch"
    )


class SpaceConfig(_Section):
    """What a plan may choose for each sub-layer, beside skipping it."""

    attention: AttentionUnits = Field(
        "whole",
        description="whole attentions; `counts` of heads, best first; `heads`: any subset of them",
    )
    widths: list[Count] = Field(
        default_factory=list,
        description="neurons kept, ascending, as choices beside the whole feed-forward",
    )
    replacements: list[Literal["mean", "linear", "alone", "token"]] = Field(
        default_factory=list, description="stand-ins offered wherever they are legal"
    )


class ElasticConfig(_Section):
    """The elastic teacher: the decoder distilled under a random feasible plan at every step."""

    steps: Annotated[int, Field(ge=0)] = Field(3600, description="0 leaves the elastic teacher out")
    batch: Count = Field(32, description="questions per step; many small steps meet more plans")
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    rule: Literal["uniform", "even", "sandwich", "weighted"] = Field(
        "uniform", description="which plan trains at which step (`search.elastic`)"
    )


class DistillConfig(_Section):
    """The shared trainer: the same for every student, whoever proposed it."""

    steps: Count = 300
    batch: Count = Field(64, description="questions per step")
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup: Annotated[float, Field(ge=0, le=1)] = Field(
        0.05, description="share of the steps in which the learning rate rises"
    )
    temperature: Annotated[float, Field(gt=0)] = 2.0
    accumulate: Count = Field(
        1, description="parts a step's batch is cut into: less memory, the same gradient"
    )
    preset: Literal["donut-mint", "puzzle", "vlm-compression", "minitron", "kl"] = Field(
        "donut-mint", description="a paper's mix of losses (docs/distillation.md)"
    )
    losses: dict[LossName, LossWeight] = Field(
        default_factory=dict,
        description="losses and their weights instead of the preset's, in order; balanced: terms "
        "of similar size at first",
    )
    kd_weight: LossWeight | None = Field(
        None, description="shorthand: another weight for forward_kl, here or in the preset"
    )
    hidden_map: list[tuple[Place, Place]] = Field(
        [("end", "end")],
        min_length=1,
        description="where losses of hidden states compare: [student's place, teacher's place]; a "
        "sub-layer (C3) is the stream behind it, also where it was removed; end: the last",
    )
    tensorboard: bool = Field(
        False, description="write losses of every student for TensorBoard (needs tensorboard)"
    )

    @model_validator(mode="after")
    def _weighs_what_is_there(self) -> DistillConfig:
        if self.kd_weight is not None and self.losses and "forward_kl" not in self.losses:
            raise ValueError(
                "kd_weight weighs forward_kl, which is not among the losses; leave it out"
            )
        return self


class ExhaustiveConfig(_Section):
    """The baseline: every feasible plan scored without training, the best distilled."""

    top: Count = Field(3, description="plans to distil (the paper's T1-T3)")
    short: Annotated[int, Field(ge=0)] = Field(
        0, description="plans to distil as a search does, the best of which become D1-D3"
    )


class StudyConfig(_Section):
    """The warm-started search."""

    trainings: Count = Field(10, description="students to distil")
    sampler: str | None = Field(
        None,
        description="who proposes plans after the warm start; default `elastic`, without an "
        "elastic teacher `circuit`",
    )
    objective: Literal["single", "pareto"] = Field(
        "single", description="the best plan within the budget, or the best at every cost below"
    )
    warm_scores: Annotated[int, Field(ge=0)] = Field(
        1, description="plans from the components' effects"
    )
    warm_edges: Annotated[int, Field(ge=0)] = Field(
        1, description="plans from the edges of the circuit graph"
    )
    warm_pairs: Annotated[int, Field(ge=0)] = Field(
        1, description="plans from effects, with pairs, on the elastic teacher"
    )
    warm_elastic: Annotated[int, Field(ge=0)] = Field(
        3, description="best plans of the elastic teacher"
    )
    promote: Annotated[int, Field(ge=0)] = Field(
        0, description="best plans to distil again in full (final.steps) before one is chosen"
    )
    max_failures: Annotated[int, Field(ge=0)] = Field(
        5, description="failed trainings before it stops"
    )
    storage: str | None = Field(
        None, description="database URL; default SQLite in the output folder"
    )
    lease_seconds: Annotated[float, Field(gt=0)] = Field(
        120, description="a worker that is silent for so long gives its plan back"
    )


class EvaluationConfig(_Section):
    """How answers are scored."""

    anls: Literal["rrc", "strict"] = Field(
        "rrc",
        description="a similarity of exactly one half keeps its value (rrc, as the competition's "
        "script has it) or scores 0 (strict, as in the paper)",
    )


class FinalConfig(_Section):
    """The final comparison."""

    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [0], min_length=1, description="training seeds"
    )
    steps: Count | None = Field(None, description="distillation steps; default those of the search")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is listed twice")
        return seeds


class SearchConfig(_Section):
    """One search, from teacher to result table."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
    output: Path = Field(description="folder for everything the search writes")
    teacher: str = Field(
        "shipped", description="`shipped`, a checkpoint folder or a Hugging Face name"
    )
    device: str = Field("auto", description="`auto` takes CUDA when present, else the CPU")
    seed: Annotated[int, Field(ge=0)] = 0
    data: DataConfig = RenderedData()
    budget: list[LimitConfig] = Field(min_length=1)
    generation: GenerationConfig = GenerationConfig()
    scores: ScoresConfig = ScoresConfig()
    circuit: CircuitConfig = CircuitConfig()
    space: SpaceConfig = SpaceConfig()
    elastic: ElasticConfig = ElasticConfig()
    distill: DistillConfig = DistillConfig()
    exhaustive: ExhaustiveConfig = ExhaustiveConfig()
    search: StudyConfig = StudyConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    final: FinalConfig = FinalConfig()
    baselines: list[str] = Field(
        default_factory=list,
        description="published pruning methods to compare with, by name (docs/baselines.md)",
    )
    cache_gigabytes: Annotated[float, Field(gt=0)] = Field(
        20, description="largest feature cache of one split on disk, in 10^9 bytes"
    )

    @field_validator("baselines")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        if not names:
            return names
        # imported here: the methods need torch, reading a configuration without them does not
        from circuitsearch.students.baselines import BASELINES

        faults = [choice_problem("baseline", n, [*BASELINES]) for n in names if n not in BASELINES]
        faults += [f"{n} is listed twice" for n in dict.fromkeys(names) if names.count(n) > 1]
        if faults:
            raise ValueError("; ".join(faults))
        return names

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
        if self.elastic.steps == 0 and asked:
            raise ValueError(
                f"{', '.join(asked)}: asks for the elastic teacher but elastic.steps is 0; "
                "set one of them otherwise"
            )
        if self.search.promote and self.final.steps in (None, self.distill.steps):
            raise ValueError(
                f"search.promote asks to distil {self.search.promote} plans again in full, but "
                "final.steps is that of the search's own distillation; set final.steps above "
                f"{self.distill.steps}, or search.promote to 0"
            )
        return self

    @property
    def sampler(self) -> str:
        """Name of the sampler."""
        return self.search.sampler or ("elastic" if self.elastic.steps else "circuit")

    @property
    def work(self) -> Path:
        """Folder of everything that can be made again (features, states, trained students)."""
        return self.output / "work"

    @property
    def database(self) -> str:
        """URL of the study database."""
        return self.search.storage or f"sqlite:///{self.output / 'study.db'}"

    def to_json(self) -> dict[str, Any]:
        """Return the resolved configuration as plain JSON."""
        return self.model_dump(mode="json")
