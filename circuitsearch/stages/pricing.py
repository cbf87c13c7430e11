"""What a search will take, before it is run: costs, trainings, disk, and time by a measurement.

The time is that of the parts that grow with the settings: scores, paths and the circuit graph by
page; encoding pages, training, answering. What is asked of the teacher about plans (rankings,
proposals of published methods, pairs for the warm start), fits of replacements, measurements for a
measured budget and the report come on top and are not counted; nor are plans that two sources
share, which are trained once, so the trainings are an upper bound.
"""

from __future__ import annotations

import copy
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from circuitsearch.core.cost import ACCOUNTINGS, cost
from circuitsearch.core.files import seed_from
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.progress import QuietReporter
from circuitsearch.search.elastic import plan_of_step
from circuitsearch.search.knapsack import solve
from circuitsearch.search.space import Space
from circuitsearch.students.baselines import BASELINES
from circuitsearch.students.evaluate import examine
from circuitsearch.students.features import prepare_features
from circuitsearch.students.features.prepare import feature_bytes
from circuitsearch.students.student import build_student
from circuitsearch.students.training.pace import RandomFeatures, step_seconds
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.documents.records import Page
from circuitsearch.teacher.loading import Teacher
from circuitsearch.workspace import Workspace

from .discover import draw_circuit, score, trace_paths
from .weights import recipe_of

__all__ = ["largest", "measure_time", "price"]

_PAGES = 4
"""Pages that are encoded, and answered about, to be timed."""
_SCORED_PAGES = 2
"""Pages that are scored, and a circuit is drawn from, to be timed; a circuit needs two."""
_SHARED_STEPS = 20
"""Steps of the elastic teacher that are timed: each runs another plan."""


def price(
    work: Workspace, teacher: Teacher, pages: Mapping[str, Sequence[Page]], space: Space
) -> dict[str, Any]:
    """Return costs of teacher, smallest and largest student, trainings with their steps, disk.

    Args:
        work: The search.
        teacher: The teacher.
        pages: Pages by split.
        space: All plans within the budget.
    """
    plans = {
        "teacher": Plan.full(teacher.shape.decoder.layers),
        "smallest student": space.smallest()[0],
        "largest student": largest(space),
    }
    cached = [page for name in ("train", "select", "final") for page in pages[name]]
    return {
        "costs": {name: _costs(plan, work, teacher) for name, plan in plans.items()},
        "trainings by stage": trainings(work),
        "encoder passes": len(cached),
        "features on disk, bytes": feature_bytes(teacher, cached, work.config.cache_precision),
    }


def largest(space: Space) -> Plan:
    """Return the feasible plan that uses most of the first limit."""
    values = space.costs[0].astype(float)
    bits = solve(values / max(values.max(), 1.0), space)
    return space.smallest()[0] if bits is None else space.plan(bits)


def _costs(plan: Plan, work: Workspace, teacher: Teacher) -> dict[str, Any]:
    """Return a plan's parameters and multiply-adds by scope and accounting."""
    generation = work.config.generation.counted()
    found: dict[str, Any] = {"plan": str(plan)}
    for accounting in ACCOUNTINGS:
        scopes = cost(plan, teacher.shape, accounting, generation).scopes
        found[accounting] = {
            name: {"parameters": part.parameters, "macs": part.macs}
            for name, part in scopes.items()
        }
    return found


def trainings(work: Workspace) -> dict[str, dict[str, int]]:
    """Return how many students each stage trains at most, and for how many steps each."""
    config = work.config
    steps = config.distill.steps
    full = config.final_steps
    compared = 1 + config.exhaustive.top + len(config.baselines)
    compared += min(config.exhaustive.top, config.exhaustive.short)
    # of several plans of one method, each is distilled with the first seed, one with all
    tried = sum(BASELINES[name].most - 1 for name in config.baselines)
    counts = {
        "elastic teacher": (int(config.elastic.steps > 0), config.elastic.steps),
        "search": (config.search.trainings, steps),
        "promotion": (config.search.promote, full),
        "exhaustive baseline": (config.exhaustive.short, steps),
        "final comparison": (compared * len(config.final.seeds) + tried, full),
    }
    return {
        name: {"trainings": count, "steps": each} for name, (count, each) in counts.items() if count
    }


