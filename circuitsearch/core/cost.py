"""Costs: parameters and multiply-adds (MACs) of a plan, as exact integers from shapes alone.

Two accountings, always named, because the same student is cheap or dear depending on who counts:

* `paper`: generation *without* a key-value cache, so each pass reprocesses all tokens and projects
  all encoder tokens to keys and values again; parameters are weights only (no biases, no
  LayerNorms). This is Table 1 of Donut-MINT (arXiv 2509.26235), whose "FLOPs" are MACs. Like that
  table it counts the tied output projection a second time, under "unembedding".
* `cached`: what deployment pays. Cross-attention keys and values once per page, every token once,
  output logits only for rows that choose a token; parameters are exactly `sum(numel)` of the built
  student, the tied matrix counted once, under "embeddings".

With prompt length n and P decoder passes, the passes have lengths L = n .. n+P-1; T = sum L and
Q = sum L^2. With a cache Tc = n+P-1 tokens are processed and Qc = n^2 + sum_{L>n} L query-key pairs
(counters ignore causality, so do we). For w = heads * head_dim, f neurons, N encoder tokens, widths
d (decoder) and e (what k and v read):

    ============= ============================= ==========================
    sub-layer     paper                         cached
    ============= ============================= ==========================
    S             4dwT + 2wQ                    4dwTc + 2wQc
    C             2ewNP + 2dwT + 2wNT           2ewN + 2dwTc + 2wNTc
    M             2dfT                          2dfTc
    =mean         0                             0
    =linear       d^2 T                         d^2 Tc
    =token        0                             0
    unembedding   VdT                           VdP
    ============= ============================= ==========================

What stands in for a sub-layer (`keep`) is counted in full in both accountings: d numbers for
`mean`, d^2 + d for `linear`. They are fitted in the place of weights, so `paper`, which passes over
the teacher's biases, does not pass over them. The LayerNorm that `linear` keeps, 2d, is counted by
`cached` alone, like any other. `alone` costs what the whole cross-attention costs. `token` costs
nothing in either: its table of V integers is looked up where the embedding is, and no parameter.

1 MAC = 2 FLOPs. Costs are additive over sub-layers, heads and neurons, so an integer program can
use them directly.

These formulas are those of the mBART family: cross-attention in every layer, as many key-value
heads as heads, one map into a feed-forward, a tied output projection, biases and LayerNorms
throughout. A decoder that differs is refused, not counted wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from circuitsearch.core.components import Kind, SubLayer, sublayers
from circuitsearch.core.errors import (
    ConfigError,
    PlanError,
    choice_problem,
    integer_problems,
    raise_together,
)
from circuitsearch.core.files import record_fields
from circuitsearch.core.keep import REPLACEMENTS, Keep, kind_problems
from circuitsearch.core.plan import Plan, shape_problems, units_kept
from circuitsearch.core.shapes import DecoderShape, TeacherShape

__all__ = [
    "ACCOUNTINGS",
    "QUANTITIES",
    "SCOPES",
    "Accounting",
    "Cost",
    "Generation",
    "Quantity",
    "Scope",
    "ScopeCost",
    "cost",
    "entry_cost",
    "fixed_costs",
    "recorded_costs",
    "sublayer_cost",
    "unembedding_macs",
    "unit_costs",
]

Accounting = Literal["paper", "cached"]
Scope = Literal["decoder", "decoder+embeddings", "total"]
Quantity = Literal["parameters", "macs"]
ACCOUNTINGS: tuple[Accounting, ...] = get_args(Accounting)
SCOPES: tuple[Scope, ...] = get_args(Scope)
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


@dataclass(frozen=True)
class Generation:
    """How long the generated answer is; the defaults reproduce Donut-MINT's Table 1.

    Attributes:
        prompt: tokens of the prompt (n).
        passes: decoder passes (P), one per emitted token. The first reads the prompt alone.
    """

    prompt: int = 42
    passes: int = 34

    def __post_init__(self) -> None:
        """Refuse lengths below 1, both together."""
        problems = integer_problems("prompt", self.prompt, 1)
        problems += integer_problems("passes", self.passes, 1)
        raise_together(problems, ConfigError, "Generation")

    def tokens(self, accounting: Accounting) -> int:
        """Return how many token positions all passes process: T, or Tc with a cache."""
        last = self.prompt + self.passes - 1
        if accounting == "cached":
            return last
        return self.passes * (self.prompt + last) // 2

    def pairs(self, accounting: Accounting) -> int:
        """Return how many query-key pairs self-attention forms: Q, or Qc with a cache."""
        lengths = range(self.prompt, self.prompt + self.passes)
        if accounting == "cached":
            return self.prompt**2 + sum(lengths[1:])
        return sum(length * length for length in lengths)


@dataclass(frozen=True)
class ScopeCost:
    """Parameters and MACs of one sub-layer, one fixed part or one scope."""

    parameters: int
    macs: int

    def __add__(self, other: ScopeCost) -> ScopeCost:
        """Return the sum, quantity by quantity."""
        return ScopeCost(self.parameters + other.parameters, self.macs + other.macs)


@dataclass(frozen=True)
class Cost:
    """What a plan costs under one accounting.

    Attributes:
        accounting: `paper` or `cached`.
        generation: prompt length and passes that the MACs are for.
        plan: canonical text of the plan.
        scopes: cost per scope: `decoder` (kept sub-layers), `decoder+embeddings` (with token and
            position embeddings, the embedding and final LayerNorms and the unembedding) and
            `total` (with the encoder).
        sublayers: cost per kept sub-layer, by name in execution order.
        fixed: cost of what every student has: `encoder`, `embeddings`, `unembedding`.
    """

    accounting: Accounting
    generation: Generation
    plan: str
    scopes: Mapping[str, ScopeCost]
    sublayers: Mapping[str, ScopeCost]
    fixed: Mapping[str, ScopeCost]

    def to_json(self) -> dict[str, Any]:
        """Return the cost as nested JSON objects; `from_json` reads it back equal."""
        return {
            "accounting": self.accounting,
            "generation": asdict(self.generation),
            "plan": self.plan,
            "scopes": {name: asdict(one) for name, one in self.scopes.items()},
            "sublayers": {name: asdict(one) for name, one in self.sublayers.items()},
            "fixed": {name: asdict(one) for name, one in self.fixed.items()},
        }

    @classmethod
    def from_json(cls, data: Any) -> Cost:
        """Read what `to_json` wrote.

        Raises:
            DataError: a field is missing or unknown.
            ConfigError: the accounting is unknown or the generation impossible.
        """
        values = record_fields(cls, data)
        _check_accounting(values["accounting"])
        values["generation"] = Generation(**record_fields(Generation, values["generation"]))
        for part in ("scopes", "sublayers", "fixed"):
            values[part] = {
                name: ScopeCost(**record_fields(ScopeCost, one))
                for name, one in values[part].items()
            }
        # JSON files are written with sorted keys; execution order is restored here.
        ordered = sorted(values["sublayers"].items(), key=lambda item: SubLayer.parse(item[0]))
        values["sublayers"] = dict(ordered)
        return cls(**values)


def sublayer_cost(
    kind: Kind,
    units: int,
    shape: TeacherShape,
    accounting: Accounting,
    generation: Generation | None = None,
) -> ScopeCost:
    """Return the cost of one sub-layer with `units` heads (S, C) or neurons (M); 0 when skipped.

    Linear in `units`, but for the output bias and LayerNorm (3d parameters) that `cached` counts
    once for every sub-layer that is kept at all.

    Raises:
        ConfigError: the accounting is unknown, or the formulas do not fit the decoder.
    """
    _check_accounting(accounting)
    _check_family(shape.decoder)
    generation = generation or Generation()
    if units == 0:
        return ScopeCost(0, 0)
    per_unit = _per_unit(kind, shape, accounting, generation)
    shared = 3 * shape.decoder.d_model if accounting == "cached" else 0
    return ScopeCost(units * per_unit.parameters + shared, units * per_unit.macs)


def entry_cost(
    sublayer: SubLayer,
    keep: Keep | None,
    shape: TeacherShape,
    accounting: Accounting,
    generation: Generation | None = None,
) -> ScopeCost:
    """Return the cost of one entry of a plan; a plan's sub-layers cost the sum over its entries.

    Args:
        sublayer: the sub-layer.
        keep: how much of it stays, or what replaces it; None, no heads and width 0 cost nothing.
        shape: the teacher's shape.
        accounting: `paper` or `cached`.
        generation: prompt length and passes; `Generation()` when None.

    Raises:
        PlanError: the decoder has no such sub-layer, heads or width, or none may be replaced so.
        ConfigError: the accounting is unknown, or the formulas do not fit the decoder.
    """
    if keep is None:
        return sublayer_cost(sublayer.kind, 0, shape, accounting, generation)
    problems = kind_problems(sublayer, keep) + shape_problems(sublayer, keep, shape.decoder)
    raise_together(problems, PlanError, f"Cost of {sublayer}{keep}")
    units = units_kept(sublayer, keep, shape.decoder)
    own = sublayer_cost(sublayer.kind, units, shape, accounting, generation)
    if keep.replacement is None or not REPLACEMENTS[keep.replacement].fitted:
        return own
    d = shape.decoder.d_model
    if keep.replacement == "token":
        return ScopeCost(0, 0)
    if keep.replacement == "mean":
        return ScopeCost(d, 0)
    norm = 2 * d if accounting == "cached" else 0
    tokens = (generation or Generation()).tokens(accounting)
    return ScopeCost(d * d + d + norm, d * d * tokens)


def _per_unit(
    kind: Kind, shape: TeacherShape, accounting: Accounting, generation: Generation
) -> ScopeCost:
    """Return the cost of one head or one neuron (table of the module docstring)."""
    d, e, w = shape.decoder.d_model, shape.decoder.encoder_width, shape.decoder.head_dim
    tokens, encoder_tokens = generation.tokens(accounting), shape.encoder.tokens
    biased = accounting == "cached"
    if kind is Kind.SELF:
        # q, k, v and out; biases of q, k, v are rows of the head.
        parameters = 4 * d * w + 3 * w * biased
        return ScopeCost(parameters, 4 * d * w * tokens + 2 * w * generation.pairs(accounting))
    if kind is Kind.CROSS:
        parameters = 2 * d * w + 2 * e * w + 3 * w * biased
        # Keys and values of the page: once with a cache, again at every pass without.
        projections = 1 if accounting == "cached" else generation.passes
        macs = 2 * e * w * encoder_tokens * projections
        return ScopeCost(parameters, macs + 2 * d * w * tokens + 2 * w * encoder_tokens * tokens)
    return ScopeCost(2 * d + biased, 2 * d * tokens)


def unembedding_macs(
    decoder: DecoderShape,
    accounting: Accounting,
    generation: Generation | None = None,
    *,
    prompt_rows: bool = False,
) -> int:
    """Return the MACs of the output projection.

    Args:
        decoder: the decoder's sizes.
        accounting: without a cache every pass projects every row; with one, P rows are needed.
        generation: prompt length and passes.
        prompt_rows: with a cache, also project the prompt's other rows, as an implementation does
            that does not ask for the last row only. Costs use False.
    """
    _check_accounting(accounting)
    generation = generation or Generation()
    last_rows_only = accounting == "cached" and not prompt_rows
    rows = generation.passes if last_rows_only else generation.tokens(accounting)
    return decoder.vocabulary * decoder.d_model * rows


def fixed_costs(
    shape: TeacherShape, accounting: Accounting, generation: Generation | None = None
) -> dict[str, ScopeCost]:
    """Return what every student has, whatever its plan: encoder, embeddings, unembedding.

    The encoder's parameters are exact in both accountings. A student without cross-attention still
    carries the encoder; the search never proposes one, because nothing would read the page.

    Raises:
        ConfigError: the accounting is unknown, or the formulas do not fit the decoder.
    """
    decoder = shape.decoder
    _check_family(decoder)
    tied = decoder.vocabulary * decoder.d_model
    # Embedding LayerNorm and final LayerNorm, weight and bias each.
    norms = 4 * decoder.d_model if accounting == "cached" else 0
    macs = unembedding_macs(decoder, accounting, generation)
    return {
        "encoder": ScopeCost(shape.encoder.parameters, shape.encoder.macs),
        # Looking rows up takes no multiply-add.
        "embeddings": ScopeCost(tied + decoder.positions * decoder.d_model + norms, 0),
        "unembedding": ScopeCost(tied if accounting == "paper" else 0, macs),
    }


def unit_costs(
    shape: TeacherShape, accounting: Accounting, generation: Generation | None = None
) -> dict[SubLayer, ScopeCost]:
    """Return the cost of every whole sub-layer; a plan of whole sub-layers costs their sum."""
    kinds = {
        kind: sublayer_cost(kind, _whole(kind, shape.decoder), shape, accounting, generation)
        for kind in Kind
    }
    return {sublayer: kinds[sublayer.kind] for sublayer in sublayers(shape.decoder.layers)}


def cost(
    plan: Plan, shape: TeacherShape, accounting: Accounting, generation: Generation | None = None
) -> Cost:
    """Return what `plan` costs for the teacher `shape`.

    Args:
        plan: any plan that fits the decoder; it is brought into canonical form first.
        shape: the teacher's shape.
        accounting: `paper` or `cached`.
        generation: prompt length and passes; `Generation()` when None.

    Raises:
        PlanError: the plan names something that the decoder does not have.
        ConfigError: the accounting is unknown, or the formulas do not fit the decoder.
    """
    _check_accounting(accounting)
    _check_family(shape.decoder)
    generation = generation or Generation()
    plan = plan.fitted(shape.decoder)
    kept = {
        one.name: entry_cost(one, keep, shape, accounting, generation) for one, keep in plan.kept
    }
    fixed = fixed_costs(shape, accounting, generation)
    decoder = sum(kept.values(), ScopeCost(0, 0))
    embedded = decoder + fixed["embeddings"] + fixed["unembedding"]
    scopes = {
        "decoder": decoder,
        "decoder+embeddings": embedded,
        "total": embedded + fixed["encoder"],
    }
    return Cost(accounting, generation, str(plan), scopes, kept, fixed)


def recorded_costs(
    plan: Plan, shape: TeacherShape, generation: Generation | None = None
) -> dict[str, Any]:
    """Return `Cost.to_json()` by accounting, as a measurement keeps it; see `cost`."""
    return {str(one): cost(plan, shape, one, generation).to_json() for one in ACCOUNTINGS}


def _whole(kind: Kind, decoder: DecoderShape) -> int:
    """Return the number of heads or neurons of a whole sub-layer."""
    return decoder.ffn if kind is Kind.FEED else decoder.heads


def _check_accounting(accounting: str) -> None:
    """Refuse an unknown accounting."""
    if accounting not in ACCOUNTINGS:
        raise ConfigError(choice_problem("accounting", accounting, ACCOUNTINGS))


def _check_family(decoder: DecoderShape) -> None:
    """Refuse a decoder that the formulas of this module do not count; all reasons together."""
    problems = []
    if decoder.encoder_width == 0:
        problems.append("it has no cross-attention (encoder_width 0)")
    if decoder.groups is not None:
        problems.append(f"{decoder.heads} heads share {decoder.groups} key-value heads (groups)")
    if decoder.gated:
        problems.append("its feed-forward has a second map into the neurons (gated)")
    if not decoder.tied:
        problems.append("its output projection is a matrix of its own (not tied)")
    if problems:
        raise ConfigError(
            f"Costs: this decoder cannot be counted: {'; '.join(problems)}. Allowed are decoders "
            "of the mBART family, whose formulas circuitsearch.core.cost holds; choose such a "
            "teacher for a search under a budget. Scores and effects need no costs"
        )
