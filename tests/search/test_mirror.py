"""The mirror: what Optuna's own tools see of a study."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from circuitsearch.core.errors import ConfigError, TrainingError
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.search.storage import mirror as module
from circuitsearch.search.storage.connection import close_storage, open_storage
from circuitsearch.search.storage.mirror import Finished, Mirror
from circuitsearch.search.study import Study
from circuitsearch.search.units import Choices
from tests.search_fixtures import Landscape, limit, make_space

SPACE = make_space("40%", limit("50%", "macs"))


@pytest.fixture(params=["sqlite", "postgres"])
def storage(request: pytest.FixtureRequest) -> Iterator[RDBStorage]:
    """Each back-end in turn."""
    if request.param == "sqlite":
        yield request.getfixturevalue("memory")
        return
    opened = open_storage(request.getfixturevalue("postgres"))
    yield opened
    close_storage(opened)


def opened(storage: RDBStorage, name: str) -> Study:
    return Study.open(storage, name, SPACE, {"steps": 3}, 11, "random")


def run(study: Study, trainings: int = 4) -> Landscape:
    """Run a study in which one plan fails."""
    landscape = Landscape.random(SPACE, 5)

    def evaluate(plan: Plan, source: str) -> Measurement:
        if plan == Plan.parse("C1"):
            raise TrainingError("loss is not finite")
        return landscape.measure(plan, source)

    study.run(evaluate, trainings, [(Plan.parse(text), "scores") for text in ("C0", "C1")])
    return landscape


def shown(storage: RDBStorage, name: str) -> list[tuple[str, float | None]]:
    """Plan and value of every trial that Optuna has."""
    trials = optuna.load_study(storage=storage, study_name=name).trials
    return [(trial.user_attrs["plan"], trial.value) for trial in trials]


def test_optuna_sees_finished_trials_and_all_are_feasible(storage: RDBStorage, name: str) -> None:
    study = opened(storage, name)
    run(study)
    # Through plain Optuna, as its dashboard and command line do.
    seen = optuna.load_study(storage=storage, study_name=name)
    assert seen.directions == [optuna.study.StudyDirection.MAXIMIZE]
    assert len(seen.trials) == len(study.trials()) == 5
    for number, (trial, record) in enumerate(zip(seen.trials, study.trials(), strict=True)):
        plan = Plan.parse(record.plan)
        assert trial.number == number == record.number
        assert trial.params == dict(zip(SPACE.names, SPACE.bits(plan), strict=True))
        about = {"plan": record.plan, "plan_hash": record.plan_hash, "source": record.source}
        if record.state == "failed":
            about["failure"] = "loss is not finite"
        assert trial.user_attrs == about
        over = {key: -left for key, left in SPACE.budget.slack(plan, SPACE.shape).items()}
        assert {key: trial.constraints[key] for key in over} == over
        assert all(value <= 0 for value in trial.constraints.values())
        assert trial.system_attrs["constraints"] == list(over.values())
    assert [trial.state for trial in seen.trials].count(TrialState.FAIL) == 1
    best = study.best()
    assert best is not None
    assert seen.best_value == best.quality
    assert seen.best_trial.user_attrs["plan"] == best.plan


def comparable(trial: FrozenTrial) -> dict[str, object]:
    """All of a trial but its numbers and times."""
    return {
        "state": trial.state,
        "values": trial.values,
        "params": trial.params,
        "distributions": trial.distributions,
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "constraints": trial.constraints,
        "intermediate": trial.intermediate_values,
    }


@pytest.mark.parametrize("quality", [0.25, None])
def test_rows_equal_those_that_optuna_writes(
    storage: RDBStorage, name: str, quality: float | None
) -> None:
    space = make_space("50%", layers=2, choices=Choices(attention="heads", replacements=("mean",)))
    plan = space.plan(next(space.bits(one) for one in space.enumerate() if len(one.kept) > 2))
    began = datetime(2026, 7, 1, 12, 0, 0, 250_000, UTC)
    reason = "why" if quality is None else None
    finished = Finished(str(plan), plan.hash, "s", quality, reason, began.timestamp(), 2e9)
    mirror = Mirror(storage, name, space)
    mirror.prepare()
    with storage.engine.begin() as connection:
        mirror.add(connection, [finished])
    slow = optuna.create_study(storage=storage, study_name=f"{name}-slow", direction="maximize")
    slow.add_trial(mirror.frozen(finished))
    ours = optuna.load_study(storage=storage, study_name=name).trials[0]
    assert comparable(ours) == comparable(slow.trials[0])
    assert (ours.number, slow.trials[0].number) == (0, 0)
    assert ours.datetime_start is not None
    assert ours.datetime_start.astimezone(UTC) == began  # Optuna gives local times
    assert ours.duration == timedelta(seconds=2e9 - began.timestamp())
    # Optuna goes on counting where we stopped.
    again = optuna.load_study(storage=storage, study_name=name)
    again.add_trial(slow.trials[0])
    assert [trial.number for trial in again.trials] == [0, 1]


def test_what_the_mirror_lacks_is_added_once(storage: RDBStorage, name: str) -> None:
    study = opened(storage, name)
    run(study)
    before = shown(storage, name)
    assert study.repair_mirror() == 0
    optuna.delete_study(storage=storage, study_name=name)
    run(opened(storage, name), 5)
    assert shown(storage, name)[:5] == before
    assert len(shown(storage, name)) == 6
    assert study.repair_mirror() == 0


def test_a_mirror_deleted_during_the_run_is_made_anew(storage: RDBStorage, name: str) -> None:
    study = opened(storage, name)
    landscape = Landscape.random(SPACE, 5)

    def evaluate(plan: Plan, source: str) -> Measurement:
        if len(landscape.calls) == 1:
            optuna.delete_study(storage=storage, study_name=name)
        return landscape.measure(plan, source)

    study.run(evaluate, 3)
    assert len(study.measurements()) == 3
    assert study.repair_mirror() == 3
    assert [plan for plan, _ in shown(storage, name)] == [plan for plan, _ in landscape.calls]


def test_what_others_do_in_optunas_study_changes_nothing(memory: RDBStorage, name: str) -> None:
    study = opened(memory, name)
    foreign = optuna.load_study(storage=memory, study_name=name)
    foreign.enqueue_trial(dict.fromkeys(SPACE.names, 1))  # infeasible
    foreign.ask()
    landscape = run(study)
    assert all(SPACE.feasible(Plan.parse(plan)) for plan, _ in landscape.calls)
    assert len(study.trials()) == 5
    assert [trial.number for trial in foreign.trials] == list(range(6))


def test_an_infeasible_plan_in_our_own_table_fails_and_is_not_shown(
    memory: RDBStorage, name: str
) -> None:
    study = opened(memory, name)
    for text in ("C0 M0 M1 M2 M3", "M0 M7"):  # too large; of no such decoder
        study._ledger.queue([(Plan.parse(text), "by hand")])
    landscape = run(study, 1)
    assert [plan for plan, _ in landscape.calls] == ["C0"]
    first, second = study.trials()[:2]
    assert "decoder parameters (paper): the plan needs 36,864" in (first.failure or "")
    assert "M7" in (second.failure or "")
    assert [plan for plan, _ in shown(memory, name)] == ["C0"]
    assert study.repair_mirror() == 0


def test_another_version_of_optunas_tables_is_left_alone(
    memory: RDBStorage, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = opened(memory, name)
    with monkeypatch.context() as patch:
        patch.setattr(module, "OPTUNA_SCHEMA", "v9")
        with pytest.warns(UserWarning, match=r"have version v3\.2\.0\.a, circuitsearch writes v9"):
            run(study)
    assert study.status().measured == 4
    assert shown(memory, name) == []
    # A version that knows them catches up.
    assert study.repair_mirror() == 5


def test_a_study_of_optuna_is_never_taken_for_a_mirror(memory: RDBStorage, name: str) -> None:
    study = opened(memory, name)
    optuna.delete_study(storage=memory, study_name=name)
    optuna.create_study(storage=memory, study_name=name, direction="maximize").ask()
    with pytest.raises(ConfigError, match="is not its mirror; rename or delete that one"):
        run(study)
    # What Optuna's tools copied has none of our tables.
    run(opened(memory, f"{name}-whole"), 1)
    optuna.copy_study(
        from_study_name=f"{name}-whole",
        from_storage=memory,
        to_storage=memory,
        to_study_name=f"{name}-part",
    )
    with pytest.raises(ConfigError, match="circuitsearch study copy"):
        opened(memory, f"{name}-part")


def test_no_row_of_a_trial_is_there_without_its_result(database: Path) -> None:
    storage = open_storage(database)
    study = opened(storage, "study")

    def refuse(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "trial_system_attributes" in statement and "INSERT" in statement:
            raise KeyboardInterrupt

    sa.event.listen(storage.engine, "before_cursor_execute", refuse)
    with pytest.raises(KeyboardInterrupt):
        run(study)
    sa.event.remove(storage.engine, "before_cursor_execute", refuse)
    assert shown(storage, "study") == []
    assert [(one.plan, one.state) for one in study.trials()] == [("C0", "queued"), ("C1", "queued")]
    close_storage(storage)
