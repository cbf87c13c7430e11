"""How an elastic teacher should be trained and read, so that it predicts distilled students.

    python tests/benchmarks/prediction/elastic.py tests/benchmarks/prediction/31.yaml
        --truth results/discovery/distilled-31.json --out results/search/elastic --work FOLDER

`distilled.py` makes the truth; of several tables, one per training seed, the mean counts. Trains
elastic teachers by the real stage, one per row of `SETTINGS`, reads every plan of the truth under
each of them in several ways, and reports Spearman with the students' quality and a 95 % interval
over plans. Rows that are in OUT.json already are not made again. OUT.md shows all searches that
OUT.json holds.

`--students FOLDER` (the `work/students` of the search that made the truth) answers the questions
with the distilled students again and measures what a perfect predictor could reach: halves of the
questions, by document, are correlated and stepped up to the full number (Spearman-Brown).
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from scipy import stats
from torch import Tensor
from truth import read_truth

from circuitsearch.configfile import load_config
from circuitsearch.core.files import read_json, write_json, write_text
from circuitsearch.core.plan import Plan
from circuitsearch.pipeline import Pipeline
from circuitsearch.progress import reporter
from circuitsearch.search.exhaustive import sweep
from circuitsearch.stages.ranking import interpolated, train_elastic
from circuitsearch.students import build_student, greedy_answers
from circuitsearch.students.plan_view import neuron_order
from circuitsearch.students.walk import Walk
from circuitsearch.teacher.decoders import ResidualDecoder, token_loss
from circuitsearch.teacher.metrics import anls
from circuitsearch.workspace import Workspace

SHARES = (0.9, 0.8, 0.75, 0.7, 0.6)
"""Of the way from the teacher's weights to the elastic teacher's (`elastic.interpolation`)."""
WEIGHTS = (0.05, 0.1, 0.15, 0.2, 0.3)
"""Of the untrained loss beside the elastic one (`elastic.untrained`)."""
DRAWS, SPLITS, TRAIN_QUESTIONS = 2000, 200, 1000


class Setting(NamedTuple):
    """One elastic training; `batch` questions per step."""

    rule: str
    steps: int
    seed: int = 0
    batch: int = 64
    rate: float = 1e-3

    @property
    def name(self) -> str:
        """Return the row's name in the result."""
        return (
            f"{self.rule}, {self.steps} steps of {self.batch}, rate {self.rate:g}, seed {self.seed}"
        )


SETTINGS = (
    Setting("uniform", 3600, batch=32),
    Setting("uniform", 3600, seed=1, batch=32),
    Setting("uniform", 3600, seed=2, batch=32),
    Setting("uniform", 3600, seed=3, batch=32),
    Setting("uniform", 3600, seed=4, batch=32),
    Setting("uniform", 3600, seed=5, batch=32),
    Setting("uniform", 1800, seed=1),
    Setting("uniform", 1800),
    Setting("uniform", 7200, batch=16),
    Setting("uniform", 7200, seed=1, batch=16),
    Setting("even", 1800),
    Setting("even", 1800, seed=1),
    Setting("even", 1800, seed=2),
    Setting("uniform", 1200),
    Setting("sandwich", 1800),
    Setting("weighted", 1800),
    Setting("uniform", 1800, rate=2e-3),
)
MEANS = (
    (Setting("even", 1800), Setting("even", 1800, seed=1)),
    (Setting("uniform", 1800), Setting("uniform", 1800, seed=1)),
)
"""Settings whose readings are averaged: two elastic teachers in place of one."""


def main() -> None:
    """Train, read and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("search", type=Path)
    parser.add_argument("--truth", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="keeps features and trainings")
    parser.add_argument("--students", type=Path, help="weights of the distilled students")
    parser.add_argument("--rows", type=int, default=len(SETTINGS), help="first rows of SETTINGS")
    options = parser.parse_args()
    config = load_config(options.search)
    if options.work is not None:
        config = config.model_copy(update={"output": options.work})
    pipeline = Pipeline(Workspace(config, reporter()))
    truth = read_truth(options.truth)
    plans = truth.plans
    path = options.out.with_suffix(".json")
    stored = read_json(path) if path.exists() else {}
    found = stored.setdefault(config.name, {"readings": {}, "seconds": {}})
    texts = [str(plan) for plan in plans]
    if found.get("plans") != texts:
        found.update(readings={}, seconds={})
        found.pop("untrained", None)
    columns = {"quality": truth.quality, "loss": truth.loss, "by seed": truth.by_seed}
    found.update(
        plans=texts,
        feasible=truth.feasible,
        truth={name: values.tolist() for name, values in columns.items()},
    )
    if "untrained" not in found:
        losses, _ = _values(pipeline, pipeline.teacher.decoder, "select", plans, None, token_loss)
        found["untrained"] = losses.mean(dim=1).tolist()
    for setting in SETTINGS[: options.rows]:
        row = found["readings"].get(setting.name, {})
        if not {_between(share) for share in SHARES} <= {*row}:
            started = time.process_time()
            view = _trained(pipeline, setting)
            if not row:  # a training that is on file takes no time that says anything
                found["seconds"][setting.name] = round(time.process_time() - started, 1)
                row = _readings(pipeline, view, plans)
            teacher = pipeline.teacher.decoder
            for share in SHARES:
                mixed = interpolated(teacher, view, share)
                losses, _ = _values(pipeline, mixed, "select", plans, None, token_loss)
                row[_between(share)] = (-losses.mean(dim=1)).tolist()
            found["readings"][setting.name] = row
            write_json(path, stored)
    if options.students is not None:
        found["reliability"] = _reliability(pipeline, plans, options.students)
    _judge(found)
    write_json(path, stored)
    write_text(options.out.with_suffix(".md"), _report(stored))


def _trained(pipeline: Pipeline, setting: Setting) -> ResidualDecoder:
    """Train an elastic teacher by the pipeline's stage."""
    config = pipeline.work.config
    elastic = config.elastic.model_copy(
        update={
            "steps": setting.steps,
            "batch": setting.batch,
            "learning_rate": setting.rate,
            "rule": setting.rule,
        }
    )
    changed = config.model_copy(update={"elastic": elastic, "seed": setting.seed})
    view = train_elastic(
        Workspace(changed, pipeline.work.say),
        pipeline.teacher,
        pipeline.space,
        pipeline.features["train"],
        worths=lambda: pipeline.worths,
    )
    if view is None:
        raise SystemExit("the search has no elastic teacher")
    return view


