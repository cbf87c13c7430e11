"""The schema of a circuit graph: every name in its files and what it means. No torch.

The graph is a networkx MultiDiGraph. Its entries are the embedding, the encoder (where one is
read), every sub-layer, every head and the logits. An edge runs from a writer to the component that
reads it, keyed by the *port* it reads through, so that the queries, keys and values of one head are
three edges between the same two entries. The JSON file is networkx's node-link form:

    {"directed": true, "multigraph": true, "graph": {...}, "nodes": [{"id": "C3.H11", ...}, ...],
     "edges": [{"source": "S2.H0", "target": "C3.H11", "port": "q", ...}, ...]}

    entry    kind, layer, position, examples, cost, and the numbers
    edge     port, kind, serves, and the numbers
    numbers  score, score_sd, sign_consistency, score_low, score_high,
             effect, effect_sd, effect_low, effect_high
    graph    schema, recipe, wiring, calibration, paths, selection

Scores are estimated, effects measured by exact patching; both are in the metric's unit, averaged
over examples, and positive where replacing the component raises the loss, so that it helps.
Whatever is unknown is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from circuitsearch.core.files import plain, record_fields

__all__ = ["SCHEMA", "Recipe", "known", "rounded"]

SCHEMA = "circuitsearch.circuit/2"
"""Value of the graph attribute `schema`; the number rises when the meaning of an attribute does."""

# Attributes of entries.
KIND = "kind"  # "embedding", "encoder", "S", "C", "M", "head" or "logits"
LAYER = "layer"  # decoder layer from 0; sub-layers and heads
POSITION = "position"  # place in execution order; -1 for embedding and encoder, last for logits
EXAMPLES = "examples"  # number of examples behind the numbers
COST = "cost"  # {"paper": {"parameters": int, "macs": int}, "cached": {...}}; sub-layers

# Attributes of edges.
PORT = "port"  # "q", "k", "v", "kv", or "" for the only reader of its component; also the edge key
EDGE_KIND = "kind"  # "stream", "encoder" (reads the encoder's output) or "part" (see PART)
PART = "part"  # kind of the edge from a head to the sub-layer it is part of: no numbers, no port
SERVES = "serves"  # heads that share this key or value reader (grouped queries); target: the first

# Numbers of entries and edges.
SCORE = "score"  # mean over examples
SCORE_SD = "score_sd"  # standard deviation over examples, not of the mean
SCORE_LOW, SCORE_HIGH = "score_low", "score_high"  # 95 % bootstrap interval of the mean
SIGN = "sign_consistency"  # share of examples whose score has the sign of the mean
EFFECT, EFFECT_SD = "effect", "effect_sd"
EFFECT_LOW, EFFECT_HIGH = "effect_low", "effect_high"
NUMBERS = (
    *(SCORE, SCORE_SD, SIGN, SCORE_LOW, SCORE_HIGH),
    *(EFFECT, EFFECT_SD, EFFECT_LOW, EFFECT_HIGH),
)

# Graph attributes.
SCHEMA_KEY = "schema"
RECIPE = "recipe"  # how the numbers were made, see `Recipe`
WIRING = "wiring"  # {"level", "split", "sublayers", "heads", "groups"}, see `structure`
CALIBRATION = "calibration"  # number by name, granularity first: "edges.random.spearman"
PATHS = "paths"  # {"target", "sublayers", "best": [{"through", "effectiveness", ...}, ...]}
SELECTION = "selection"  # {"rule", "edges", "absolute", "kept"} of a graph cut down to a circuit

NESTED = (COST, SERVES, RECIPE, WIRING, CALIBRATION, PATHS, SELECTION)
"""Attributes that hold lists or objects; GraphML, which knows only scalars, has them as JSON."""

_DIGITS = 6


@dataclass(frozen=True)
class Recipe:
    """How the numbers of a graph were made; scores compare only within one recipe.

    Whoever builds a graph gives `data`, `counterfactual` and `seeds`; the rest is filled in.

    Attributes:
        teacher: fingerprint of the teacher.
        metric: what the numbers are about, e.g. `answer_loss`.
        ablation: what replaces a removed component.
        counterfactual: kind of pairs behind the ablation `pair`, e.g. `question`; "" for none.
        method: how components were scored.
        edge_method: how edges were scored; "" without edge scores.
        data: fingerprint of the sample; "" when unknown.
        examples: number of examples.
        documents: number of documents they are about, the units that intervals draw; 0 unknown.
        base_metric: the metric of the whole teacher on the same examples.
        passes: decoder passes of one example behind the component numbers.
        edge_passes: passes over the whole sample behind the edge scores.
        effect_passes: passes over the whole sample behind the edge effects.
        interval: level and number of draws of every interval.
        seeds: seed by what it was used for.
    """

    teacher: str = ""
    metric: str = ""
    ablation: str = ""
    counterfactual: str = ""
    method: str = ""
    edge_method: str = ""
    data: str = ""
    examples: int = 0
    documents: int = 0
    base_metric: float = 0.0
    passes: int = 0
    edge_passes: float = 0.0
    effect_passes: float = 0.0
    interval: Mapping[str, float] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object, floats rounded, without what holds its default."""
        unknown = asdict(Recipe())
        return {
            name: rounded(value) if isinstance(value, float) else plain(value)
            for name, value in asdict(self).items()
            if value != unknown[name]
        }

    @classmethod
    def from_json(cls, data: Any) -> Recipe:
        """Read what `to_json` wrote.

        Raises:
            DataError: a field is unknown, or it is no object.
        """
        return cls(**record_fields(cls, data))


def rounded(value: float) -> float:
    """Round to six significant digits, so that files do not change with the last bits; no -0."""
    return float(f"{value:.{_DIGITS}g}") + 0.0


def known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are not None, floats rounded."""
    return {
        name: rounded(value) if isinstance(value, float) else value
        for name, value in values.items()
        if value is not None
    }
