"""The ledger: who evaluates which plan, decided in one transaction each, and what came out.

A claim is decided in this order, with the study's lock held:

1. *Settle*: a running plan whose lease ran out, or whose worker is known to be dead, is queued
   again at its old place. After `Terms.attempts` dead workers it fails instead: it may be what
   kills them.
2. *Stop* if the budget is spent, the study is asked to stop, or too many trials failed.
3. *Wait* if the plans that are measured and those that are running fill the budget together. So the
   budget is met exactly: no worker begins a plan that might be one too many.
4. Take the first *queued* plan, else the *proposal* that the worker brings. A proposal that another
   worker claimed in the meantime is refused by its unique key, and the worker proposes again.

A result is recorded once, the first that arrives, be it of a worker that was thought dead. Results
are kept by (study, objective, plan), so several phases of a study never mix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any

import sqlalchemy as sa
from optuna.storages import RDBStorage

from circuitsearch.core.errors import TrainingError, integer_problems, number_problems
from circuitsearch.core.files import canonical_json
from circuitsearch.core.plan import Plan
from circuitsearch.search.storage.mirror import Mirror
from circuitsearch.search.storage.rows import Outcome, Row, finished, queued_row, read_row
from circuitsearch.search.storage.tables import claims, results
from circuitsearch.search.storage.transactions import Locked, clock, locked, reading

__all__ = ["LEASE", "Ledger", "Outlook", "Terms"]

LEASE = 120.0
"""Seconds; `search.lease_seconds` says otherwise."""


class Outlook(Enum):
    """Why a worker got no plan."""

    SPENT = auto()
    """As many plans are measured as were asked for."""
    STOPPED = auto()
    """The study is asked to stop."""
    WAIT = auto()
    """Other workers evaluate the last plans of the budget; look again later."""
    PROPOSE = auto()
    """A plan is wanted, and none is queued: bring a (new) proposal."""


@dataclass(frozen=True)
class Terms:
    """How far to go on.

    Attributes:
        trainings: number of measured plans at which to stop.
        max_failures: number of failed trials that is put up with.
        lease: seconds for which a claim holds without a sign of life.
        attempts: workers that may die while they evaluate a plan before it fails.
    """

    trainings: int
    max_failures: int = 5
    lease: float = LEASE
    attempts: int = 3

    def problems(self) -> list[str]:
        """Describe every value that is not allowed."""
        return [
            *integer_problems("trainings", self.trainings, 1),
            *integer_problems("max_failures", self.max_failures),
            *number_problems("lease (seconds)", self.lease, 0.01),
            *integer_problems("attempts", self.attempts, 1),
        ]


class Ledger:
    """The trials of one study under one objective."""

    def __init__(
        self, storage: RDBStorage, study: str, objective_hash: str, mirror: Mirror | None = None
    ) -> None:
        """Open the ledger.

        Args:
            storage: from `open_storage`.
            study: the study's name.
            objective_hash: hash of what a measurement depends on beside the plan.
            mirror: shows finished trials to Optuna's tools; None for reading only.
        """
        self.objective_hash = objective_hash
        self._storage = storage
        self._study = study
        self._key = {"study": study, "objective_hash": objective_hash}
        self._mirror = mirror
        self._trials = self._select()

    # Reading

    def rows(self, start: int = 0) -> list[Row]:
        """Return the trials from that number on, in their order, as of one moment.

        Raises:
            StorageError: the database fails.
        """
        with reading(self._storage) as connection:
            found = connection.execute(self._trials.where(claims.c.number >= start))
            rows = found.mappings().all()
            now = clock(connection)
        return [read_row(row, now) for row in rows]

    def counts(self) -> Counter[str]:
        """Return the number of trials by stored state.

        Raises:
            StorageError: the database fails.
        """
        with reading(self._storage) as connection:
            return self._counts(connection)

    # Writing

    def queue(self, plans: Sequence[tuple[Plan, str]], trainings: int | None = None) -> int:
        """Queue plans, each with its source, behind all others; known ones are passed over.

        Nothing is queued when `trainings` plans are measured already. Returns how many were.

        Raises:
            StorageError: the database fails.
        """
        with locked(self._storage, self._study) as held:
            measured = self._counts(held.connection)["measured"]
            if trainings is not None and measured >= trainings:
                return 0
            known = set(held.connection.scalars(self._of(sa.select(claims.c.plan_hash))))
            number = self._next_number(held)
            rows: list[dict[str, Any]] = []
            for plan, source in plans:
                if plan.hash not in known:
                    known.add(plan.hash)
                    rows.append(self._new(plan, source, number + len(rows)))
            if rows:
                held.connection.execute(sa.insert(claims), rows)
        return len(rows)

    def claim(
        self, worker: str, terms: Terms, proposal: tuple[Plan, str] | None = None
    ) -> Row | Outlook:
        """Claim a plan for a worker; the module docstring says how that is decided.

        Whatever the worker still holds is handed back first: it evaluates one plan at a time.

        Args:
            worker: its name.
            terms: how far to go on.
            proposal: a plan and its source, taken when none is queued.

        Raises:
            TrainingError: too many trials have failed.
            StorageError: the database fails.
        """
        with locked(self._storage, self._study) as held:
            counts = self._counts(held.connection)
            if counts["running"] and self._settle(held, worker, terms.attempts):
                counts = self._counts(held.connection)
            failed = counts["failed"] > terms.max_failures
            if counts["measured"] >= terms.trainings:
                return Outlook.SPENT
            if held.stop:
                return Outlook.STOPPED
            if not failed:
                if counts["measured"] + counts["running"] >= terms.trainings:
                    return Outlook.WAIT
                return self._take(held, worker, terms.lease, proposal)
        raise self._too_many(counts["failed"], terms.max_failures)

    def extend(self, plan_hash: str, worker: str, lease: float) -> bool:
        """Extend a claim by a lease from now; False when the worker does not hold it any more.

        Raises:
            StorageError: the database fails.
        """
        with locked(self._storage, self._study) as held:
            change = self._held_by(worker).where(claims.c.plan_hash == plan_hash)
            done = held.connection.execute(change.values(lease_until=held.now + lease))
        return done.rowcount == 1

    def release(self, worker: str) -> None:
        """Hand back whatever the worker holds: it is queued again, ahead of all others.

        Raises:
            StorageError: the database fails.
        """
        with locked(self._storage, self._study) as held:
            held.connection.execute(self._held_by(worker).values(state="queued", worker=None))

    def record(self, plan_hash: str, worker: str, outcome: Outcome) -> Row:
        """Record what evaluating a claimed plan gave; an earlier result of the plan stays.

        Returns:
            The trial with the result that counts.

        Raises:
            StorageError: the database fails.
        """
        with locked(self._storage, self._study) as held:
            row = self._one(held, plan_hash)
            if row.outcome is None:
                row = self._finish(held, row, worker, outcome)
        return row

    def repair_mirror(self) -> int:
        """Add the finished trials that the mirror lacks, and return how many those were.

        Raises:
            StorageError: the database fails.
        """
        if self._mirror is None:
            return 0
        with locked(self._storage, self._study) as held:
            query = self._trials.where(claims.c.state.in_(("measured", "failed")))
            found = held.connection.execute(query).mappings().all()
            rows = {row["plan_hash"]: read_row(row, held.now) for row in found}
            lacking = self._mirror.missing(held.connection, rows)
            trials = [finished(rows[one]) for one in lacking]
            return self._mirror.add(held.connection, trials)

    # Parts of transactions

    def _settle(self, held: Locked, worker: str, attempts: int) -> bool:
        """Queue again what dead or silent workers left, and what this one still holds.

        Returns whether there was anything.
        """
        settled = False
        running = self._trials.where(claims.c.state == "running")
        for entry in held.connection.execute(running).mappings().all():
            row = read_row(entry, held.now)
            if row.worker == worker:
                self._change(held, row.plan_hash, state="queued", worker=None)
            elif row.stale and row.deaths + 1 >= attempts:
                times = f"{row.deaths + 1} time" + ("s" if row.deaths else "")
                outcome = Outcome(None, f"its worker died {times}")
                self._change(held, row.plan_hash, deaths=row.deaths + 1)
                self._finish(held, row, row.worker or "", outcome)
            elif row.stale:
                self._change(
                    held, row.plan_hash, state="queued", worker=None, deaths=row.deaths + 1
                )
            settled = settled or row.stale or row.worker == worker
        return settled

    def _take(
        self, held: Locked, worker: str, lease: float, proposal: tuple[Plan, str] | None
    ) -> Row | Outlook:
        """Claim the first queued plan, else the proposal if it is new."""
        until = held.now + lease
        begins: dict[str, Any] = {
            "state": "running",
            "worker": worker,
            "since": held.now,
            "lease_until": until,
        }
        queued = self._trials.where(claims.c.state == "queued").limit(1)
        found = held.connection.execute(queued).mappings().one_or_none()
        if found is not None:
            self._change(held, found["plan_hash"], **begins)
            return replace(read_row(found, held.now), **begins)
        if proposal is None or self._known(held, proposal[0]):
            return Outlook.PROPOSE
        plan, source = proposal
        number = self._next_number(held)
        row = self._new(plan, source, number) | begins
        held.connection.execute(sa.insert(claims).values(row))
        return Row(
            number=number,
            plan=str(plan),
            plan_hash=plan.hash,
            source=source,
            state="running",
            worker=worker,
            since=held.now,
            lease_until=until,
            deaths=0,
            outcome=None,
            ended=None,
            stale=False,
        )

    def _finish(self, held: Locked, row: Row, worker: str, outcome: Outcome) -> Row:
        """Write a result, close its trial and show it to Optuna's tools; return the trial."""
        measured = outcome.measurement
        state = "failed" if measured is None else "measured"
        recorded = datetime.fromtimestamp(held.now, UTC)
        result = {
            **self._key,
            "plan_hash": row.plan_hash,
            "plan": row.plan,
            "state": state,
            "measurement": None if measured is None else canonical_json(measured.to_json()),
            "reason": outcome.reason,
            "recorded": recorded.isoformat(timespec="microseconds"),
        }
        held.connection.execute(sa.insert(results).values(result))
        closed: dict[str, Any] = {"state": state, "worker": worker, "lease_until": None}
        self._change(held, row.plan_hash, **closed)
        row = replace(row, outcome=outcome, ended=recorded.timestamp(), stale=False, **closed)
        if self._mirror is not None:
            self._mirror.add(held.connection, [finished(row)])
        return row

    def _one(self, held: Locked, plan_hash: str) -> Row:
        """Return one trial."""
        query = self._trials.where(claims.c.plan_hash == plan_hash)
        return read_row(held.connection.execute(query).mappings().one(), held.now)

    def _known(self, held: Locked, plan: Plan) -> bool:
        """Whether there is a trial of that plan."""
        query = self._of(sa.select(claims.c.number)).where(claims.c.plan_hash == plan.hash)
        return held.connection.scalar(query) is not None

    def _next_number(self, held: Locked) -> int:
        """Return the number behind all others."""
        last = held.connection.scalar(self._of(sa.select(sa.func.max(claims.c.number))))
        return 0 if last is None else int(last) + 1

    def _counts(self, connection: sa.Connection) -> Counter[str]:
        """Return the number of trials by stored state."""
        query = self._of(sa.select(claims.c.state, sa.func.count())).group_by(claims.c.state)
        return Counter({state: int(count) for state, count in connection.execute(query)})

    def _too_many(self, failed: int, allowed: int) -> TrainingError:
        """Return the error that ends a run with too many failures."""
        reasons = [one.outcome.reason for one in self.rows() if one.outcome and one.outcome.reason]
        return TrainingError(
            f"Study {self._study!r}: {failed} trials have failed, {allowed} are put up with "
            f"(search.max_failures). The last one: {reasons[-1]}"
        )

    # Statements

    def _new(self, plan: Plan, source: str, number: int) -> dict[str, Any]:
        """Return the row of a plan that is to be evaluated."""
        return {**self._key, **queued_row(plan, source, number)}

    def _of(self, query: sa.Select[Any]) -> sa.Select[Any]:
        """Restrict a query to this study and objective."""
        for name, value in self._key.items():
            query = query.where(claims.c[name] == value)
        return query

    def _select(self) -> sa.Select[Any]:
        """Return the query for trials with their results, in order."""
        joined = claims.outerjoin(
            results,
            sa.and_(*(results.c[name] == claims.c[name] for name in (*self._key, "plan_hash"))),
        )
        about = results.c.measurement, results.c.reason, results.c.recorded
        query = sa.select(claims, *about).select_from(joined)
        return self._of(query).order_by(claims.c.number)

    def _change(self, held: Locked, plan_hash: str, **values: Any) -> None:
        """Change the row of one trial."""
        change = sa.update(claims).where(claims.c.plan_hash == plan_hash)
        for name, value in self._key.items():
            change = change.where(claims.c[name] == value)
        held.connection.execute(change.values(values))

    def _held_by(self, worker: str) -> sa.Update:
        """Return the beginning of a change to what a worker holds."""
        change = sa.update(claims).where(claims.c.state == "running", claims.c.worker == worker)
        for name, value in self._key.items():
            change = change.where(claims.c[name] == value)
        return change
