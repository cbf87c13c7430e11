"""What a study has found so far, read from its database alone.

A `StudyView` needs no teacher and no evaluation function, so tables, plots and a second terminal
can read a study while any number of workers run it. It never writes and waits for nobody.

The module also says what a study *is*: its identity, stored when it is created and compared when
it is opened again. Two runs with equal identities go on with each other's trials; with different
ones they must not, since their values do not belong together.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from optuna.storages import RDBStorage
from scipy.stats import spearmanr

from circuitsearch.core.errors import ConfigError, StorageError, choice_problem
from circuitsearch.core.files import canonical_json, content_hash
from circuitsearch.core.measurement import Measurement, merit
from circuitsearch.core.plan import Plan
from circuitsearch.search.samplers import Goal, Prior
from circuitsearch.search.space import Space
from circuitsearch.search.storage.connection import masked
from circuitsearch.search.storage.ledger import Ledger
from circuitsearch.search.storage.rows import Row
from circuitsearch.search.storage.speeds import Speeds, Verdict
from circuitsearch.search.storage.transactions import read_phases, read_study

__all__ = [
    "StudyStatus",
    "StudyView",
    "TrialRecord",
    "differences",
    "study_identity",
    "trial_record",
]

State = Literal["measured", "failed", "running", "queued", "interrupted"]


@dataclass(frozen=True)
class TrialRecord:
    """One trial as a reader sees it.

    Attributes:
        number: place in the order of the trials, from 0.
        state: `measured`; `failed` (the plan is not tried again); `running`; `queued`;
            `interrupted` (its worker died or went silent, the next free one takes the plan over).
        plan: canonical text of the plan.
        plan_hash: hash of the plan.
        source: who proposed the plan.
        measurement: the result of a measured trial.
        failure: why a failed trial failed.
        worker: who evaluates it, or did last; None while it is queued.
        since: when a running trial was begun, on the database's clock.
        lease: until when its worker may be silent.
    """

    number: int
    state: State
    plan: str
    plan_hash: str
    source: str
    measurement: Measurement | None = None
    failure: str | None = None
    worker: str | None = None
    since: datetime | None = None
    lease: datetime | None = None


@dataclass(frozen=True)
class StudyStatus:
    """Number of trials per state; see `TrialRecord.state`.

    `refused` plans are no trials: they were measured, and found to be over a measured limit.
    """

    measured: int
    failed: int
    running: int
    queued: int
    interrupted: int
    refused: int = 0

    @property
    def trials(self) -> int:
        """Number of trials."""
        return self.measured + self.failed + self.running + self.queued + self.interrupted


class StudyView:
    """Read access to a study under one objective.

    Attributes:
        name: the study's name.
        phase_name: which of its further phases; None for the search itself.
        identity: what the study is about (`study_identity`).
        config: the configuration that was stored for workers; None when there is none.
        versions: the versions it runs with; None when they were not given.
        objective: the objective of this phase.
        created: when the study was created.
    """

    def __init__(self, storage: RDBStorage, name: str, phase: str | None = None) -> None:
        """Find the study.

        Raises:
            ConfigError: there is no such study or phase, or it was not made by circuitsearch.
            StorageError: the database cannot be read.
        """
        self.name = name
        self.phase_name = phase
        self._storage = storage
        stored = read_study(storage, name)
        self.identity: dict[str, Any] = stored.identity
        self.config: Any = stored.config
        self.versions = stored.versions
        self.created = _time(stored.created)
        self.objective: dict[str, Any] = stored.identity["objective"]
        if phase is not None:
            known = read_phases(storage, name)
            if not known:
                raise ConfigError(
                    f"Study {name!r}: it has no phase {phase!r} yet; a search with search.promote "
                    "opens one when its short trainings are done"
                )
            if phase not in known:
                raise ConfigError(choice_problem(f"Phase of study {name!r}", phase, list(known)))
            self.objective = known[phase]
        self._ledger = Ledger(storage, name, content_hash(self.objective))
        self._speeds = Speeds(storage, name)

    def phases(self) -> list[str]:
        """Return the names of the study's further phases.

        Raises:
            StorageError: the database cannot be read.
        """
        return list(read_phases(self._storage, self.name))

    def stopping(self) -> bool:
        """Whether the workers are asked to stop after their trials.

        Raises:
            StorageError: the database cannot be read.
        """
        return read_study(self._storage, self.name).stop

    def trials(self) -> list[TrialRecord]:
        """Return all trials in their order.

        Raises:
            StorageError: the database cannot be read, or a measurement is missing from it.
        """
        rows = self._ledger.rows()
        for row in rows:
            if row.state == "measured" and (row.outcome is None or row.outcome.measurement is None):
                raise StorageError(
                    f"Study {self.name!r}: the measurement of trial {row.number} is missing from "
                    f"{masked(self._storage.url)}; was only a part of it copied?"
                )
        return [trial_record(row) for row in rows]

    def measurements(self) -> list[Measurement]:
        """Return the measurements in the order of their trials."""
        return [one.measurement for one in self.trials() if one.measurement is not None]

    def ranked(self) -> list[Measurement]:
        """Return the measurements, best first: highest quality, then lowest loss, then text."""
        return sorted(self.measurements(), key=merit)

    def best(self) -> Measurement | None:
        """Return the best measurement (`ranked`); None without any."""
        return min(self.measurements(), key=merit, default=None)

    def status(self) -> StudyStatus:
        """Return the number of trials per state; plans are refused in the search, in no phase."""
        counts: Counter[str] = Counter(_state(row) for row in self._ledger.rows())
        counts["refused"] = len(self._speeds.refused()) if self.phase_name is None else 0
        return StudyStatus(**{field.name: counts[field.name] for field in fields(StudyStatus)})

    def speed(self, plan: Plan) -> Verdict | None:
        """Return what was measured of a plan for measured limits; None while it was not.

        Raises:
            StorageError: the database cannot be read.
        """
        return self._speeds.verdict(plan.hash)

    def prior_trust(self) -> float | None:
        """Return how well the prior scores rank the measured plans.

        It is Spearman's correlation of the sum of the kept units' scores with the measured
        quality. None without a prior, below three plans, or when either side never varies.
        """
        known = self.identity["prior"]
        if known is None or known["worths"] is None:
            return None
        space = Space.from_json(self.identity["space"])
        scores = np.array([known["worths"][name] for name in space.names])
        found = self.measurements()
        expected = [float(scores @ space.bits(Plan.parse(one.plan))) for one in found]
        return _agreement(expected, found)

    def ranking_trust(self) -> tuple[float, int] | None:
        """Return how well the prior's ranking, by predicted loss, ranks the measured plans.

        It is Spearman's correlation of the loss, its sign turned, with the measured quality, and
        the number of plans behind it: those that the ranking holds. None as for `prior_trust`.
        """
        known = self.identity["prior"]
        losses = {} if known is None else {plan: loss for plan, loss in known["ranking"]}
        found = [one for one in self.measurements() if one.plan in losses]
        trust = _agreement([-losses[one.plan] for one in found], found)
        return None if trust is None else (trust, len(found))


def _agreement(expected: Sequence[float], found: Sequence[Measurement]) -> float | None:
    """Return Spearman's correlation with measured quality; None where there is none."""
    measured = [one.quality or 0.0 for one in found]
    if len(found) < 3 or np.ptp(expected) == 0 or np.ptp(measured) == 0:
        return None
    return float(spearmanr(expected, measured).statistic)


