"""The mirror: Optuna's study of the finished trials, for Optuna's dashboard and command line.

Every trial that was measured or failed is a trial there, and no other is, so all of them are
feasible and say so. Nothing is ever read from it. One trial has

* one categorical parameter {0, 1} per unit, the unit's name;
* the user attributes `plan`, `plan_hash`, `source`, and `failure` if it failed;
* a constraint per limit of the budget, cost minus maximum, at most 0: a function of the plan alone.
  optuna-dashboard 0.21 reads the same numbers from the system attribute `constraints`, a list.

`Study.add_trial` would send two queries per parameter, some 0.1 to 0.7 s for 140, and in a
transaction of its own, so that a process killed behind it leaves a trial that is not known to be
there. The rows are therefore written directly, in the very transaction that records the result: a
trial is in both or in neither. This holds for one version of Optuna's tables (`OPTUNA_SCHEMA`);
with another one the mirror stays as it is, with a warning, and the search goes on.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, distribution_to_json
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from circuitsearch.core.errors import ConfigError, PlanError
from circuitsearch.core.plan import Plan
from circuitsearch.search.samplers import FAILURE
from circuitsearch.search.space import Space
from circuitsearch.search.storage.connection import masked, storage_errors
from circuitsearch.search.storage.tables import (
    OPTUNA_SCHEMA,
    optuna_studies,
    optuna_system_attributes,
    optuna_trials,
    optuna_user_attributes,
    optuna_values,
    optuna_version,
)
from circuitsearch.search.storage.transactions import (
    LEGACY,
    MIRROR,
    no_study,
    optuna_attributes,
    reading,
)

__all__ = ["Finished", "Mirror", "mirror_name"]

_BIT = CategoricalDistribution((0, 1))
# The value of a categorical parameter is the index of its choice, which is the bit itself.
_PARAMS = {
    "sqlite": """
        INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
        SELECT :trial, bit.key, bit.value, :form FROM json_each(:bits) AS bit
    """,
    "postgresql": """
        INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
        SELECT :trial, bit.key, CAST(bit.value AS double precision), :form
        FROM json_each_text(CAST(:bits AS json)) AS bit
    """,
}


@dataclass(frozen=True)
class Finished:
    """What the mirror shows of a trial.

    Attributes:
        plan: canonical text of the plan.
        plan_hash: its hash.
        source: who proposed it.
        quality: what it reached; None when it failed.
        reason: why it failed; None when it did not.
        began: when its evaluation began, in seconds since 1970.
        ended: when it ended.
    """

    plan: str
    plan_hash: str
    source: str
    quality: float | None
    reason: str | None
    began: float
    ended: float


def mirror_name(study: str, phase: str | None = None) -> str:
    """Return the name of Optuna's study for a study or one of its further phases."""
    return study if phase is None else f"{study}:{phase}"


