"""Circuits, paths, heads and propositions on the shipped teacher: the findings of results/LOG.md.

    OMP_NUM_THREADS=1 python tests/benchmarks/discovery/findings.py --out results/discovery

circuits      faithfulness of circuits of edges between heads (margin, mean ablation), ranked by
              RelP, by the clean gradient and at random; scored and measured on different pages
paths         sum of path scores against the measured effect of replacing all sources; wall times
heads         Spearman of head statistics with exact effects, under every reading too
propositions  what M3 cleans and what case M0 holds (Donut-MINT, propositions 2 and 3)

Every seed has pages of its own. Writes `findings.json` and `findings.md`; some 6 minutes on one
thread.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from findings_table import table

from circuitsearch.core.files import write_json, write_text
from circuitsearch.discovery.ablation import means_for
from circuitsearch.discovery.attribution.engine import edge_scores
from circuitsearch.discovery.graph.curve import AREAS, Curve
from circuitsearch.discovery.graph.faithfulness import Options, measure_faithfulness
from circuitsearch.discovery.lens.case import case_rates
from circuitsearch.discovery.lens.heads import head_rows
from circuitsearch.discovery.lens.reprojection import nearest_tokens, reprojection_effects
from circuitsearch.discovery.lens.stream import walk
from circuitsearch.discovery.metrics import measure
from circuitsearch.discovery.patching.components import effects, sample_metric
from circuitsearch.discovery.paths.best import best_paths
from circuitsearch.discovery.paths.keyword import keyword_paths
from circuitsearch.discovery.paths.scored import ScoreOptions, path_scores
from circuitsearch.discovery.paths.search import edge_shares, top_paths
from circuitsearch.discovery.sample import Sample, make_sample
from circuitsearch.discovery.tables import EdgeTable
from circuitsearch.teacher.decoders import ResidualDecoder
from circuitsearch.teacher.documents.collate import IGNORED
from circuitsearch.teacher.documents.synthetic import rendered_pages
from circuitsearch.teacher.loading import Teacher, load_teacher

RANDOM_RANKINGS, STRONGEST = 20, 10
SUMS = (
    ("C3<q>", "zero", "gate"),
    ("C3<q>", "mean", "gate"),
    ("C3<q>", "resample", "gate"),
    ("C3<q>", "zero", "jacobian"),
    ("C3<q>", "zero", "linear"),
    ("logits", "zero", "gate"),
    ("logits", "mean", "gate"),
)
"""Target, what replaces embedding and encoder, and how feed-forwards are linearised."""
TABULATED = (0, 4)
"""Endings tabulated by the path table and the best-first search: none, and the default."""
EFFECTS = (("zero", "answer_loss"), ("mean", "margin"))


def main() -> None:
    """Measure every seed, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    teacher = load_teacher("shipped")
    found: dict[str, Any] = {
        "teacher": teacher.fingerprint,
        "pages": options.pages,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],
        "random rankings": RANDOM_RANKINGS,
        "seeds": {},
    }
    for seed in options.seeds:
        started = time.perf_counter()
        found["seeds"][str(seed)] = _one_seed(teacher, options.pages, seed)
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    write_json(options.out / "findings.json", found)
    write_text(options.out / "findings.md", table(found))


def _one_seed(teacher: Teacher, pages: int, seed: int) -> dict[str, Any]:
    """Measure everything on the pages of one seed."""
    scored, held_out, others = (
        make_sample(teacher, rendered_pages(pages, f"findings {part} {seed}"))
        for part in ("scored", "held out", "measured")
    )
    view = teacher.decoder
    means = means_for(view, scored, "mean", held_out)
    edges = {
        method: edge_scores(
            view, scored, "mean", means, method=method, metric="margin", level="heads"
        )
        for method in ("relp", "eap")
    }
    # random rankings do not depend on scores: enough of them once
    curves = {
        method: measure_faithfulness(
            view,
            others,
            edges[method],
            "mean",
            means,
            metric="margin",
            options=Options(random_rankings=rankings, seed=seed),
        )
        for method, rankings in (("relp", RANDOM_RANKINGS), ("eap", 1))
    }
    relp, eap = curves["relp"], curves["eap"]
    return {
        "questions": {"scored": scored.examples, "measured": others.examples},
        "circuits": {
            "edges": relp.edges,
            "gap": relp.gap.value,
            "relp": _curves(relp.signed, relp.absolute),
            "eap": _curves(eap.signed, eap.absolute),
            "random": _curves(relp.random, relp.random),
        },
        "sums": _sums(view, others, held_out),
        "times": _times(teacher, others, edges["relp"]),
        "heads": _heads(view, others, held_out),
        "propositions": _propositions(teacher, others),
    }


def _curves(signed: Curve, absolute: Curve) -> dict[str, Any]:
    """Return the areas, CPR of the signed and CMD of the absolute ranking, and f of both."""
    curves = {"signed": signed, "absolute": absolute}
    areas = {
        name: getattr(signed if name.startswith("cpr") else absolute, name).value for name in AREAS
    }
    shares = {
        kind: {f"{p:g}": curve.at(p).value for p in curve.fractions}
        for kind, curve in curves.items()
    }
    return {**areas, "f": shares}