def _between(share: float) -> str:
    return f"loss at {share:.0%} of the way from the teacher"


def _readings(
    pipeline: Pipeline, view: ResidualDecoder, plans: Sequence[Plan]
) -> dict[str, list[float]]:
    """Return each reading of every plan, larger is better."""
    select, train = pipeline.features["select"], pipeline.features["train"]
    some = random.Random(0).sample(range(len(train.examples)), TRAIN_QUESTIONS)
    losses, asked = _values(pipeline, view, "select", plans, None, token_loss)
    lengths = [len(select.examples[i].ids) - select.examples[i].prompt for i in asked]
    hits, _ = _values(pipeline, view, "select", plans, None, _hits)
    margins, _ = _values(pipeline, view, "select", plans, None, _margins)
    learnt, _ = _values(pipeline, view, "train", plans, some, token_loss)
    whole = torch.exp(-losses * torch.tensor(lengths))
    return {
        "loss": (-losses.mean(dim=1)).tolist(),
        "loss on training pages": (-learnt.mean(dim=1)).tolist(),
        "share of answers right under teacher forcing": (hits == 1).double().mean(dim=1).tolist(),
        "share of tokens right under teacher forcing": hits.mean(dim=1).tolist(),
        "margin": margins.mean(dim=1).tolist(),
        "probability of a token": torch.exp(-losses).mean(dim=1).tolist(),
        "probability of the answer": whole.mean(dim=1).tolist(),
        "median loss of the questions": (-losses.median(dim=1).values).tolist(),
    }


def _values(
    pipeline: Pipeline,
    view: ResidualDecoder,
    split: str,
    plans: Sequence[Plan],
    questions: Sequence[int] | None,
    judge: Any,
) -> tuple[Tensor, list[int]]:
    """Return values [plans, questions] and the questions in their order."""
    neurons = neuron_order(pipeline.teacher.decoder)  # by which widths were cut in training
    walk = Walk(view, pipeline.features[split], judge=judge, neurons=neurons)
    pieces, asked = [], []
    for some in walk.chunks(plans, questions):
        chunk = walk.chunk(some, plans)
        met = [plan for plan, _ in sweep(plans, chunk.root, chunk.expand, chunk.leaf)]
        places = {plan: place for place, plan in enumerate(met)}
        pieces.append(chunk.values()[[places[plan] for plan in plans]])
        asked += some
    return torch.cat(pieces, dim=1), asked


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(dim=-1) == labels).float()


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the right token minus the best other one."""
    right = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return right[:, 0] - others.max(dim=1).values


def _judge(found: dict[str, Any]) -> None:
    """Correlate every reading with the truth."""
    quality = np.array(found["truth"]["quality"])
    readings = {name: dict(reading) for name, reading in found["readings"].items()}
    for one, other in MEANS:
        if one.name in readings and other.name in readings:
            pair = readings[one.name], readings[other.name]
            readings[f"mean of: {one.name}; and: {other.name}"] = {
                name: np.mean([reading[name] for reading in pair], axis=0)
                for name in pair[0]
                if name in pair[1]
            }
    untrained = np.array(found["untrained"])
    for reading in readings.values():
        for weight in WEIGHTS:  # as `stages.mixed` has it
            both = -((-np.array(reading["loss"])) ** (1 - weight)) * untrained**weight
            reading[f"loss, untrained loss to the power {weight}"] = both.tolist()
    found["spearman"] = {
        setting: {name: _agreement(values, quality) for name, values in reading.items()}
        for setting, reading in readings.items()
    }
    found["own loss"] = _agreement(-np.array(found["truth"]["loss"]), quality)


def _agreement(values: Sequence[float] | np.ndarray, quality: np.ndarray) -> dict[str, float]:
    """Return Spearman, its 95 % interval over plans, and how good the best plan found is."""
    x = np.array(values)
    places = np.random.default_rng(0).integers(0, len(x), (DRAWS, len(x)))
    drawn = _correlations(
        stats.rankdata(x[places], axis=1), stats.rankdata(quality[places], axis=1)
    )
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    top = np.argsort(-x)[:3]
    return {
        "spearman": round(float(stats.spearmanr(x, quality).statistic), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "best of top 3": round(float(quality[top].max()), 4),
    }


def _correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of each row of two tables."""
    one, other = (table - table.mean(axis=1, keepdims=True) for table in (one, other))
    product = (one * other).sum(axis=1)
    return product / np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))