def measure_time(
    work: Workspace, teacher: Teacher, pages: Mapping[str, Sequence[Page]], space: Space
) -> dict[str, Any]:
    """Return an estimate of the time, in seconds, with what it was measured on.

    Args:
        work: The search; its folder is not touched.
        teacher: The teacher.
        pages: Pages by split.
        space: All plans within the budget.
    """
    stages = trainings(work)
    with work.say.stage("measuring the pace"):
        scored, drawn = _discovery(work, teacher, _apart(pages["score"])[:_SCORED_PAGES])
        page, answer, known = _reading(work, teacher, pages["select"][:_PAGES])
        step, shared = _training(work, teacher, pages["train"], space)
    spent = {
        "scores and paths": scored * len(pages["score"]),
        "circuit graph": drawn * min(work.config.circuit.pages, len(pages["score"])),
        "encoding": page * sum(len(pages[name]) for name in ("train", "select", "final")),
    }
    for name, asked in stages.items():
        each = shared if name == "elastic teacher" else step
        spent[name] = asked["trainings"] * asked["steps"] * each["seconds"]
    asked = {name: sum(len(one.questions) for one in pages[name]) for name in ("select", "final")}
    answered = sum(
        one["trainings"] * asked["final" if name == "final comparison" else "select"]
        for name, one in stages.items()
        if name != "elastic teacher"
    )
    spent["answering"] = answer * (answered + asked["final"])
    return {
        "seconds": round(sum(spent.values()), 1),
        "by part": {name: round(seconds, 1) for name, seconds in spent.items()},
        "not counted": "ranking of all plans, proposals of published methods, pairs, fits of "
        "replacements, measurements for a measured budget, report",
        "measured": {
            "seconds per page scored": scored,
            "seconds per page of the circuit": drawn,
            "seconds per page": page,
            "seconds per question": answer,
            "pages": min(_PAGES, len(pages["select"])),
            "step of the largest student": step,
            **({"step of the elastic teacher": shared} if "elastic teacher" in stages else {}),
        },
        "machine": _machine(teacher),
        "teacher": {"anls": known.quality, "questions": known.examples},
    }


def _apart(pages: Sequence[Page]) -> list[Page]:
    """Return a page with questions of every document."""
    return list({page.document: page for page in reversed(pages) if page.questions}.values())[::-1]


def _discovery(work: Workspace, teacher: Teacher, pages: Sequence[Page]) -> tuple[float, float]:
    """Return seconds per page of scores with paths, and of the circuit graph."""
    with tempfile.TemporaryDirectory() as folder:
        circuit = work.config.circuit.model_copy(update={"shown_pages": 0})
        config = work.config.model_copy(update={"output": Path(folder), "circuit": circuit})
        beside = Workspace(config, QuietReporter())
        started = time.perf_counter()
        score(beside, teacher, pages)
        paths = trace_paths(beside, teacher, pages)
        scored = time.perf_counter()
        draw_circuit(beside, teacher, pages, paths)
        ended = time.perf_counter()
    return (scored - started) / len(pages), (ended - scored) / len(pages)


def _reading(
    work: Workspace, teacher: Teacher, pages: Sequence[Page]
) -> tuple[float, float, Measurement]:
    """Return seconds per page of encoding and per question of answering, and the teacher's answers.

    The whole teacher answers, which no student does more slowly.
    """
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        features = prepare_features(
            teacher, pages, folder, temperatures=(1.0, work.config.distill.temperature)
        )
        encoded = time.perf_counter()
        whole = Plan.full(teacher.shape.decoder.layers)
        made, _ = examine(
            teacher.model, teacher, features, whole, phase="teacher", source="teacher"
        )
        ended = time.perf_counter()
    return (encoded - started) / len(pages), (ended - encoded) / made.examples, made


def _training(
    work: Workspace, teacher: Teacher, pages: Sequence[Page], space: Space
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the pace of the largest student and of the elastic teacher."""
    config = work.config
    recipe = recipe_of(config, steps=1, learning_rate=config.distill.learning_rate)
    features = RandomFeatures(teacher, pages, (1.0, config.distill.temperature))
    student = build_student(teacher, _without_replacements(largest(space)))
    view = residual_decoder(student.decoder)
    step = step_seconds(view, features, recipe, teacher=teacher.decoder)
    if not config.elastic.steps:
        return vars(step), vars(step)
    decoder = copy.deepcopy(teacher.model.decoder).requires_grad_(True)
    plans = plan_of_step("uniform", space, seed_from("pace", config.seed))
    shared = step_seconds(
        residual_decoder(decoder),
        features,
        replace(recipe, batch=config.elastic.batch),
        teacher=teacher.decoder,
        plan_of_step=lambda number: _without_replacements(plans(number)),
        steps=_SHARED_STEPS,
    )
    return vars(step), vars(shared)


def _without_replacements(plan: Plan) -> Plan:
    """Return what a plan keeps itself: stand-ins are not fitted yet, and cost next to nothing."""
    kept = tuple((one, keep) for one, keep in plan.kept if keep.replacement is None)
    return Plan(kept) if kept else plan


def _machine(teacher: Teacher) -> str:
    """Return what the time holds for."""
    device = teacher.device
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