def _sums(view: ResidualDecoder, sample: Sample, held_out: Sample) -> dict[str, Any]:
    """Return the sum of all path scores beside the measured effect, in the metric `logit`."""
    found = {}
    for target, ablation, feed in SUMS:
        means = means_for(view, sample, ablation, held_out)
        asked = ScoreOptions(target=target, ablation=ablation, feed=feed)
        scores = path_scores(view, sample, asked, means)
        found[f"{target}, {ablation}, {feed}"] = {
            "paths": len(scores.paths),
            "sum": scores.total,
            "effect": scores.effect,
        }
    return found


def _times(teacher: Teacher, sample: Sample, edges: EdgeTable) -> dict[str, Any]:
    """Return wall times of path tables and searches, and what bounds left to expand."""
    view = teacher.decoder
    found: dict[str, Any] = {}
    for name in ("paper", "full"):
        paths, spent = _timed(keyword_paths, teacher, sample, sublayers=name)
        found[f"keyword table, {name}"] = {"paths": len(paths.paths), **spent}
    for tabulated in TABULATED:
        asked = ScoreOptions(target="C3<q>", tabulated=tabulated)
        scores, spent = _timed(path_scores, view, sample, asked)
        starts = sum(len(path.through) == (path.source == "encoder") for path in scores.paths)
        found[f"scored paths to C3<q>, {tabulated} tabulated"] = {
            "paths": len(scores.paths),
            **spent,
            "applications": scores.applications,
        }
        best, spent = _timed(best_paths, view, sample, STRONGEST, asked)
        found[f"best {STRONGEST} paths to C3<q>, {tabulated} tabulated"] = {
            "paths": best.count,
            **spent,
            "applications": best.applications,
            "expanded": best.expanded,
            "proven": best.proven,
            # a start with n choices behind it has 2^(n+1) - 1 beginnings and 2^n paths
            **({} if tabulated else {"beginnings": 2 * best.count - starts}),
        }
    weights = edge_shares({edge: float(v.mean()) for edge, v in edges.by_name().items()})
    chains, spent = _timed(top_paths, weights, STRONGEST)
    found[f"best {STRONGEST} chains of {len(weights)} edges"] = {"paths": chains.count, **spent}
    return found


def _timed(
    function: Callable[..., Any], *arguments: Any, **named: Any
) -> tuple[Any, dict[str, float]]:
    """Return what a function returns, and the seconds it took: wall and processor."""
    wall, processor = time.perf_counter(), time.process_time()
    result = function(*arguments, **named)
    return result, {
        "wall": time.perf_counter() - wall,
        "processor": time.process_time() - processor,
    }


def _heads(view: ResidualDecoder, sample: Sample, held_out: Sample) -> dict[str, Any]:
    """Return statistic and effects of every head, and agreements over all readings."""
    rows = head_rows(view, sample)
    statistics = rows.table()
    names = [entry.head for entry in statistics.heads]
    found: dict[str, Any] = {"statistic": {e.head: e.value for e in statistics.heads}}
    for ablation, metric in EFFECTS:
        means = means_for(view, sample, ablation, held_out)
        measured = effects(view, sample, names, ablation, means, metric=metric)
        found[f"{ablation}, {metric}"] = {
            "effects": {name: float(values.mean()) for name, values in measured.items()},
            "agreement": statistics.agreement(measured),
            "readings": _ranges(rows.agreements(measured)),
        }
    return found


def _ranges(agreements: Mapping[Any, Mapping[str, float]]) -> dict[str, list[float]]:
    """Return smallest and largest agreement of each group of heads over readings."""
    groups = {group for found in agreements.values() for group in found}
    values = {g: [found[g] for found in agreements.values() if g in found] for g in groups}
    return {group: [min(values[group]), max(values[group])] for group in sorted(groups)}


def _propositions(teacher: Teacher, sample: Sample) -> dict[str, Any]:
    """Return losses (nats) with and without what M3 cleans, and what M0 makes of case."""
    view = teacher.decoder
    losses: dict[str, list[np.ndarray]] = {}
    with torch.no_grad():
        for batch, states in sample.batches:
            walked = walk(view, batch.ids, view.memory(states, batch.pages))
            places = {name: (stream, written) for name, stream, written in walked}
            end, (before_m3, c3) = places["M3"][0], places["C3"]
            ends = {"clean": end, "without M3": before_m3, "C3's write alone": c3}
            scored = batch.labels != IGNORED
            first = scored & (scored.cumsum(dim=1) == 1)
            for name, end in ends.items():
                loss = measure(view, end, batch.labels.where(first, IGNORED))
                losses.setdefault(name, []).append(loss.double().numpy())
    nearest = nearest_tokens(view, sample, places=("embedding", "S0", "C0", "M0"))
    collapsed = reprojection_effects(view, sample)
    return {
        "first token's loss": {n: float(np.concatenate(v).mean()) for n, v in losses.items()},
        "case": case_rates(nearest, teacher.tokens.tokenizer),
        "answer loss": float(sample_metric(view, sample).mean()),
        "rise when collapsed": {name: float(v.mean()) for name, v in collapsed.items()},
    }


if __name__ == "__main__":
    main()
