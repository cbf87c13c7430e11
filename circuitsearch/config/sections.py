"""The sections of a search file but for its data: budget, scores, space, training, study."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from circuitsearch.core.budget import Limited, LimitSpec, parse_limit
from circuitsearch.core.components import SubLayer
from circuitsearch.core.cost import QUANTITIES, Accounting, Generation, Scope
from circuitsearch.core.errors import ConfigError, PlanError, choice_problem
from circuitsearch.core.plan import Plan
from circuitsearch.core.speed import MEASURED, MEASURED_SCOPES
from circuitsearch.search.units import AttentionUnits, Choices

from .base import Count, Flag, Natural, Positive, Section, Text, checked_names

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
LossWeight = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)] | Literal["balanced"]


def _place(text: str) -> str:
    """Check a place of the stream: `end`, or the name of a sub-layer."""
    if text != "end":
        try:
            SubLayer.parse(text)
        except PlanError as error:
            raise ValueError(f"write 'end', or a sub-layer ({error})") from error
    return text


Place = Annotated[str, AfterValidator(_place)]


class LimitConfig(Section):
    """One limit of the budget; a plan must keep all of them."""

    quantity: Limited = Field(
        description="parameters, macs; latency or memory, measured on this machine for one answer"
    )
    limit: str | Annotated[int, Field(strict=True)] = Field(
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
        counted = isinstance(given, dict) and given.get("quantity") in QUANTITIES
        if counted and given.get("accounting") is None:
            return {**given, "accounting": "paper"}
        return given

    @field_validator("limit", mode="before")
    @classmethod
    def _no_fraction(cls, limit: Any) -> Any:
        if not isinstance(limit, str | int) or isinstance(limit, bool):
            raise ValueError(f"got {limit!r}, write a share as `31.25%`, an amount as `20M`")
        return limit

    @field_validator("limit")
    @classmethod
    def _readable(cls, limit: str | int, info: ValidationInfo) -> str | int:
        if "quantity" in info.data:
            try:
                parse_limit(limit, info.data["quantity"])
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return limit

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


class GenerationConfig(Section):
    """The generation that MACs are counted for and speed is measured for (42 and 34: the paper)."""

    prompt: Count = Field(Generation.prompt, description="tokens of the prompt")
    passes: Count = Field(Generation.passes, description="decoder passes, one per new token")

    def counted(self) -> Generation:
        """Return the lengths as floor 0 knows them."""
        return Generation(prompt=self.prompt, passes=self.passes)


class ScoresConfig(Section):
    """Component scores and effects on the teacher."""

    ablation: Literal["zero", "mean", "position_mean", "resample"] = Field(
        "zero", description="what replaces a removed component"
    )
    metric: Literal["answer_loss", "soft_loss", "margin", "logit", "error"] = Field(
        "answer_loss", description="what effects and scores are about; larger is worse"
    )


class CircuitConfig(Section):
    """The circuit graph."""

    ablation: Literal["zero", "mean", "position_mean", "resample"] = Field(
        "mean", description="what a removed component or edge carries instead"
    )
    metric: Literal["answer_loss", "soft_loss", "margin", "logit", "error"] = Field(
        "margin", description="what its numbers are about; larger is worse"
    )
    level: Literal["sublayers", "heads"] = Field("sublayers", description="what edges join")
    pages: Annotated[Count, Field(ge=2)] = Field(
        24, description="pages, of those to score on, that edges are scored and measured on"
    )
    memory_gigabytes: Positive = Field(
        4, description="memory of a pass beside weights and pages, in 10^9 bytes; bounds its batch"
    )
    shown_pages: Natural | None = Field(
        None,
        description="pages whose image and attention maps the circuit page shows; null: 1 of "
        "rendered pages, none of your own, whose images would travel with the file",
    )

    def measured(self) -> dict[str, Any]:
        """Return what the graph's numbers depend on."""
        return self.model_dump(exclude={"shown_pages"})


class AnalysesConfig(Section):
    """The published analyses of the teacher (docs/analyses.md)."""

    pages: Natural = Field(
        40, description="pages, of those to score on and of those to select on; 0 takes all"
    )


class SpaceConfig(Section):
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
    within: Text | None = Field(
        None,
        description="a plan, e.g. `S0 C0 S1 S2 C3`, of whose sub-layers alone students consist",
    )

    @field_validator("within")
    @classmethod
    def _composition(cls, plan: str | None) -> str | None:
        try:
            named = Plan.parse(plan or "")
        except PlanError as error:
            raise ValueError(str(error)) from None
        if plan is not None and not named.sublayers:
            raise ValueError("it keeps nothing; name sub-layers, or leave the key out")
        whole = Plan.of(named.sublayers)
        if named != whole:
            raise ValueError(f"got {plan!r}, allowed are whole sub-layers: {str(whole)!r}")
        return plan

    @property
    def coarse(self) -> bool:
        """Whether sub-layers stay whole or go whole (`search.units`)."""
        return Choices(self.attention, tuple(self.widths)).coarse

    @field_validator("widths")
    @classmethod
    def _ascending(cls, widths: list[int]) -> list[int]:
        if widths != sorted(set(widths)):
            raise ValueError(f"got {widths}, allowed are ascending numbers, each once")
        return widths