def _reliability(pipeline: Pipeline, plans: Sequence[Plan], folder: Path) -> dict[str, Any]:
    """Answer with the distilled students again and correlate halves of the questions."""
    features, teacher = pipeline.features["select"], pipeline.teacher
    scores = []
    kept = []
    for place, plan in enumerate(plans):
        files = sorted(folder.glob(f"{plan.hash}-*.safetensors"))
        if not files:
            continue
        student = build_student(teacher, plan)
        with torch.no_grad():
            named = dict(student.decoder.named_parameters())
            for name, weights in load_file(files[0]).items():
                named[name].copy_(weights)
        answers = greedy_answers(student, features, teacher.tokens)
        golds = [example.question.answers for example in features.examples]
        scores.append([anls(answer, gold) for answer, gold in zip(answers, golds, strict=True)])
        kept.append(place)
    table = np.array(scores)
    documents = np.array([features.pages[e.page].document for e in features.examples])
    names = np.unique(documents)
    generator = np.random.default_rng(0)
    halves = []
    for _ in range(SPLITS):
        first = np.isin(documents, generator.permutation(names)[: len(names) // 2])
        one, other = table[:, first].mean(axis=1), table[:, ~first].mean(axis=1)
        halves.append(stats.spearmanr(one, other).statistic)
    half = float(np.mean(halves))
    whole = 2 * half / (1 + half)
    return {
        "plans": len(kept),
        "questions": len(documents),
        "documents": len(names),
        "spearman of halves": round(half, 4),
        "stepped up to all questions": round(whole, 4),
        "largest expected spearman": round(float(np.sqrt(whole)), 4),
    }


def _report(stored: Mapping[str, Any]) -> str:
    """Return all searches as Markdown, settings by Spearman of their loss."""
    lines = [
        "# How to train and read the elastic teacher",
        "",
        "Spearman of each reading with the distilled students' ANLS (300 steps each), 95 % "
        "interval over plans. Made by `tests/benchmarks/prediction/elastic.py`. CPU seconds are "
        "those of a shared machine; where they are missing, the training was interrupted.",
    ]
    for name, found in stored.items():
        own, by_seed = found["own loss"], np.array(found["truth"]["by seed"])
        lines += [
            "",
            f"## {name}",
            "",
            f"{len(found['plans'])} distilled plans of {found['feasible']} feasible ones, mean of "
            f"{len(by_seed)} training seeds. The students' own loss on the same pages reaches "
            f"{own['spearman']:.3f} [{own['low']:.3f}, {own['high']:.3f}]."
            + (
                f" Between two seeds: {stats.spearmanr(*by_seed[:2]).statistic:.3f}."
                if len(by_seed) > 1
                else ""
            ),
        ]
        if "reliability" in found:
            one = found["reliability"]
            lines += [
                "",
                f"Reliability of the truth ({one['plans']} students asked again, halves of "
                f"{one['documents']} documents): {one['spearman of halves']:.3f} between halves, "
                f"{one['stepped up to all questions']:.3f} for all questions; a perfect predictor "
                f"of the quality on fresh pages would reach "
                f"{one['largest expected spearman']:.3f}. Training seeds are not part of this.",
            ]
        else:
            lines += ["", "Reliability of the truth: unknown, it holds no data per question."]
        lines += [
            "",
            "| setting | loss | interval | best of top 3 | CPU s |",
            "|---|---:|---|---:|---:|",
        ]
        order = sorted(found["spearman"].items(), key=lambda one: -one[1]["loss"]["spearman"])
        for setting, row in order:
            one = row["loss"]
            lines.append(
                f"| {setting} | {one['spearman']:.3f} | {one['low']:.3f} to {one['high']:.3f} | "
                f"{one['best of top 3']:.3f} | {found['seconds'].get(setting, '')} |"
            )
        best = order[0][1]
        read = dict.fromkeys(reading for _, row in order for reading in row)
        none = {"spearman": -1.0}
        readings = sorted(read, key=lambda reading: -best.get(reading, none)["spearman"])
        lines += ["", "| reading | " + " | ".join(setting for setting, _ in order) + " |"]
        lines.append("|---|" + "---:|" * len(order))
        for reading in readings:
            cells = [
                f"{row[reading]['spearman']:.3f}" if reading in row else "" for _, row in order
            ]
            lines.append(f"| {reading} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
