"""Measurements: round trip, refused values."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from circuitsearch.core.components import known_shape
from circuitsearch.core.cost import ACCOUNTINGS, cost
from circuitsearch.core.errors import DataError
from circuitsearch.core.measurement import PHASES, Measurement
from circuitsearch.core.plan import Plan

PLAN = Plan.parse("M0 C2 S3 C3")


def measurement(**changes: Any) -> Measurement:
    values: dict[str, Any] = {
        "plan": str(PLAN),
        "plan_hash": PLAN.hash,
        "phase": "short",
        "loss": np.float32(0.5),
        "quality": 0.75,
        "quality_low": 0.5,
        "quality_high": 1.0,
        "exact": 0.25,
        "perplexity": np.float64(1.75),
        "nted": 0.5,
        "field_f1": 0.625,
        "examples": np.int64(40),
        "seed": 2**62,
        "steps": 100,
        "source": "sampler",
        "cost": {
            accounting: cost(PLAN, known_shape("donut-base"), accounting).to_json()
            for accounting in ACCOUNTINGS
        },
        "checkpoint": "students/ab12",
        "families": {"table": 0.5},
        "seconds": 12.5,
    }
    return Measurement(**{**values, **changes})


def test_json_round_trip() -> None:
    record = measurement()
    data = json.loads(json.dumps(record.to_json(), allow_nan=False))
    assert Measurement.from_json(data) == record
    assert data["loss"] == 0.5
    assert data["seed"] == 2**62


def test_optional_fields_have_defaults() -> None:
    record = Measurement(
        plan="C2",
        plan_hash="0",
        phase="untrained",
        loss=1.0,
        examples=1,
        seed=0,
        steps=0,
        source="x",
    )
    assert (record.quality, record.checkpoint, record.families) == (None, None, {})
    assert Measurement.from_json(record.to_json()) == record


def test_files_of_earlier_versions_are_read() -> None:
    later = {"perplexity": None, "nted": None, "field_f1": None}
    data = measurement().to_json()
    older = Measurement.from_json({key: data[key] for key in data if key not in later})
    assert older == measurement(**later)


@pytest.mark.parametrize("phase", PHASES)
def test_phases(phase: str) -> None:
    assert measurement(phase=phase).phase == phase


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"phase": "shrt"}, "did you mean 'short'"),
        ({"loss": math.nan}, "loss: got nan"),
        ({"loss": None}, "loss: got None"),
        ({"quality": 66.0}, "quality: got 66.0, allowed are finite numbers from 0 to 1"),
        ({"quality_low": -0.1}, "quality_low"),
        ({"quality_high": math.inf}, "quality_high"),
        ({"exact": 1.5}, "exact"),
        ({"nted": 1.01}, "nted"),
        ({"field_f1": -1.0}, "field_f1"),
        ({"perplexity": math.inf}, "perplexity"),
        ({"families": {"table": math.nan}}, "table"),
        ({"seconds": -1.0}, "seconds"),
        ({"examples": -1}, "examples"),
        ({"seed": 0.5}, "seed"),
        ({"steps": True}, "steps"),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        measurement(**changes)


def test_all_faults_are_listed_together() -> None:
    with pytest.raises(DataError, match="3 problems"):
        measurement(phase="x", loss=math.inf, steps=-1)


def test_bad_json_is_refused() -> None:
    data = measurement().to_json()
    with pytest.raises(DataError, match=r"(?s)missing field 'loss'.*unknown field 'los'"):
        Measurement.from_json({**{k: data[k] for k in data if k != "loss"}, "los": 1.0})
