"""Every attribution method against exact patching, on the shipped teacher.

    python tests/benchmarks/discovery/methods.py --out results/discovery --seeds 0 1 2

For sub-layers, heads, edges between sub-layers and a stratified sample of edges between heads,
under several ablations and metrics: Spearman, Pearson and slope of mean scores on mean effects,
Spearman of mean absolute scores, and the passes (forward or backward, over the sample; a suffix
counts as its share). Every seed has pages of its own; the seeds behind the first are measured at
the tool's own settings only, and the tables give mean (min to max) over seeds. Writes
`methods.json` and `methods.md`. What is done stays. On one thread: some 40 minutes for the first
seed, 6 for each other.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from circuitsearch.core.errors import CircuitSearchError
from circuitsearch.core.files import read_json, write_json, write_text
from circuitsearch.discovery.ablation import means_for
from circuitsearch.discovery.attribution.engine import (
    DEFAULT_METHODS,
    component_scores,
    edge_scores,
)
from circuitsearch.discovery.attribution.methods import METHODS
from circuitsearch.discovery.attribution.taylor import taylor_scores
from circuitsearch.discovery.calibration import agreement, chosen_edges
from circuitsearch.discovery.pair_sample import make_pair_sample
from circuitsearch.discovery.patching.components import effects
from circuitsearch.discovery.patching.edges import edge_effects
from circuitsearch.discovery.sample import Sample, make_sample
from circuitsearch.discovery.scoring import EXACT_PASSES
from circuitsearch.teacher.documents.synthetic import rendered_pages
from circuitsearch.teacher.loading import Teacher, load_teacher

SETTINGS = (
    ("zero", "answer_loss"),
    ("zero", "margin"),
    ("mean", "answer_loss"),
    ("mean", "margin"),
    ("resample", "answer_loss"),
    ("pair", "answer_loss"),
    ("pair", "logit_difference"),
)
GRANULARITIES = ("sublayers", "heads", "edges", "head edges")
DEFAULTS = (
    *(("zero", "answer_loss", granularity) for granularity in ("sublayers", "heads")),
    *(("mean", "margin", granularity) for granularity in GRANULARITIES),
)
"""What the tool does unless told otherwise: a search's scores, and circuits."""
HEAD_EDGES = 300
STRATIFIED_BY = "turns"
"""Method whose ranking the sample of edges between heads is stratified by; fixed, so that another
default method does not change which edges are compared."""
AFFORDABLE = 25
Values = Mapping[str, np.ndarray]


def main() -> None:
    """Measure what is not there yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    teacher = load_teacher("shipped")
    path = options.out / "methods.json"
    about = {"teacher": teacher.fingerprint, "pages": options.pages}
    found: dict[str, Any] = read_json(path) if path.exists() else {**about, "settings": {}}
    stored = {name: found[name] for name in about}
    if stored != about:
        raise SystemExit(f"{path} holds {stored}, asked for is {about}; choose another folder")
    for place, seed in enumerate(options.seeds):
        for ablation, metric in SETTINGS:
            wanted = {
                f"{ablation}, {metric}, {granularity}": granularity
                for granularity in GRANULARITIES
                if place == 0 or (ablation, metric, granularity) in DEFAULTS
            }
            settings = {name: found["settings"].setdefault(name, {}) for name in wanted}
            if all(str(seed) in setting for setting in settings.values()):
                continue
            sample, held_out = _samples(teacher, options.pages, seed, ablation)
            for name, granularity in wanted.items():
                if str(seed) not in settings[name]:
                    rows = _rows(teacher, sample, held_out, ablation, metric, granularity)
                    settings[name][str(seed)] = {"examples": sample.examples, **rows}
                    write_json(path, found)
                    print(f"seed {seed}: {name}", flush=True)
    write_text(options.out / "methods.md", _table(found))


def _samples(teacher: Teacher, pages: int, seed: int, ablation: str) -> tuple[Sample, Sample]:
    """Return what to measure on, and the sample whose averages stand in."""
    suffix = f" {seed}" if seed else ""
    scored, others = (
        rendered_pages(pages, f"discovery {part}{suffix}") for part in ("scored", "held out")
    )
    held_out = make_sample(teacher, others)
    if ablation == "pair":
        return make_pair_sample(teacher, scored, "answer"), held_out
    return make_sample(teacher, scored), held_out


def _rows(
    teacher: Teacher,
    sample: Sample,
    held_out: Sample,
    ablation: str,
    metric: str,
    granularity: str,
) -> dict[str, Any]:
    """Measure the effects of one setting, and score them by every method."""
    view = teacher.decoder
    means = means_for(view, sample, ablation, held_out)
    started = time.perf_counter()
    if "edges" in granularity:
        level = "heads" if granularity == "head edges" else "sublayers"
        chosen = None
        if level == "heads":
            first = edge_scores(
                view, sample, ablation, means, method=STRATIFIED_BY, metric=metric, level=level
            )
            chosen = chosen_edges(first, 0, HEAD_EDGES)[1]
        table = edge_effects(view, sample, chosen, ablation, means, metric=metric, level=level)
        exact: Values = {"->".join(edge): values for edge, values in table.by_name().items()}
        passes = table.passes
    else:
        level = granularity
        measured = effects(view, sample, None, ablation, means, metric=metric)
        exact = {n: v for n, v in measured.items() if ("." in n) == (level == "heads")}
        passes = 1.0 + len(exact)
    rows: dict[str, Any] = {"exact": {"passes": passes, "seconds": time.perf_counter() - started}}
    # what cannot be replaced differently has no effect and is not asked about
    moving = [name for name, values in exact.items() if np.abs(values).max() > 0]
    for method in METHODS:
        started = time.perf_counter()
        try:
            if "edges" in granularity:
                scored = edge_scores(
                    view, sample, ablation, means, method=method, metric=metric, level=level
                )
                values: Values = {"->".join(e): v for e, v in scored.by_name().items()}
                spent = scored.passes
            else:
                components = component_scores(
                    view, sample, ablation, means, method=method, metric=metric, level=level
                )
                values, spent = components.values, components.passes
        except CircuitSearchError as error:
            rows[method] = {"refused": str(error)}
            continue
        rows[method] = _judged(exact, values, moving, spent, time.perf_counter() - started)
    if "edges" not in granularity and ablation == "zero":
        for form in ("weights", "gate"):
            started = time.perf_counter()
            taylor = taylor_scores(view, sample, form=form, metric=metric)
            seconds = time.perf_counter() - started
            rows[f"taylor {form}"] = _judged(exact, taylor.values, moving, taylor.passes, seconds)
    return {"compared": len(moving), "methods": rows}


def _judged(
    exact: Values, values: Values, names: list[str], passes: float, seconds: float
) -> dict[str, float]:
    """Compare scores with effects, signed and as absolute values."""
    x = np.array([exact[n].mean() for n in names])
    y = np.array([values[n].mean() for n in names])
    size = np.array([np.abs(values[n]).mean() for n in names])
    sized = agreement(size, np.array([np.abs(exact[n]).mean() for n in names]))
    return {
        **agreement(y, x),
        "absolute": sized.get("spearman", float("nan")),
        "passes": passes,
        "seconds": seconds,
    }


def _over_seeds(setting: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Return the numbers of each method over seeds, those that are defined."""
    found: dict[str, dict[str, list[float]]] = {}
    for measured in setting.values():
        for method, row in measured["methods"].items():
            if "refused" not in row:
                for key, value in row.items():
                    found.setdefault(method, {}).setdefault(key, []).append(value)
    return found


