"""What predicts a student after distillation: Spearman of every cheap judge with its quality.

    python tests/benchmarks/prediction/predictors.py tests/benchmarks/prediction/31.yaml
        --truth DISTILLED.json --out results/search/prediction-31

`distilled.py` makes the truth; of several tables, one per training seed, the mean counts. A plan's
prediction is the sum over what it keeps (components, or edges whose both ends stay), or minus a
loss; effects of pairs add their interactions. All scores and effects are also taken on the elastic
teacher, where they say what is still needed after recovery. Intervals draw plans with replacement.
Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from truth import read_truth

from circuitsearch.configfile import load_config
from circuitsearch.core.files import write_json, write_text
from circuitsearch.core.plan import Plan
from circuitsearch.discovery.attribution.engine import component_scores, edge_scores
from circuitsearch.discovery.attribution.taylor import taylor_scores
from circuitsearch.discovery.patching.components import effects, pair_effects
from circuitsearch.discovery.patching.edges import edge_effects
from circuitsearch.discovery.paths.table import PathTable
from circuitsearch.discovery.sample import Sample, make_sample
from circuitsearch.pipeline import Pipeline
from circuitsearch.progress import reporter
from circuitsearch.teacher.decoders import ResidualDecoder
from circuitsearch.workspace import Workspace

PAGES, DRAWS = 24, 1000
Kept = frozenset[str]
Predictor = Callable[[Kept], float]
METHODS = ("eap", "eap-absolute", "eap-ig", "gates", "relp", "gim", "activations-2")


def main() -> None:
    """Judge every predictor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("search", type=Path)
    parser.add_argument("--truth", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    pipeline = Pipeline(Workspace(load_config(options.search), reporter(quiet=False)))
    truth = read_truth(options.truth)
    plans, quality = truth.plans, truth.quality
    predicted = _rankings(pipeline, plans)
    sample = make_sample(pipeline.teacher, pipeline.pages["score"][:PAGES])
    views: dict[str, ResidualDecoder | None] = {
        "teacher": pipeline.teacher.decoder,
        "elastic teacher": pipeline.elastic,
    }
    kept = [frozenset(s.name for s in plan.sublayers) for plan in plans]
    for name, predictor in _paths(pipeline.paths).items():
        predicted[name] = [predictor(names) for names in kept]
    for where, view in views.items():
        if view is not None:
            for name, predictor in _predictors(view, sample).items():
                predicted[f"{name}, {where}"] = [predictor(names) for names in kept]
    found = {name: _agreement(values, quality) for name, values in predicted.items()}
    result = {
        "search": pipeline.work.config.name,
        "teacher": pipeline.teacher.fingerprint,
        "examples": sample.examples,
        "plans": [str(plan) for plan in plans],
        "quality": truth.by_seed.tolist(),
        "spearman": found,
        "predicted": {name: [float(f"{v:.5g}") for v in row] for name, row in predicted.items()},
    }
    write_json(options.out.with_suffix(".json"), result)
    write_text(options.out.with_suffix(".md"), _table(result))


def _rankings(pipeline: Pipeline, plans: Sequence[Plan]) -> dict[str, list[float]]:
    """Return minus the loss of each plan, without training and under the elastic teacher."""
    found = {}
    for name, ranking in (
        ("untrained loss", pipeline.untrained),
        ("elastic loss", pipeline.elastic_ranking),
        ("elastic and untrained loss", pipeline.predicted),
    ):
        losses = {plan.hash: loss for plan, loss in ranking}
        if losses:
            found[name] = [-losses[plan.hash] for plan in plans]
    return found


def _predictors(view: ResidualDecoder, sample: Sample) -> dict[str, Predictor]:
    """Return what a set of kept sub-layers is worth by each score."""
    found: dict[str, Predictor] = {}
    for ablation in ("zero", "mean", "resample"):
        single = effects(view, sample, [s.name for s in view.sublayers], ablation)
        alone = {name: float(values.mean()) for name, values in single.items()}
        found[f"effects, {ablation}"] = _sum(alone)
        pairs = {
            pair: float(values.mean())
            for pair, values in pair_effects(view, sample, ablation).items()
        }
        found[f"effects with pairs, {ablation}"] = _with_pairs(alone, pairs)
        scored = {
            "edge scores": edge_scores(view, sample, ablation),
            "edge effects": edge_effects(view, sample, None, ablation),
        }
        for name, table in scored.items():
            means = {(writer, reader.split("<")[0]): 0.0 for writer, reader in table.wiring.edges}
            for (writer, reader), values in table.by_name().items():
                means[writer, reader.split("<")[0]] += float(values.mean())
            found[f"{name}, {ablation}"] = _edges(means)
    for method in METHODS:
        scores = component_scores(view, sample, method=method, level="sublayers").means()
        found[f"{method}, zero"] = _sum(scores)
    for form in ("weights", "gate"):
        found[f"taylor {form}"] = _sum(taylor_scores(view, sample, form=form).means())
    return found


def _paths(table: PathTable) -> dict[str, Predictor]:
    """Return what the keyword's paths to the last cross-attention say of what is kept of them.

    A path counts only where all its sub-layers stay; the pure residual path always does.
    """
    values = [(frozenset(path.through), path.effectiveness) for path in table.paths]

    def there(kept: Kept) -> list[float]:
        return [value for through, value in values if through <= kept]

    return {
        "paths, sum": lambda kept: sum(there(kept)),
        "paths, best": lambda kept: max(there(kept)),
    }


def _sum(values: Mapping[str, float]) -> Predictor:
    return lambda kept: sum(values[name] for name in kept)


def _with_pairs(alone: Mapping[str, float], pairs: Mapping[tuple[str, str], float]) -> Predictor:
    """Minus what the removed components cost together, to second order."""

    def worth(kept: Kept) -> float:
        gone = [name for name in alone if name not in kept]
        cost = sum(alone[name] for name in gone)
        cost += sum(pairs[a, b] - alone[a] - alone[b] for a, b in combinations(gone, 2))
        return -cost

    return worth


def _edges(values: Mapping[tuple[str, str], float]) -> Predictor:
    """An edge counts when both of its ends stay; embedding, encoder and logits always do."""
    always = {"embedding", "encoder", "logits"}
    return lambda kept: sum(value for (a, b), value in values.items() if {a, b} <= kept | always)


def _agreement(values: Sequence[float], quality: np.ndarray) -> dict[str, float]:
    """Return Spearman with its 95 % interval."""
    x = np.array(values)
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        places = generator.integers(0, len(x), len(x))
        drawn.append(stats.spearmanr(x[places], quality[places]).statistic)
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return {
        "spearman": float(stats.spearmanr(x, quality).statistic),
        "low": float(low),
        "high": float(high),
    }


def _table(result: Mapping[str, Any]) -> str:
    """Return the predictors as a Markdown table, best first."""
    lines = [
        f"# What predicts distilled quality: {result['search']}",
        "",
        f"{len(result['plans'])} feasible plans, distilled for the search's short training with "
        f"{len(result['quality'])} seeds; Spearman of each predictor with their mean ANLS (95 % "
        f"interval over plans); effects and scores on {result['examples']} questions.",
        "",
        "| predictor | Spearman | interval |",
        "|---|---:|---|",
    ]
    order = sorted(result["spearman"].items(), key=lambda one: -one[1]["spearman"])
    for name, row in order:
        lines.append(f"| {name} | {row['spearman']:.2f} | {row['low']:.2f} to {row['high']:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
