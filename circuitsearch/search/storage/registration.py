"""Registration: create a study's rows, or refuse to open what is about something else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from optuna.storages import RDBStorage

from circuitsearch.core.errors import ConfigError
from circuitsearch.core.files import canonical_json, content_hash, ordered_json
from circuitsearch.search.storage.connection import masked
from circuitsearch.search.storage.mirror import Mirror
from circuitsearch.search.storage.rows import is_stale
from circuitsearch.search.storage.tables import claims, phases, studies
from circuitsearch.search.storage.transactions import (
    Locked,
    create_study,
    find_study,
    locked,
    read_study,
)
from circuitsearch.search.storage.view import StudyView, differences

__all__ = ["add_phase", "check_unchanged", "check_versions", "register"]


def register(
    storage: RDBStorage,
    name: str,
    mirror: Mirror,
    identity: Mapping[str, Any],
    config: Any = None,
    versions: Mapping[str, Any] | None = None,
) -> None:
    """Create a study, or check that the one of that name is about the same.

    Configuration and versions replace the stored ones; other versions only while nobody is at work.

    Raises:
        ConfigError: the study is about something else, its workers run other versions, or Optuna
            has a study of that name that is none of circuitsearch.
        StorageError: the database fails.
    """
    stored = find_study(storage, name)
    if stored is None:
        mirror.check(new=True)
        create_study(storage, name, identity, config, versions)
        stored = read_study(storage, name)
    _refuse_other(storage, name, differences(stored.identity, identity))
    _update(storage, name, config, versions)
    mirror.prepare()


def check_unchanged(storage: RDBStorage, name: str, identity: Mapping[str, Any]) -> None:
    """Refuse what `register` would refuse, as far as it is known without the prior.

    Raises:
        ConfigError: there is a study of that name about something else.
        StorageError: the database fails.
    """
    stored = find_study(storage, name)
    if stored is not None:
        known = {**stored.identity, "prior": identity["prior"]}
        _refuse_other(storage, name, differences(known, identity))


def _refuse_other(storage: RDBStorage, name: str, changed: Sequence[str]) -> None:
    if changed:
        lines = "\n".join(f"  - {line}" for line in changed[:40])
        raise ConfigError(
            f"Study {name!r} in {masked(storage.url)} was started with other settings "
            f"(stored -> now):\n{lines}\nThree ways out: change them back to go on with it; give "
            "this search another name and output folder; or do that and take the results and best "
            "plans along: circuitsearch study fork NEW.yaml FOLDER, the folder being this search's"
        )


def check_versions(view: StudyView, versions: Mapping[str, Any] | None) -> None:
    """Refuse a worker whose programs differ from those that the study runs with.

    Nothing is compared when either side did not give versions.

    Raises:
        ConfigError: lists every difference.
    """
    if versions is not None and view.versions is not None:
        _refuse(view.name, differences(view.versions, _plain(versions)))


def add_phase(
    storage: RDBStorage,
    study: str,
    identity: Mapping[str, Any],
    phase: str,
    objective: Mapping[str, Any],
) -> None:
    """Register a further phase of a study, or check that it is about the same.

    Raises:
        ConfigError: the name is no name, the phase has another objective, or another phase has
            the same objective, so that their trials would be one.
        StorageError: the database fails.
    """
    now = _plain(objective)
    if not phase.strip() or len(phase) > 64:
        raise ConfigError(f"Phase {phase!r}: allowed are names of 1 to 64 characters")
    with locked(storage, study) as held:
        query = sa.select(phases).where(phases.c.study == study)
        rows = held.connection.execute(query).mappings().all()
        known = {row["phase"]: json.loads(row["objective"]) for row in rows}
        if phase not in known:
            for other, taken in {"the search itself": identity["objective"], **known}.items():
                if content_hash(taken) == content_hash(now):
                    raise ConfigError(
                        f"Phase {phase!r} of study {study!r} has the objective of {other}, so "
                        "their results would be the same; use that one"
                    )
            row = {
                "study": study,
                "phase": phase,
                "objective_hash": content_hash(now),
                "objective": canonical_json(now),
            }
            held.connection.execute(sa.insert(phases).values(row))
            return
    changed = differences(known[phase], now, "objective")
    if changed:
        lines = "\n".join(f"  - {line}" for line in changed[:40])
        raise ConfigError(
            f"Phase {phase!r} of study {study!r} was started with other settings (stored -> now):"
            f"\n{lines}\nChange them back, or give the phase another name."
        )


def _update(
    storage: RDBStorage, name: str, config: Any, versions: Mapping[str, Any] | None
) -> None:
    """Store the present configuration and versions; other versions only while nobody is at work."""
    given = {"config": config, "versions": versions}
    values = {key: ordered_json(value) for key, value in given.items() if value is not None}
    if not values:
        return
    with locked(storage, name) as held:
        text = held.connection.scalar(sa.select(studies.c.versions).where(studies.c.name == name))
        if versions is not None and text is not None and _at_work(held, name):
            _refuse(name, differences(json.loads(text), _plain(versions)))
        change = sa.update(studies).where(studies.c.name == name)
        held.connection.execute(change.values(values))


def _at_work(held: Locked, name: str) -> bool:
    """Whether a worker that may be alive evaluates a plan of the study."""
    running = sa.select(claims.c.worker, claims.c.lease_until).where(
        claims.c.study == name, claims.c.state == "running"
    )
    return not all(is_stale(*row, held.now) for row in held.connection.execute(running))


def _refuse(study: str, changed: list[str]) -> None:
    """Raise when versions differ."""
    if changed:
        lines = "\n".join(f"  - {line}" for line in changed)
        raise ConfigError(
            f"Study {study!r} is run with other versions (stored -> here):\n{lines}\nInstall the "
            "stored ones here. Or stop its workers (circuitsearch stop) and resume the search with "
            "the new ones: its values may then differ a little from the earlier ones."
        )


def _plain(value: Any) -> Any:
    """Return a value through text and back, so that it compares equal to what is stored."""
    return json.loads(canonical_json(value))
