"""Report stages: table, plot, circuit page, report, the best student as a checkpoint."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from circuitsearch import __version__
from circuitsearch.config import RenderedData
from circuitsearch.core.files import read_json, write_bytes, write_json
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.core.scores import Scores
from circuitsearch.search.space import Space
from circuitsearch.search.study import Study
from circuitsearch.show.analysis_files import PAGE_FILE
from circuitsearch.show.plots import quality_against_cost
from circuitsearch.show.report import REPORT_FILE, write_report, write_result
from circuitsearch.show.report_material import teacher_of
from circuitsearch.show.report_record import RECORD_FILE
from circuitsearch.show.rows import ResultRow, trial_rows
from circuitsearch.students.saving.card import CardFacts
from circuitsearch.students.saving.checkpoint import save_student
from circuitsearch.teacher.documents.records import Page
from circuitsearch.teacher.loading import Teacher
from circuitsearch.workspace import CONFIG_FILE, Workspace

from .analyzing import ANALYSES_FOLDER
from .comparing import BEST
from .discover import write_circuit_page
from .kept_answers import FinalUses
from .recording import record_of
from .searching import best_of
from .speeds import write_speeds
from .training import StudentTrainer

__all__ = ["card_facts", "hand_over", "outputs", "preview", "report"]


def report(
    work: Workspace,
    trainer: StudentTrainer,
    *,
    rows: Sequence[ResultRow],
    study: Study,
    chosen: Study,
    scores: Scores,
    circuit: Mapping[str, Any],
    pages: Mapping[str, Sequence[Page]],
) -> dict[str, Any]:
    """Write result table, speeds, plot, circuit page and report; return the table's JSON."""
    config, folder = work.config, work.folder
    facts = {
        "title": f"Search {config.name}",
        "command": shlex.join(["circuitsearch", "run", str(folder / CONFIG_FILE)]),
        "teacher": config.teacher,
        "teacher fingerprint": scores.teacher,
        "budget": [
            f"{spec.quantity} {spec.limit} of {spec.scope} ({spec.accounting})"
            for spec in (limit.spec() for limit in config.budget)
        ],
        "training": f"{config.distill.steps} steps per search trial, "
        f"{config.final_steps} in the final comparison",
        "seed": config.seed,
        "evaluation": {
            "ANLS": config.evaluation.anls,
            "different plans measured on the final pages": _final_plans(work, rows),
        },
        "prior trust": _trust(study),
        "calibration": dict(scores.calibration),
        "versions": {"circuitsearch": __version__, "torch": torch.__version__},
    }
    _, data = write_result(folder, rows, facts)
    write_json(folder / "trials.json", [_trial(made) for made in study.measurements()])
    write_speeds(work, trainer.teacher, rows)
    quality_against_cost(
        rows,
        folder / "quality.png",
        folder / "quality.svg",
        trials=trial_rows(study.measurements(), teacher_of(rows)),
        title=f"{config.name}: quality against cost",
        limits=[
            limit
            for limit in study.space.budget.limits
            if limit.name == f"{rows[0].scope} parameters ({rows[0].accounting})"
        ],
    )
    write_circuit_page(work, trainer.teacher, circuit, pages["score"])
    record_of(work, trainer, rows, pages["final"], BEST).write(folder)
    write_report(folder, study, further=[] if chosen is study else [chosen])
    written: dict[str, Any] = read_json(data)
    return written


def _final_plans(work: Workspace, rows: Sequence[ResultRow]) -> int:
    """Return how many plans met the final pages; versions that did not count left their rows."""
    shown = [Plan.parse(row.plan).hash for row in rows if row.phase != "teacher"]
    return FinalUses(work.folder).plans(besides=shown)


def _trial(made: Measurement) -> dict[str, Any]:
    """Return what a finished training of the search is told by; the database stays behind."""
    told = ("plan", "source", "phase", "steps", "seed", "examples", "quality", "loss")
    return {name: getattr(made, name) for name in told}