class ElasticConfig(Section):
    """The elastic teacher: the decoder distilled under a random feasible plan at every step."""

    steps: Natural = Field(3600, description="0 leaves the elastic teacher out")
    batch: Count = Field(32, description="questions per step; many small steps meet more plans")
    learning_rate: Positive = Field(1e-3, description="largest, behind the warm-up")
    rule: Literal["uniform", "even", "sandwich", "weighted"] = Field(
        "uniform", description="which plan trains at which step (`search.elastic`)"
    )
    untrained: Annotated[float, Field(ge=0, lt=1, strict=True)] = Field(
        0.05,
        description="weight of the loss without training beside the elastic loss, as exponents, "
        "where all plans are ranked; 0 leaves it out",
    )
    interpolation: Annotated[float, Field(gt=0, le=1, strict=True)] = Field(
        0.75,
        description="where a sample of plans is ranked: how far from the teacher's weights to the "
        "elastic teacher's the weights are that it is ranked under",
    )


class DistillConfig(Section):
    """The shared trainer: the same for every student, whoever proposed it."""

    steps: Count = Field(300, description="optimiser steps of every student in the search")
    batch: Count = Field(64, description="questions per step")
    learning_rate: Positive = Field(1e-3, description="largest, behind the warm-up")
    warmup: Annotated[float, Field(ge=0, le=1, strict=True)] = Field(
        0.05, description="share of the steps in which the learning rate rises"
    )
    temperature: Positive = Field(2.0, description="of the losses that compare with the teacher")
    accumulate: Count = Field(
        1, description="parts a step's batch is cut into: less memory, the same gradient"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of the student's passes; bfloat16: faster on GPUs that have it. Weights, "
        "moments, losses and gradients are float32 in both",
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
    start: Literal["teacher", "elastic"] = Field(
        "teacher",
        description="whose weights students begin with; elastic: the elastic teacher's, trained "
        "for plans of this budget",
    )
    compensate: Flag = Field(
        False,
        description="students begin with what was removed at its mean, folded into kept biases, "
        "instead of at zero; no parameter more",
    )
    tensorboard: Flag = Field(
        False, description="write losses of every student for TensorBoard (needs tensorboard)"
    )

    @model_validator(mode="after")
    def _weighs_what_is_there(self) -> DistillConfig:
        if self.kd_weight is not None and self.losses and "forward_kl" not in self.losses:
            raise ValueError(
                "kd_weight weighs forward_kl, which is not among the losses; leave it out"
            )
        return self


class ExhaustiveConfig(Section):
    """The baseline: every feasible plan scored without training, the best distilled."""

    top: Count = Field(3, description="plans to distil (the paper's T1-T3)")
    short: Natural = Field(
        0, description="plans to distil as a search does, the best of which become D1-D3"
    )
    plans: Count = Field(
        20_000,
        description="most plans that are ranked one and all; of a larger space a sample of 2,000 "
        "is, and as many near its best",
    )
    memory_gigabytes: Positive = Field(
        1, description="what the walk over all plans may hold at once, in 10^9 bytes"
    )


class StudyConfig(Section):
    """The warm-started search."""

    trainings: Count = Field(10, description="students to distil")
    sampler: Text | None = Field(
        None,
        description="who proposes plans after the warm start; default `elastic`, or `circuit` "
        "without an elastic teacher and where heads or widths are units",
    )
    objective: Literal["single", "pareto"] = Field(
        "single", description="the best plan within the budget, or the best at every cost below"
    )
    warm_scores: Natural = Field(1, description="plans from the components' effects")
    warm_edges: Natural = Field(1, description="plans from the edges of the circuit graph")
    warm_pairs: Natural = Field(
        1, description="plans from effects, with pairs, on the elastic teacher"
    )
    warm_findings: Natural = Field(
        0, description="plans that follow from the published analyses (docs/analyses.md)"
    )
    warm_elastic: Natural = Field(
        3, description="first plans of the ranking by what plans are predicted to reach"
    )
    warm_baselines: list[str] | None = Field(
        None,
        description="published methods whose plans are distilled first, by name "
        "(docs/baselines.md); null: taylor and finercut where heads or widths are units, else none",
    )
    promote: Natural = Field(
        0, description="best plans to distil again in full (final.steps) before one is chosen"
    )
    max_failures: Natural = Field(5, description="failed trainings before it stops")
    storage: Text | None = Field(
        None, description="database URL; default SQLite in the output folder"
    )
    lease_seconds: Annotated[float, Field(ge=0.01, le=1e9, strict=True)] = Field(
        120, description="a worker that is silent for so long gives its plan back"
    )

    @field_validator("warm_baselines")
    @classmethod
    def _with_plans(cls, names: list[str] | None) -> list[str] | None:
        if not names:
            return names
        from circuitsearch.students.baselines import BASELINES

        plans = [name for name, one in BASELINES.items() if one.kind in ("plan", "plans")]
        return checked_names("baseline", names, plans)

    @field_validator("sampler")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        # imported here: the samplers need optuna, reading a configuration does not
        if name is not None:
            from circuitsearch.search.samplers import REGISTRY

            if name not in REGISTRY:
                raise ValueError(choice_problem("sampler", name, list(REGISTRY)))
        return name


class EvaluationConfig(Section):
    """How answers are scored."""

    anls: Literal["rrc", "strict"] = Field(
        "rrc",
        description="a similarity of exactly one half keeps its value (rrc, as the competition's "
        "script has it) or scores 0 (strict, as in the paper)",
    )


class FinalConfig(Section):
    """The final comparison."""

    seeds: list[Natural] = Field([0], min_length=1, description="training seeds")
    steps: Count | None = Field(None, description="distillation steps; default those of the search")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is listed twice")
        return seeds


class ReportConfig(Section):
    """The report of a search, `report.html`."""

    pages: Flag = Field(
        False,
        description="embed a few page images also where the pages are yours; rendered ones always "
        "are",
    )