class Mirror:
    """Optuna's study of one study's trials under one objective."""

    def __init__(self, storage: RDBStorage, name: str, space: Space) -> None:
        """Describe a mirror; nothing is written before `prepare`.

        Args:
            storage: from `open_storage`.
            name: from `mirror_name`.
            space: gives the parameters and limits.
        """
        self.name = name
        self.space = space
        self._storage = storage
        self._bits = distribution_to_json(_BIT)
        self._on = False

    def check(self, *, new: bool) -> None:
        """Refuse a name under which Optuna keeps a study that is no mirror.

        Args:
            new: whether the mirrored study does not exist yet.

        Raises:
            ConfigError: there is such a study.
            StorageError: the database fails.
        """
        found = optuna_attributes(self._storage, self.name)
        if found is None or (MIRROR in found and not new):
            return
        with storage_errors(self._storage.url):
            study = self._storage.get_study_id_from_name(self.name)
            empty = self._storage.get_n_trials(study) == 0
            maximises = self._storage.get_study_directions(study) == [StudyDirection.MAXIMIZE]
        # An empty one was left by a process that was killed while it created the study.
        if not (empty and maximises and LEGACY not in found):
            if new or LEGACY in found:
                raise no_study(self._storage, self.name)
            raise ConfigError(
                f"Study {self.name!r}: Optuna's study of that name in "
                f"{masked(self._storage.url)} is not its mirror; rename or delete that one"
            )

    def prepare(self) -> None:
        """Create Optuna's study if it is missing.

        Raises:
            ConfigError: Optuna has a study of that name which is no mirror.
            StorageError: the database fails.
        """
        self.check(new=False)
        found = optuna_attributes(self._storage, self.name)
        with storage_errors(self._storage.url):
            if found is None:
                # Another worker may create it at this moment.
                with contextlib.suppress(DuplicatedStudyError):
                    self._storage.create_new_study([StudyDirection.MAXIMIZE], self.name)
            if found is None or MIRROR not in found:
                study = self._storage.get_study_id_from_name(self.name)
                self._storage.set_study_user_attr(study, MIRROR, self.name)
        with reading(self._storage) as connection:
            version = connection.scalar(sa.select(optuna_version.c.version_num))
        self._on = version == OPTUNA_SCHEMA
        if not self._on:
            warnings.warn(
                f"Optuna's tables have version {version}, circuitsearch writes {OPTUNA_SCHEMA}: "
                f"the study {self.name!r} is complete, but Optuna's tools will not show its trials",
                stacklevel=2,
            )

    def add(self, connection: sa.Connection, trials: Iterable[Finished]) -> int:
        """Add finished trials inside the transaction that records them; return how many.

        Does nothing before `prepare`, or when someone has deleted Optuna's study: `missing` finds
        later what was left out.
        """
        study = self._locked(connection) if self._on else None
        if study is None:
            return 0
        counted = sa.select(sa.func.count()).where(optuna_trials.c.study_id == study)
        number = connection.scalar(counted) or 0
        # A plan that another program queued past all checks failed, and is no trial here.
        feasible = [trial for trial in trials if self._feasible(trial.plan)]
        for place, trial in enumerate(feasible, start=number):
            self._insert(connection, study, place, trial)
        return len(feasible)

    def missing(self, connection: sa.Connection, plan_hashes: Iterable[str]) -> list[str]:
        """Return those of the plans that Optuna's study does not show, in the same order."""
        study = self._locked(connection) if self._on else None
        if study is None:
            return []
        joined = optuna_user_attributes.join(
            optuna_trials, optuna_trials.c.trial_id == optuna_user_attributes.c.trial_id
        )
        query = (
            sa.select(optuna_user_attributes.c.value_json)
            .select_from(joined)
            .where(optuna_trials.c.study_id == study)
            .where(optuna_user_attributes.c.key == "plan_hash")
        )
        shown = {json.loads(text) for text in connection.scalars(query)}
        return [one for one in plan_hashes if one not in shown]

    def frozen(self, trial: Finished) -> FrozenTrial:
        """Return a trial in Optuna's form.

        Raises:
            PlanError: the plan does not belong to the space.
        """
        plan = Plan.parse(trial.plan)
        bits = self.space.bits(plan)
        slack = self.space.budget.slack(plan, self.space.shape)
        over = {name: float(-left) for name, left in slack.items()}
        dashboard = {"constraints": list(over.values())} if over else {}
        about = {"plan": trial.plan, "plan_hash": trial.plan_hash, "source": trial.source}
        if trial.reason is not None:
            about[FAILURE] = trial.reason
        return create_trial(
            state=TrialState.FAIL if trial.quality is None else TrialState.COMPLETE,
            value=trial.quality,
            params=dict(zip(self.space.names, bits, strict=True)),
            distributions=dict.fromkeys(self.space.names, _BIT),
            user_attrs=about,
            system_attrs=dashboard,
            constraints=over,
        )

    def _feasible(self, plan: str) -> bool:
        """Whether the plan belongs to the space and meets its limits."""
        try:
            return self.space.feasible(Plan.parse(plan))
        except PlanError:
            return False

    def _locked(self, connection: sa.Connection) -> int | None:
        """Return the number of Optuna's study and lock it against Optuna's own writers."""
        query = (
            sa.select(optuna_studies.c.study_id)
            .where(optuna_studies.c.study_name == self.name)
            .with_for_update()
        )
        return connection.scalar(query)

    def _insert(
        self, connection: sa.Connection, study: int, number: int, finished: Finished
    ) -> None:
        """Write the rows of one trial."""
        trial = self.frozen(finished)
        row = {
            "number": number,
            "study_id": study,
            "state": trial.state.name,
            "datetime_start": _utc(finished.began),
            "datetime_complete": _utc(finished.ended),
        }
        done = connection.execute(sa.insert(optuna_trials).values(row))
        key = done.inserted_primary_key
        trial_id = 0 if key is None else int(key[0])
        # One statement for all of them: one per row takes many times as long.
        params = {"trial": trial_id, "bits": json.dumps(trial.params), "form": self._bits}
        connection.execute(sa.text(_PARAMS[connection.dialect.name]), params)
        if trial.value is not None:
            value = {"objective": 0, "value": trial.value, "value_type": "FINITE"}
            _many(connection, optuna_values, trial_id, [value])
        _many(connection, optuna_user_attributes, trial_id, _pairs(trial.user_attrs))
        _many(connection, optuna_system_attributes, trial_id, _pairs(trial.system_attrs))


def _many(
    connection: sa.Connection, table: sa.Table, trial_id: int, rows: list[dict[str, Any]]
) -> None:
    """Insert the rows of one trial into one table."""
    if rows:
        connection.execute(sa.insert(table), [{"trial_id": trial_id, **row} for row in rows])


def _pairs(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return attributes as rows."""
    return [{"key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]


def _utc(seconds: float) -> datetime:
    """Return a time in the form of Optuna 5's columns."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
