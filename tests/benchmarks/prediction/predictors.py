"""What predicts a student after distillation: Spearman of every cheap judge with its quality.

    python tests/benchmarks/prediction/predictors.py tests/benchmarks/prediction/31.yaml
        --truth DISTILLED.json --out results/search/prediction-31

`distilled.py` makes the truth; of several tables, one per training seed, the mean counts. A plan's
prediction is the sum over what it keeps (units, or edges whose both ends stay), or minus a
loss; effects of pairs add their interactions. All scores and effects are also taken on the elastic
teacher, where they say what is still needed after recovery. Intervals draw plans with replacement.
Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from truth import read_truth

from circuitsearch.configfile import load_config
from circuitsearch.core.components import Kind
from circuitsearch.core.files import content_hash, write_json, write_text
from circuitsearch.core.plan import Plan
from circuitsearch.discovery.attribution.engine import component_scores, edge_scores
from circuitsearch.discovery.attribution.taylor import taylor_scores
from circuitsearch.discovery.patching.components import effects, pair_effects
from circuitsearch.discovery.patching.edges import edge_effects
from circuitsearch.discovery.paths.table import PathTable
from circuitsearch.discovery.sample import Sample, make_sample
from circuitsearch.pipeline import Pipeline
from circuitsearch.progress import reporter
from circuitsearch.search.program import Interaction
from circuitsearch.search.space import Space
from circuitsearch.search.worths import edge_worths, pair_worths, unit_worths
from circuitsearch.stages.ranking import plan_losses, weights_hash
from circuitsearch.students.plan_view import neuron_order
from circuitsearch.students.walk import Walk
from circuitsearch.teacher.decoders import ResidualDecoder
from circuitsearch.workspace import Workspace

PAGES, DRAWS = 24, 1000
Kept = frozenset[str]
Predictor = Callable[[Kept], float]
Worths = tuple[Sequence[float], Sequence[Interaction]]
"""Of units, and of units that stay together."""
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
    sample = make_sample(pipeline.teacher, pipeline.pages["score"][:PAGES])
    views: dict[str, ResidualDecoder | None] = {
        "teacher": pipeline.teacher.decoder,
        "elastic teacher": pipeline.elastic,
    }
    predicted = _losses(pipeline, plans)
    kept = [frozenset(s.name for s in plan.sublayers) for plan in plans]
    for name, predictor in _paths(pipeline.paths).items():
        predicted[name] = [predictor(names) for names in kept]
    bits = np.array([pipeline.space.bits(plan) for plan in plans])
    for where, view in views.items():
        if view is not None:
            for name, worths in _worths(view, sample, pipeline.space).items():
                predicted[f"{name}, {where}"] = _sums(worths, bits)
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


def _losses(pipeline: Pipeline, plans: Sequence[Plan]) -> dict[str, list[float]]:
    """Return minus the loss of each plan, without training and under the elastic teacher."""
    teacher, work = pipeline.teacher.decoder, pipeline.work
    views = {"untrained loss": teacher, "elastic loss": pipeline.elastic}
    found = {}
    for name, view in views.items():
        if view is not None:
            walk = Walk(view, pipeline.features["select"], neurons=neuron_order(teacher))
            folder = work.config.work / content_hash([name, weights_hash(view)])
            losses = plan_losses(walk, plans, folder, lambda done, of: None)
            found[name] = [-loss for loss in losses]
    if len(found) == len(views):
        before, after = (-np.array(found[name]) for name in views)
        weight = work.config.elastic.untrained
        found["elastic and untrained loss"] = (-(after ** (1 - weight)) * before**weight).tolist()
    return found


def _worths(view: ResidualDecoder, sample: Sample, space: Space) -> dict[str, Worths]:
    """Return what units, and units that stay together, are worth by each score."""
    names = [s.name for s in view.sublayers]
    heads = [
        f"{s.name}.H{head}"
        for s in view.sublayers
        if s.kind is not Kind.FEED
        for head in range(space.shape.decoder.heads)
    ]
    found: dict[str, Worths] = {}
    for ablation in ("zero", "mean", "resample"):
        single = effects(view, sample, [*names, *heads], ablation)
        alone = {name: float(values.mean()) for name, values in single.items()}
        found[f"effects, {ablation}"] = _of_units(space, alone)
        pairs = {
            pair: float(values.mean())
            for pair, values in pair_effects(view, sample, ablation).items()
        }
        found[f"effects with pairs, {ablation}"] = pair_worths(space, alone, pairs)
        scored = {
            "edge scores": edge_scores(view, sample, ablation),
            "edge effects": edge_effects(view, sample, None, ablation),
        }
        for name, table in scored.items():
            means = {(writer, reader.split("<")[0]): 0.0 for writer, reader in table.wiring.edges}
            for (writer, reader), values in table.by_name().items():
                means[writer, reader.split("<")[0]] += float(values.mean())
            found[f"{name}, {ablation}"] = edge_worths(space, means)
    for method in METHODS:
        scores = component_scores(view, sample, method=method)
        found[f"{method}, zero"] = _of_units(space, scores.means())
    for form in ("weights", "gate"):
        table = taylor_scores(view, sample, form=form)
        found[f"taylor {form}"] = _of_units(space, table.means())
    return found


def _of_units(space: Space, values: Mapping[str, float]) -> Worths:
    worths = unit_worths(space, values)
    return [worths[name] for name in space.names], []


def _sums(worths: Worths, bits: np.ndarray) -> list[float]:
    """Return what each plan's units are worth, and those of them that stay together."""
    values, together = worths
    sums: np.ndarray = bits @ np.array(values)
    for units, worth in together:
        sums = sums + worth * bits[:, list(units)].all(axis=1)
    return sums.tolist()


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
