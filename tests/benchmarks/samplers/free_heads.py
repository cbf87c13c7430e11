"""Samplers where plans are any subset of heads: do they beat the scores that they start from?

    OMP_NUM_THREADS=1 python tests/benchmarks/samplers/free_heads.py
        tests/benchmarks/samplers/free_heads.yaml --out results/search/free-heads

Distilling thousands of plans of such a space is out of reach, so the quality of a plan is its loss
under the elastic teacher, which ranks distilled students (`results/search/elastic.md`): real
numbers of a real model that no sampler is told. The prior is the teacher's effects. `prior` takes
plans by the integer program over the effects alone and never learns; the others see the losses.
Every sampler runs as in a study, with several seeds; a plan is measured once.

Writes OUT.json (best loss so far after every evaluation) and OUT.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from circuitsearch.configfile import load_config
from circuitsearch.core.files import write_json, write_text
from circuitsearch.pipeline import Pipeline
from circuitsearch.progress import reporter
from circuitsearch.search.samplers import REGISTRY, History, Prior
from circuitsearch.search.space import Bits
from circuitsearch.students.evaluate import answer_loss_of
from circuitsearch.students.plan_view import PlanView, neuron_order
from circuitsearch.workspace import Workspace

SHOWN = (1, 5, 10, 20, 50, 100, 200)


class Losses:
    """Elastic loss of a plan in nats per question, measured once."""

    def __init__(self, pipeline: Pipeline) -> None:
        """Train the elastic teacher, or load it."""
        view = pipeline.elastic
        if view is None:
            raise SystemExit("the search leaves the elastic teacher out; set elastic.steps")
        self._view, self._space = view, pipeline.space
        self._features = pipeline.features["select"]
        self._ranking = neuron_order(pipeline.teacher.decoder)
        self.known: dict[Bits, float] = {}

    def __call__(self, bits: Bits) -> float:
        """Return the loss."""
        if bits not in self.known:
            view = PlanView(self._view, self._space.plan(bits), neurons=self._ranking)
            self.known[bits] = float(answer_loss_of(view, self._features).double().mean())
        return self.known[bits]


def main() -> None:
    """Run every sampler and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("search", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    names = [name for name in REGISTRY if name != "elastic"]  # that one is told the truth
    parser.add_argument("--samplers", nargs="*", choices=names, default=names)
    options = parser.parse_args()
    pipeline = Pipeline(Workspace(load_config(options.search), reporter(quiet=False)))
    prior = Prior(pipeline.worths, ())
    losses = Losses(pipeline)
    result: dict[str, Any] = {
        "search": pipeline.work.config.name,
        "units": len(pipeline.space.units),
        "questions": len(pipeline.features["select"].examples),
        "seeds": options.seeds,
        "best": {},
        "overhead": {},
    }
    for name in options.samplers:
        runs = [_run(name, prior, losses, pipeline, seed, options) for seed in range(options.seeds)]
        result["best"][name] = [curve for curve, _ in runs]
        result["overhead"][name] = float(np.median([spent for _, spent in runs]))
        write_json(options.out.with_suffix(".json"), result)
    write_text(options.out.with_suffix(".md"), table(result))


def _run(
    name: str, prior: Prior, losses: Losses, pipeline: Pipeline, seed: int, options: Any
) -> tuple[list[float], float]:
    """Return the best loss after each evaluation, and seconds per proposal."""
    space = pipeline.space
    sampler = REGISTRY[name](space, prior, seed, "single")
    tried: list[Bits] = []
    values: list[float] = []
    spent = 0.0
    for _ in range(options.evaluations):
        plans = np.array(tried, dtype=float).reshape(len(tried), len(space.units))
        started = time.process_time()
        # the answers' probability (geometric mean): more is better, and 0 means that nothing works
        quality = np.exp(-np.array(values))
        tried.append(sampler.propose(History(plans, quality, frozenset(tried))))
        spent += time.process_time() - started
        values.append(losses(tried[-1]))
    return np.minimum.accumulate(values).tolist(), spent / options.evaluations


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    length = min(len(one[0]) for one in result["best"].values())
    shown = [count for count in SHOWN if count <= length]
    lines = [
        f"# Samplers over free subsets of heads: {result['search']}",
        "",
        f"{result['units']} bits. Best elastic loss found (nats per question, "
        f"{result['questions']} questions; lower is better) after so many evaluations, mean over "
        f"{result['seeds']} seeds, standard deviation at the last, and processor milliseconds "
        "per proposal. Made by `tests/benchmarks/samplers/free_heads.py`.",
        "",
        "| sampler | " + " | ".join(f"@{count}" for count in shown) + " | sd | ms |",
        "|---|" + "---:|" * (len(shown) + 2),
    ]
    rows = sorted(result["best"].items(), key=lambda row: np.mean([c[-1] for c in row[1]]))
    for name, curves in rows:
        array = np.array(curves)
        cells = [f"{array[:, count - 1].mean():.2f}" for count in shown]
        cells += [f"{array[:, shown[-1] - 1].std():.2f}", f"{1e3 * result['overhead'][name]:.0f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
