"""The tables of a search, which lie beside Optuna's in one database and hold the truth.

    circuitsearch_studies   one row per study: identity, configuration, versions, the stop flag
    circuitsearch_phases    further objectives of a study, each with results of its own
    circuitsearch_claims    one row per plan and objective: its place in the order, who works on it
    circuitsearch_results   what came out; written once, never changed, never deleted
    circuitsearch_speeds    what was measured of plans before they may become trials

A plan's trial is its row of claims: `queued` (to be evaluated), `running` (by `worker`, until
`lease_until`), `measured` or `failed`. `number` is its place in the order and counts from 0; trials
are started in this order and numbers only grow, so a plan that was handed back precedes all that
were never begun. `deaths` counts the workers that died while they evaluated it. Times are seconds
since 1970 on the database's clock.

A row of speeds is `measuring` (by `worker`, until `lease_until`), `admitted` or `refused` (over a
measured limit: never a trial); `amounts` are its figures by limit as JSON, `device` says where they
were measured.

Below them stand those of Optuna's tables that the `mirror` writes; they are never created from
here.
"""

from __future__ import annotations

import sqlalchemy as sa

__all__ = [
    "OPTUNA_SCHEMA",
    "SCHEMA",
    "claims",
    "metadata",
    "optuna_studies",
    "optuna_system_attributes",
    "optuna_trials",
    "optuna_user_attributes",
    "optuna_values",
    "optuna_version",
    "phases",
    "results",
    "speeds",
    "studies",
]

SCHEMA = 3
"""Version of these tables. Version 1 had results only and kept the rest in Optuna's study; version
2 knew no measured limits, hence no speeds."""
OPTUNA_SCHEMA = "v3.2.0.a"
"""Version of Optuna's tables that is described here: that of Optuna 3.2 up to the present 5."""

metadata = sa.MetaData()
"""Our own tables; created whenever a storage is opened."""

studies = sa.Table(
    "circuitsearch_studies",
    metadata,
    sa.Column("name", sa.String(512), primary_key=True),
    sa.Column("identity", sa.Text, nullable=False),
    sa.Column("config", sa.Text, nullable=True),
    sa.Column("versions", sa.Text, nullable=True),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("stop", sa.Integer, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
)
phases = sa.Table(
    "circuitsearch_phases",
    metadata,
    sa.Column("study", sa.String(512), primary_key=True),
    sa.Column("phase", sa.String(64), primary_key=True),
    sa.Column("objective_hash", sa.String(64), nullable=False),
    sa.Column("objective", sa.Text, nullable=False),
)
claims = sa.Table(
    "circuitsearch_claims",
    metadata,
    sa.Column("study", sa.String(512), primary_key=True),
    sa.Column("objective_hash", sa.String(64), primary_key=True),
    sa.Column("plan_hash", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("worker", sa.Text, nullable=True),
    sa.Column("since", sa.Double, nullable=True),
    sa.Column("lease_until", sa.Double, nullable=True),
    sa.Column("deaths", sa.Integer, nullable=False),
    sa.UniqueConstraint("study", "objective_hash", "number", name="circuitsearch_claims_number"),
    sa.Index("circuitsearch_claims_state", "study", "objective_hash", "state"),
)
results = sa.Table(
    "circuitsearch_results",
    metadata,
    sa.Column("study", sa.String(512), primary_key=True),
    sa.Column("plan_hash", sa.String(64), primary_key=True),
    sa.Column("objective_hash", sa.String(64), primary_key=True),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("measurement", sa.Text, nullable=True),
    sa.Column("reason", sa.Text, nullable=True),
    sa.Column("recorded", sa.String(40), nullable=False),
)
speeds = sa.Table(
    "circuitsearch_speeds",
    metadata,
    sa.Column("study", sa.String(512), primary_key=True),
    sa.Column("plan_hash", sa.String(64), primary_key=True),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("amounts", sa.Text, nullable=True),
    sa.Column("device", sa.Text, nullable=True),
    sa.Column("worker", sa.Text, nullable=True),
    sa.Column("lease_until", sa.Double, nullable=True),
    sa.Column("recorded", sa.Double, nullable=True),
)

_optuna = sa.MetaData()
optuna_version = sa.Table("alembic_version", _optuna, sa.Column("version_num", sa.String))
optuna_studies = sa.Table(
    "studies",
    _optuna,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("study_name", sa.String),
)
optuna_trials = sa.Table(
    "trials",
    _optuna,
    sa.Column("trial_id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer),
    sa.Column("study_id", sa.Integer),
    sa.Column("state", sa.Enum("COMPLETE", "FAIL", name="trialstate")),
    sa.Column("datetime_start", sa.DateTime),  # UTC, without a zone
    sa.Column("datetime_complete", sa.DateTime),
)
optuna_values = sa.Table(
    "trial_values",
    _optuna,
    sa.Column("trial_id", sa.Integer),
    sa.Column("objective", sa.Integer),
    sa.Column("value", sa.Double),
    sa.Column("value_type", sa.Enum("FINITE", name="trialvaluetype")),
)


def _attributes(name: str) -> sa.Table:
    """Describe one of the tables of trial attributes, whose values are JSON."""
    return sa.Table(
        name,
        _optuna,
        sa.Column("trial_id", sa.Integer),
        sa.Column("key", sa.String),
        sa.Column("value_json", sa.Text),
    )


optuna_user_attributes = _attributes("trial_user_attributes")
optuna_system_attributes = _attributes("trial_system_attributes")