def _trust(study: Study) -> str:
    """Say how well the effects, and the ranking, explained what was measured."""
    trust, ranking = study.prior_trust(), study.ranking_trust()
    told = []
    if trust is not None:
        told.append(f"Spearman {trust:.2f} of the sum of effects and measured quality")
    if ranking is not None:
        what = "predicted loss (sign turned) and measured quality"
        told.append(f"Spearman {ranking[0]:.2f} of {what} over {ranking[1]} plans")
    return "; ".join(told) or "unknown"


def hand_over(
    work: Workspace, trainer: StudentTrainer, study: Study, pages: Sequence[Page]
) -> None:
    """Save the best student as an ordinary Hugging Face checkpoint, and a page to try it on.

    Only rendered pages are copied: a user's documents stay where they are.
    """
    config = work.config
    steps = config.final_steps
    best, seed = best_of(study), config.final.seeds[0]
    source = next(trial.source for trial in study.trials() if trial.plan_hash == best.hash)
    made = trainer.measured(best, source, seed=seed, steps=steps, split="final", phase="full")
    command = shlex.join(["circuitsearch", "run", str(work.folder / CONFIG_FILE)])
    facts = card_facts(trainer, made, "final", steps, command)
    model = trainer.student(best, seed, steps)
    save_student(model, trainer.teacher, work.folder / "student", facts=facts)
    if isinstance(config.data, RenderedData):
        drawn = io.BytesIO()
        pages[0].image().save(drawn, format="PNG")
        write_bytes(work.folder / "page.png", drawn.getvalue())


def card_facts(
    trainer: StudentTrainer, made: Measurement, split: str, steps: int, command: str
) -> CardFacts:
    """Return what a search knows about a student that it hands over, for the model card.

    Args:
        trainer: Of the search.
        made: How good the student is.
        split: The pages it was measured on.
        steps: Steps of its training.
        command: What made it.
    """
    data = trainer.config.data.model_dump(mode="json", exclude_none=True)
    recipe = {name.replace("_", " "): value for name, value in vars(trainer.recipe(steps)).items()}
    distill, elastic = trainer.config.distill, trainer.config.elastic
    if distill.start == "elastic":
        recipe["start"] = f"elastic teacher ({elastic.steps} steps of {elastic.batch} questions)"
    if distill.compensate:
        recipe["compensate"] = "means of removed parts stay in biases"
    return CardFacts(
        measurement=made,
        scored_on=f"the search's {split} pages, none of them trained on",
        data=data,
        training=recipe,
        seeds=[made.seed],
        command=command,
    )


def outputs(work: Workspace) -> dict[str, Path]:
    """Return what a search leaves in its folder, by name."""
    folder = work.folder
    named = {
        "report": folder / REPORT_FILE,
        "report (JSON)": folder / RECORD_FILE,
        "result": folder / "result.md",
        "result (JSON)": folder / "result.json",
        "speed": folder / "speed.md",
        "plot": folder / "quality.png",
        "circuit page": folder / "circuit.html",
        "circuit graph": folder / "circuit.json",
        "scores": folder / "scores.json",
        "analyses": folder / ANALYSES_FOLDER / PAGE_FILE,
        "best student": folder / "student",
        "example page": folder / "page.png",
        "study": folder / "study.db",
        "configuration": folder / CONFIG_FILE,
    }
    return {name: path for name, path in named.items() if path.exists()}


def preview(
    work: Workspace, teacher: Teacher, pages: Mapping[str, Sequence[Page]], space: Space
) -> dict[str, Any]:
    """Return what a search would run, without running it."""
    config = work.config
    plan, used = space.smallest()
    limits = {limit.name: limit for limit in space.budget.limits}

    def shown(name: str, amount: int) -> int | str:
        return limits[name].shown(amount) if limits[name].measured else amount

    return {
        "search": config.name,
        "teacher": teacher.name,
        "fingerprint": teacher.fingerprint,
        "pages": {name: len(rows) for name, rows in pages.items()},
        "questions": {n: sum(len(p.questions) for p in rows) for n, rows in pages.items()},
        "budget": {name: shown(name, limit.maximum) for name, limit in limits.items()},
        "plans within budget": space.count(),
        "smallest student": {
            "plan": str(plan),
            **{name: shown(name, amount) for name, amount in used.items()},
        },
    }