def trial_record(row: Row) -> TrialRecord:
    """Return a stored trial as a reader sees it."""
    outcome = row.outcome
    running = row.state == "running"
    return TrialRecord(
        number=row.number,
        state=_state(row),
        plan=row.plan,
        plan_hash=row.plan_hash,
        source=row.source,
        measurement=None if outcome is None else outcome.measurement,
        failure=None if outcome is None else outcome.reason,
        worker=row.worker,
        since=_time(row.since) if running and row.since is not None else None,
        lease=_time(row.lease_until) if running and row.lease_until is not None else None,
    )


def _state(row: Row) -> State:
    """Return the state of a trial in the words of readers."""
    if row.state == "running" and row.stale:
        return "interrupted"
    state: State = row.state  # type: ignore[assignment]
    return state


def _time(seconds: float) -> datetime:
    """Return a time of the database."""
    return datetime.fromtimestamp(seconds, UTC)


def study_identity(
    space: Space,
    objective: Mapping[str, Any],
    seed: int,
    sampler: str,
    prior: Prior | None,
    goal: Goal = "single",
) -> dict[str, Any]:
    """Return what a study is about, as plain JSON.

    Args:
        space: the search space with its budget.
        objective: everything that a measurement depends on beside the plan and the seed.
        seed: the study's seed.
        sampler: name in the registry.
        prior: what the sampler knows; of the worths only those of the space's units count.
        goal: what the sampler looks for.

    Raises:
        DataError: the objective is not plain JSON.
    """
    known = None if prior is None else prior.to_json()
    if known is not None and known["worths"] is not None:
        known["worths"] = {name: float(known["worths"][name]) for name in space.names}
    about = {
        "objective": dict(objective),
        "space": space.to_json(),
        "seed": seed,
        "sampler": sampler,
        "prior": known,
        "goal": goal,
    }
    # Through text and back, so that it compares equal to what the database returns.
    plain: dict[str, Any] = json.loads(canonical_json(about))
    return plain


def differences(stored: Any, now: Any, path: str = "") -> list[str]:
    """Describe, field by field, where two JSON values differ: "objective.steps: 300 -> 600"."""
    if isinstance(stored, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted(stored.keys() | now.keys())
            for line in differences(
                stored.get(key, _ABSENT), now.get(key, _ABSENT), f"{path}.{key}" if path else key
            )
        ]
    if isinstance(stored, list) and isinstance(now, list) and len(stored) == len(now):
        return [
            line
            for index, (old, new) in enumerate(zip(stored, now, strict=True))
            for line in differences(old, new, f"{path}[{index}]")
        ]
    if type(stored) is type(now) and stored == now:
        return []
    return [f"{path}: {_short(stored)} -> {_short(now)}"]


_ABSENT = object()


def _short(value: Any) -> str:
    """Return a value as short JSON."""
    if value is _ABSENT:
        return "(absent)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