def _shown(row: Mapping[str, list[float]], *keys: str) -> str:
    """Return numbers as cells of a table, mean (min to max) where there are several seeds."""
    cells = []
    for key in keys:
        values = row.get(key, [float("nan")])
        spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
        cells.append(f"{np.mean(values):.2f}{spread}")
    return " | ".join(cells)


def _mean(row: Mapping[str, list[float]], key: str) -> float:
    return float(np.mean(row.get(key, [-2.0])))


def _defaults(found: Mapping[str, Any]) -> list[str]:
    """Return the default of each granularity beside the best method of at most 25 passes."""
    lines = [
        "What is affordable exactly is measured exactly: components at one pass each, up to "
        f"{EXACT_PASSES} of them. Scores are for the rest, by these defaults; the best by "
        f"Spearman of at most {AFFORDABLE} passes beside them.",
        "",
        "| setting | seeds | exact passes | | Spearman | Pearson | slope |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for name, setting in found["settings"].items():
        rows = _over_seeds(setting)
        exact = _mean(rows.pop("exact"), "passes")
        chosen = DEFAULT_METHODS[name.split(", ")[-1]]
        cheap = [m for m, row in rows.items() if _mean(row, "passes") <= AFFORDABLE]
        best = max(cheap, key=lambda method: _mean(rows[method], "spearman"))
        keys = ("spearman", "pearson", "slope")
        lines.append(
            f"| {name} | {len(setting)} | {exact:.0f} | {chosen} | {_shown(rows[chosen], *keys)} |"
        )
        if best != chosen:
            lines.append(f"| | | | best: {best} | {_shown(rows[best], *keys)} |")
    return lines


def _table(found: Mapping[str, Any]) -> str:
    """Return the settings as Markdown tables."""
    seeds = sorted({int(seed) for setting in found["settings"].values() for seed in setting})
    listed = " ".join(map(str, seeds))
    lines = [
        "# Attribution methods against exact patching",
        "",
        f"`python tests/benchmarks/discovery/methods.py --out results/discovery --seeds {listed}`,",
        f"shipped teacher `{found['teacher']}`, per seed {found['pages']} rendered pages, averages",
        "from as many others. Spearman, Pearson and slope of mean scores on mean effects;",
        "|Spearman|: of mean absolute scores and mean absolute effects; passes: forward or",
        "backward over the sample. Mean (min to max) over page seeds where there are several.",
        f"Edges between heads: {HEAD_EDGES} per seed, stratified by rank under `{STRATIFIED_BY}`.",
        "",
        *_defaults(found),
    ]
    for name, setting in found["settings"].items():
        rows = _over_seeds(setting)
        exact = _mean(rows.pop("exact"), "passes")
        counts = "; ".join(
            f"seed {seed}: {one['compared']} compared on {one['examples']} questions"
            for seed, one in sorted(setting.items())
        )
        lines += [
            "",
            f"## {name}",
            "",
            f"{counts[0].upper()}{counts[1:]}; exact: {exact:.0f} passes.",
            "",
            "| method | passes | Spearman | Pearson | slope | \\|Spearman\\| |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for method, row in sorted(rows.items(), key=lambda one: -_mean(one[1], "spearman")):
            shown = _shown(row, "spearman", "pearson", "slope", "absolute")
            lines.append(f"| {method} | {_mean(row, 'passes'):.1f} | {shown} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
