"""Rows of the ledger as records: one trial, and what came out of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.engine import RowMapping

from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.search.storage.mirror import Finished
from circuitsearch.search.storage.workers import is_dead

__all__ = ["Outcome", "Row", "finished", "is_stale", "queued_row", "read_row"]


@dataclass(frozen=True)
class Outcome:
    """What evaluating a plan gave: a measurement, or the reason why there is none."""

    measurement: Measurement | None
    reason: str | None = None


@dataclass(frozen=True)
class Row:
    """One trial as stored; the columns are described in `tables`.

    `stale` says that it is marked as running but its worker is dead or silent.
    """

    number: int
    plan: str
    plan_hash: str
    source: str
    state: str
    worker: str | None
    since: float | None
    lease_until: float | None
    deaths: int
    outcome: Outcome | None
    ended: float | None
    stale: bool


def read_row(row: RowMapping, now: float) -> Row:
    """Read one trial.

    Args:
        row: columns of the claim, `measurement`, `reason` and `recorded` of its result.
        now: the database's time at that moment.
    """
    outcome = ended = None
    if row["state"] in ("measured", "failed"):
        recorded = row["recorded"]  # missing where somebody took the result away
        ended = None if recorded is None else datetime.fromisoformat(recorded).timestamp()
        text = row["measurement"]
        measured = None if text is None else Measurement.from_json(json.loads(text))
        outcome = Outcome(measured, row["reason"])
    return Row(
        number=row["number"],
        plan=row["plan"],
        plan_hash=row["plan_hash"],
        source=row["source"],
        state=row["state"],
        worker=row["worker"],
        since=row["since"],
        lease_until=row["lease_until"],
        deaths=row["deaths"],
        outcome=outcome,
        ended=ended,
        stale=row["state"] == "running" and is_stale(row["worker"], row["lease_until"], now),
    )


def queued_row(plan: Plan, source: str, number: int) -> dict[str, Any]:
    """Return the claim of a plan that is to be evaluated, without study and objective."""
    about = {"plan_hash": plan.hash, "plan": str(plan), "source": source, "number": number}
    return {**about, "state": "queued", "deaths": 0}


def is_stale(worker: str | None, lease_until: float | None, now: float) -> bool:
    """Whether the worker of a running trial is dead or silent."""
    return is_dead(worker or "") or (lease_until is not None and lease_until < now)


def finished(row: Row) -> Finished:
    """Return what the mirror shows of a finished trial."""
    outcome, ended = row.outcome or Outcome(None), row.ended or 0.0
    return Finished(
        plan=row.plan,
        plan_hash=row.plan_hash,
        source=row.source,
        quality=None if outcome.measurement is None else outcome.measurement.quality,
        reason=outcome.reason,
        began=ended if row.since is None else row.since,
        ended=ended,
    )
