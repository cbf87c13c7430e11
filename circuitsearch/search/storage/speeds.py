"""Speeds: what was measured of plans under measured limits, and which plans were refused for it.

Each plan of a study is measured once, by one worker, whoever asks first; all others read what it
found, or wait for it. As with trials a lease says whether that worker still lives; if not, another
one measures. A plan that is over a limit is `refused`: it never becomes a trial.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.storages import RDBStorage

from circuitsearch.core.files import canonical_json
from circuitsearch.core.plan import Plan
from circuitsearch.search.storage.rows import is_stale
from circuitsearch.search.storage.tables import speeds
from circuitsearch.search.storage.transactions import Locked, locked, reading

__all__ = ["Speeds", "Verdict", "measured_row"]


@dataclass(frozen=True)
class Verdict:
    """What a plan's measurement came to.

    Attributes:
        plan: canonical text of the plan.
        plan_hash: hash of that text.
        refused: whether the plan is over a measured limit.
        amounts: measured figures by `Limit.name`.
        where: device and threads of the measurement.
    """

    plan: str
    plan_hash: str
    refused: bool
    amounts: Mapping[str, int]
    where: str


class Speeds:
    """The measured figures of one study's plans."""

    def __init__(self, storage: RDBStorage, study: str) -> None:
        """Open the table for a study."""
        self._storage = storage
        self._study = study

    def verdict(self, plan_hash: str) -> Verdict | None:
        """Return what is known of a plan; None while it is not measured.

        Raises:
            StorageError: the database fails.
        """
        query = self._of(sa.select(speeds)).where(speeds.c.plan_hash == plan_hash)
        with reading(self._storage) as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None or row["amounts"] is None else _verdict(row)

    def refused(self) -> list[str]:
        """Return the texts of the plans that were refused, in the order of their measurement.

        Raises:
            StorageError: the database fails.
        """
        query = self._of(sa.select(speeds.c.plan)).where(speeds.c.state == "refused")
        with reading(self._storage) as connection:
            return list(connection.scalars(query.order_by(speeds.c.recorded, speeds.c.plan_hash)))

    def claim(self, plan: Plan, worker: str, lease: float) -> Verdict | bool:
        """Ask to measure a plan.

        Args:
            plan: the plan.
            worker: who asks.
            lease: seconds for which the claim holds without a sign of life.

        Returns:
            What is known of the plan; else True when the worker is to measure it, and False while
            another one does.

        Raises:
            StorageError: the database fails.
        """
        query = self._of(sa.select(speeds)).where(speeds.c.plan_hash == plan.hash)
        with locked(self._storage, self._study) as held:
            row = held.connection.execute(query).mappings().one_or_none()
            if row is not None and row["amounts"] is not None:
                return _verdict(row)
            claimed = {"worker": worker, "lease_until": held.now + lease}
            if row is None:
                about = {"study": self._study, "plan_hash": plan.hash, "plan": str(plan)}
                new = {**about, "state": "measuring", **claimed}
                held.connection.execute(sa.insert(speeds).values(new))
                return True
            if row["worker"] == worker or is_stale(row["worker"], row["lease_until"], held.now):
                self._change(held, plan.hash, claimed)
                return True
        return False

    def extend(self, plan_hash: str, worker: str, lease: float) -> bool:
        """Extend a claim by a lease from now; False when the worker does not hold it any more.

        Raises:
            StorageError: the database fails.
        """
        with locked(self._storage, self._study) as held:
            change = self._measuring(worker).where(speeds.c.plan_hash == plan_hash)
            done = held.connection.execute(change.values(lease_until=held.now + lease))
        return done.rowcount == 1

    def release(self, worker: str) -> None:
        """Forget what the worker claimed and did not measure.

        Raises:
            StorageError: the database fails.
        """
        with locked(self._storage, self._study) as held:
            lost = self._of(sa.delete(speeds)).where(
                speeds.c.state == "measuring", speeds.c.worker == worker
            )
            held.connection.execute(lost)

    def record(self, verdict: Verdict, worker: str) -> Verdict:
        """Keep what was measured, unless another worker was faster; return what counts.

        Raises:
            StorageError: the database fails.
        """
        query = self._of(sa.select(speeds)).where(speeds.c.plan_hash == verdict.plan_hash)
        with locked(self._storage, self._study) as held:
            row = held.connection.execute(query).mappings().one_or_none()
            if row is not None and row["amounts"] is not None:
                return _verdict(row)
            values = measured_row(verdict, held.now, worker)
            if row is None:
                new = {"study": self._study, **values}
                held.connection.execute(sa.insert(speeds).values(new))
            else:
                self._change(held, verdict.plan_hash, values)
        return verdict

    def _change(self, held: Locked, plan_hash: str, values: Mapping[str, Any]) -> None:
        """Change the row of one plan."""
        change = self._of(sa.update(speeds)).where(speeds.c.plan_hash == plan_hash)
        held.connection.execute(change.values(dict(values)))

    def _measuring(self, worker: str) -> sa.Update:
        """Return the beginning of a change to what a worker measures."""
        change: sa.Update = self._of(sa.update(speeds))
        return change.where(speeds.c.state == "measuring", speeds.c.worker == worker)

    def _of(self, statement: Any) -> Any:
        """Restrict a statement to this study."""
        return statement.where(speeds.c.study == self._study)


def measured_row(verdict: Verdict, now: float, worker: str | None = None) -> dict[str, Any]:
    """Return the row of a plan, without study, that was measured at that time of the database."""
    return {
        "plan_hash": verdict.plan_hash,
        "plan": verdict.plan,
        "state": "refused" if verdict.refused else "admitted",
        "amounts": canonical_json(dict(verdict.amounts)),
        "device": verdict.where,
        "worker": worker,
        "lease_until": None,
        "recorded": now,
    }


def _verdict(row: Any) -> Verdict:
    """Read one row."""
    return Verdict(
        plan=row["plan"],
        plan_hash=row["plan_hash"],
        refused=row["state"] == "refused",
        amounts=json.loads(row["amounts"]),
        where=row["device"] or "",
    )
