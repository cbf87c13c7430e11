"""A made-up search for the tests of the report: rows, study, scores, speeds, answers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from circuitsearch.core.answers import Answer, Answers
from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.components import Head, sublayers
from circuitsearch.core.files import write_json
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.core.scores import ComponentScore, Scores
from circuitsearch.core.speed import Speed
from circuitsearch.show.report import write_result
from circuitsearch.show.report_found import Found
from circuitsearch.show.report_record import Asked, Record, Said
from circuitsearch.show.rows import ResultRow, result_rows
from tests.show.results import SEARCH, SHAPE, measured, named

__all__ = [
    "answers",
    "asked",
    "curves",
    "found",
    "picture",
    "record",
    "rows",
    "scores",
    "speeds",
    "write",
]

FACTS = {"title": "Search made-up", "budget": ["parameters 31.25%"], "seed": 0}


def rows(amount: int = 5) -> tuple[ResultRow, ...]:
    """The rows of `results.named`, and as many further baselines as make up `amount`."""
    groups = named()
    for place in range(amount - len(groups)):
        plan = f"M{place % 4} C{(place // 4) % 4} S{(place // 16) % 4}"
        groups[f"B{place}"] = measured(plan, quality=0.1 + 0.01 * place, source="baseline")
    return result_rows(groups, search=SEARCH)


def curves(plan: str) -> dict[str, list[dict[str, Any]]]:
    """What was predicted: the ranking has no plan within a fifth of the budget."""
    return {
        "curve": [
            {"percent": 20, "plan": plan, "worth": 1.25},
            {"percent": 100, "plan": plan, "worth": 2.5},
        ],
        "ranked": [{"percent": 100, "plan": plan, "loss": 0.43214}],
    }


def trial(number: int) -> Measurement:
    """A short training of a pseudo-random plan; its quality is drawn, too."""
    rng = np.random.default_rng(number)
    kept = [f"{one}" for one in sublayers(4) if rng.random() < 0.4]
    source = ("scores", "elastic", "sampler")[number % 3]
    quality = round(0.05 + float(rng.random() * 0.5), 4)
    return measured(
        " ".join(kept), quality=quality, phase="short", source=source, steps=300, seed=0
    )


def found(amount: int = 20, **other: Any) -> Found:
    """A study of `amount` trials under two limits."""
    limits = [LimitSpec("parameters", "31.25%"), LimitSpec("macs", "50%")]
    values: dict[str, Any] = {
        "measurements": tuple(trial(number) for number in range(amount)),
        "failed": 1,
        "limits": Budget.resolve(limits, SHAPE).limits,
        "decoder": SHAPE.decoder,
        "heads": False,
        "trust": 0.5,
        "sampler": "circuit",
        "seed": 3,
    }
    return Found(**{**values, **other})


def scores(**other: Any) -> Scores:
    """Effects of all sub-layers and heads of donut-base, scores near them."""
    rng = np.random.default_rng(0)
    names = [str(one) for one in sublayers(4)]
    names += [str(Head(one, h)) for one in sublayers(4) if one.kind.value != "M" for h in range(16)]
    effects = rng.normal(0.1, 0.2, len(names))
    estimates = effects + rng.normal(0, 0.05, len(names))
    values: dict[str, Any] = {
        "teacher": "t",
        "metric": "answer_loss",
        "ablation": "zero",
        "method": "attribution",
        "examples": 12,
        "components": tuple(
            ComponentScore(name, score=s, effect=e, effect_sd=0.1, score_sd=0.1)
            for name, s, e in zip(names, estimates, effects, strict=True)
        ),
        "calibration": {"sublayers.spearman": 0.91, "heads.slope": 0.8},
    }
    return Scores(**{**values, **other})


def speeds(table: tuple[ResultRow, ...]) -> dict[str, Speed]:
    """Made-up speed of every row."""
    return {
        row.name: Speed(
            plan=row.plan,
            plan_hash=Plan.parse(row.plan).hash,
            first_token=1_500_000,
            per_token=250_000,
            decoding=9_750_000,
            encoding=30_000_000,
            decoder_memory=5_000_000,
            total_memory=8_000_000,
            where="cpu made-up, 1 threads",
        )
        for row in table
    }


def picture(size: tuple[int, int] = (40, 20)) -> bytes:
    """A PNG."""
    drawn = io.BytesIO()
    Image.new("RGB", size, "white").save(drawn, format="PNG")
    return drawn.getvalue()


def asked(**other: Any) -> Asked:
    """A question that the teacher answered right and the student did not."""
    values: dict[str, Any] = {
        "question": "What is the total?",
        "page": "page-7",
        "golds": ("12.50", "12,50"),
        "teacher": Said("12.50", 1.0, True),
        "student": Said("12.30", 0.8, False),
        "image": picture(),
    }
    return Asked(**{**values, **other})


def record(**other: Any) -> Record:
    """What `report.json` holds."""
    values: dict[str, Any] = {
        "command": "OMP_NUM_THREADS=1 circuitsearch run out/search.yaml -o output=out-again",
        "environment": {"Python": "3.11.9", "device": "cpu made-up, 1 threads"},
        "settings": {"name": "made-up", "seed": 0, "data": {"source": "rendered"}},
        "student": "best, seed 0",
        "outcomes": {"both": 3, "teacher alone": 2, "student alone": 1, "neither": 4},
        "asked": (asked(), asked(image=None, student=Said("", 0.0, False))),
    }
    return Record(**{**values, **other})


def answers(right: list[bool], pages: int = 4) -> Answers:
    """One model's answers, right where it says so."""
    told = tuple(
        Answer(
            question=f"q{place}",
            page=f"p{place % pages}",
            document=f"d{place % pages}",
            family="",
            answer="gold" if exact else "other",
            golds=("gold",),
            anls=float(exact),
            exact=exact,
            loss=1.0,
            tokens=2,
        )
        for place, exact in enumerate(right)
    )
    about = dict.fromkeys(("teacher", "pages", "plan", "plan_hash", "weights"), "x")
    return Answers(**about, split="final", seed=0, steps=1, decoding={}, rows=told)


def write(folder: Path, table: tuple[ResultRow, ...], **facts: Any) -> None:
    """Write the files of a finished search that the report reads."""
    write_result(folder, table, {**FACTS, **facts})
    write_json(folder / "scores.json", scores().to_json())
    write_json(folder / "speed.json", {n: s.to_json() for n, s in speeds(table).items()})
    record().write(folder)
