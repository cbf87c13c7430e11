"""Ranking plans without training them one by one: on the teacher, and on the elastic teacher."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from circuitsearch.core.errors import DataError
from circuitsearch.core.files import alone, content_hash, read_json, seed_from, write_json
from circuitsearch.core.plan import Plan
from circuitsearch.search.elastic import LISTED, plan_of_step
from circuitsearch.search.exhaustive import sweep
from circuitsearch.search.sampled import sampled
from circuitsearch.search.space import Space
from circuitsearch.students.features import Features
from circuitsearch.students.plan_view import NeuronOrder
from circuitsearch.students.replacements import Replacements
from circuitsearch.students.training.distill import distill
from circuitsearch.students.training.trainer import trainable, weights_digest
from circuitsearch.students.walk import Walk
from circuitsearch.teacher.decoders import ResidualDecoder, residual_decoder
from circuitsearch.teacher.loading import Teacher
from circuitsearch.workspace import Workspace

from .weights import recipe_of, train_once

__all__ = [
    "Ranking",
    "interpolated",
    "mixed",
    "plan_losses",
    "rank",
    "train_elastic",
    "weights_hash",
]


Ranking = list[tuple[Plan, float]]
"""Plans with their losses in nats, best first."""

_SAMPLE = 2000
"""Random plans that stand for a space too large to list, and plans that the swap search adds."""
_MEMORY = 2**30


def train_elastic(
    work: Workspace,
    teacher: Teacher,
    space: Space,
    features: Features,
    *,
    worths: Callable[[], Mapping[str, float]] | None = None,
    replacements: Replacements | None = None,
) -> ResidualDecoder | None:
    """Distil a copy of the decoder under another feasible plan at every step.

    Every plan is then partly adapted, and its loss under this decoder ranks what distillation can
    make of it (the losses on the untouched teacher do not). Widths are cut as `build_student` cuts
    the teacher; hand `neuron_order(teacher.decoder)` to `rank`, because the weights move.

    Args:
        work: the search.
        teacher: whose decoder is copied.
        space: plans to adapt.
        features: training pages.
        worths: gives the worth of each unit by name; called for the rule `weighted` only.
        replacements: numbers for the space's replacements.
    """
    config = work.config
    if config.elastic.steps == 0:
        return None
    decoder = copy.deepcopy(teacher.model.decoder).requires_grad_(True)
    view = residual_decoder(decoder)
    seed = seed_from("elastic", config.seed)
    rule = config.elastic.rule
    weights = None
    if rule == "weighted" and worths is not None:
        known = worths()
        weights = [known[name] for name in space.names]
    plans = plan_of_step(rule, space, seed, weights)
    elastic = config.elastic
    recipe = replace(
        recipe_of(config, steps=elastic.steps, learning_rate=elastic.learning_rate),
        batch=elastic.batch,
    )
    key = [teacher.fingerprint, features.key, space.to_json(), repr(recipe), seed, rule]
    key += weights or []
    key += [] if replacements is None else [replacements.fingerprint]
    path = config.cached / f"elastic-{content_hash(key)}.safetensors"

    def train(state: Path) -> None:
        with work.say.stage(f"training the elastic teacher ({recipe.steps} steps)") as tell:
            distill(
                view,
                features,
                recipe,
                seed=seed,
                state_file=state,
                plan_of_step=plans,
                replacements=replacements,
                teacher=teacher.decoder,
                on_step=lambda s: tell(s.step, s.steps, s.words),
            )

    with nullcontext() if path.exists() else alone(path):  # another worker may be training it
        train_once(view, path, train)
    decoder.requires_grad_(False)
    return view


def interpolated(teacher: ResidualDecoder, elastic: ResidualDecoder, share: float) -> Any:
    """Return a decoder between teacher and elastic teacher, as WiSE-FT (arXiv 2109.01903) mixes.

    A student of a short distillation stays near the teacher's weights, which it begins with. The
    elastic teacher trains longer and learns to do without parts that no such student can spare.

    Args:
        teacher: the teacher's decoder.
        elastic: the elastic teacher's; neither is changed.
        share: 0 gives the teacher's weights, 1 the elastic teacher's.
    """
    whole: Any = elastic
    view: Any = residual_decoder(copy.deepcopy(whole.model))
    first = trainable(teacher)
    with torch.no_grad():
        for name, weights in trainable(view).items():
            weights.lerp_(first[name].to(weights.device), 1 - share)
    return view


def rank(
    work: Workspace,
    space: Space,
    view: ResidualDecoder,
    features: Features,
    phase: str,
    *,
    neurons: NeuronOrder | None = None,
    replacements: Replacements | None = None,
    limit: int = LISTED,
    sample: int = _SAMPLE,
    memory_bytes: float = _MEMORY,
) -> Ranking:
    """Return plans with their mean answer loss under a view, best first.

    These are all feasible plans, or, where there are more than `limit`, a random sample and what a
    swap search finds from its best (`search.sampled.sampled`). What is done stays on disk, so a
    killed ranking goes on with the chunk of questions it was in.

    Args:
        work: the search.
        space: the plans.
        view: whose losses.
        features: pages to rank on.
        phase: name of the result.
        neurons: by which widths are cut; by default the view's own (`Walk`).
        replacements: numbers for the space's replacements, fitted to the teacher.
        limit: most plans that are ranked one and all.
        sample: random plans of a larger space, and as many for the swap search.
        memory_bytes: what a chunk of questions may take (`Walk`).
    """
    key = [phase, features.key, space.to_json(), weights_hash(view), limit, sample]
    key += [] if neurons is None else [[str(s), *order] for s, order in sorted(neurons.items())]
    key += [] if replacements is None else [replacements.fingerprint]
    folder = work.config.work / f"ranking-{phase}-{content_hash(key)}"
    walk = Walk(
        view, features, memory_bytes=memory_bytes, neurons=neurons, replacements=replacements
    )

    def compute() -> list[list[Any]]:
        if not space.exceeds(limit):
            plans = list(space.enumerate())
            with work.say.stage(f"ranking all {len(plans)} plans ({phase})") as tell:
                losses = plan_losses(walk, plans, folder, tell)
            return [[str(plan), loss] for plan, loss in zip(plans, losses, strict=True)]
        with work.say.stage(f"ranking a sample of {space.count()} plans ({phase})") as tell:
            judged = 0

            def losses_of(plans: Sequence[Plan]) -> list[float]:
                nonlocal judged
                before, judged = judged, judged + len(plans)
                return plan_losses(
                    walk,
                    plans,
                    folder,
                    lambda done, of: tell(before + done * len(plans) // of, 2 * sample),
                )

            ranked = sampled(
                space,
                losses_of,
                sample=sample,
                swaps=sample,
                seed=seed_from("sample", work.config.seed),
            )
        return [[str(plan), loss] for plan, loss in ranked]

    rows = work.kept(f"ranking-{phase}", key, compute)
    shutil.rmtree(folder, ignore_errors=True)
    ranked = [(Plan.parse(text), float(loss)) for text, loss in rows]
    return sorted(ranked, key=lambda row: (row[1], str(row[0])))


def mixed(ranking: Ranking, other: Ranking, weight: float) -> Ranking:
    """Return the plans of two rankings by the weighted geometric mean of their losses, best first.

    What a student reaches after distillation depends on what recovery can give (its loss under the
    elastic teacher) and, less, on where it begins (its loss without training).

    Args:
        ranking: plans with their losses.
        other: the same plans with other losses.
        weight: of the other losses, from 0 to 1.
    """
    losses = dict(other)
    found = [(plan, loss ** (1 - weight) * losses[plan] ** weight) for plan, loss in ranking]
    return sorted(found, key=lambda row: (row[1], str(row[0])))


def plan_losses(
    walk: Walk, plans: Sequence[Plan], folder: Path, tell: Callable[[int, int], None]
) -> list[float]:
    """Return the mean loss of each plan over all questions; each chunk's sums are kept on disk."""
    chunks = walk.chunks(plans)
    name = content_hash([[plan.hash for plan in plans], chunks])
    total, sums = len(plans) * len(chunks), torch.zeros(len(plans), dtype=torch.float64)
    places = {plan: place for place, plan in enumerate(plans)}
    for index, questions in enumerate(chunks):
        path = folder / f"{name}-{index}.json"
        found = _read(path)
        if found is None:
            found = [0.0] * len(plans)
            chunk = walk.chunk(questions, plans)
            met = []
            for plan, _ in sweep(plans, chunk.root, chunk.expand, chunk.leaf):
                met.append(places[plan])
                tell(index * len(plans) + len(met), total)
            for place, loss in zip(met, chunk.values().sum(dim=1).tolist(), strict=True):
                found[place] = loss
            write_json(path, found)
        sums += torch.tensor(found, dtype=torch.float64)
        tell((index + 1) * len(plans), total)
    means: list[float] = (sums / len(walk.features.examples)).tolist()
    return means


def _read(path: Path) -> list[float] | None:
    """Return what an earlier run left of a chunk, if anything can be read."""
    try:
        return list(read_json(path)) if path.exists() else None
    except DataError:
        return None


def weights_hash(view: Any) -> str:
    """Return a hash of the bytes of a view's trainable weights."""
    return weights_digest(dict(sorted(trainable(view).items())))[:16]
