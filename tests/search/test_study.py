"""The study: order of events, refusals; killed at any moment it ends like an undisturbed one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage

from circuitsearch.core.errors import (
    ConfigError,
    DataError,
    InfeasibleError,
    PlanError,
    StorageError,
    TrainingError,
)
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.search.samplers import Prior, SpaceExhaustedError
from circuitsearch.search.space import Space
from circuitsearch.search.storage.connection import close_storage, open_storage
from circuitsearch.search.storage.ledger import Ledger
from circuitsearch.search.storage.rows import Row
from circuitsearch.search.storage.view import StudyStatus, StudyView, TrialRecord, differences
from circuitsearch.search.study import Ending, Study
from tests.search_fixtures import Landscape, limit, make_space

SPACE = make_space("40%", limit("50%", "macs"))
OBJECTIVE = {"teacher": "abc", "steps": 300, "data": {"pages": 7}}


@pytest.fixture
def landscape() -> Landscape:
    return Landscape.random(SPACE, 5, noise=0.02)


def opened(
    storage: RDBStorage,
    name: str,
    space: Space = SPACE,
    sampler: str = "circuit",
    objective: dict[str, Any] = OBJECTIVE,
    seed: int = 11,
    prior: Prior | dict[str, float] | None = None,
) -> Study:
    """A study with defaults that the tests vary one by one."""
    scores = Landscape.random(SPACE, 5).prior(0.6) if prior is None else prior
    return Study.open(storage, name, space, objective, seed, sampler, scores)


def plans(view: StudyView) -> list[str]:
    return [one.plan for one in view.measurements()]


def warm(*texts: str) -> list[tuple[Plan, str]]:
    return [(Plan.parse(text), "scores") for text in texts]


def test_warm_plans_first_then_proposals(
    memory: RDBStorage, name: str, landscape: Landscape
) -> None:
    study = opened(memory, name)
    seen: list[TrialRecord] = []
    ending = study.run(landscape.measure, 6, warm("C3 M3", "S1 C0", "M3 C3"), seen.append)
    assert ending is Ending.TRAININGS
    assert landscape.calls[:2] == [("C3 M3", "scores"), ("C0 S1", "scores")]
    assert {source for _, source in landscape.calls[2:]} == {"sampler"}
    assert len({plan for plan, _ in landscape.calls}) == len(landscape.calls) == 6
    assert [(one.number, one.state, one.plan) for one in seen] == [
        (index, "measured", plan) for index, (plan, _) in enumerate(landscape.calls)
    ]
    assert study.trials() == seen
    assert study.measurements() == [one.measurement for one in seen]
    best = study.best()
    assert best is not None
    assert best.quality == max(one.quality or 0 for one in study.measurements())
    assert study.status() == StudyStatus(6, 0, 0, 0, 0)


def test_how_far_it_is_counts_what_others_found_and_reads_nothing_twice(
    memory: RDBStorage, name: str, landscape: Landscape, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, other = opened(memory, name), opened(memory, name)
    assert study.so_far() == (0, None)
    other.run(landscape.measure, 6)
    assert study.so_far() == (6, study.best())
    read = []
    rows = Ledger.rows

    def counting(ledger: Ledger, start: int = 0) -> list[Row]:
        found = rows(ledger, start)
        read.append(len(found))
        return found

    monkeypatch.setattr(Ledger, "rows", counting)
    assert study.so_far()[0] == 6
    assert read == [0]
    monkeypatch.undo()

    def failing(plan: Plan, source: str) -> Measurement:
        raise TrainingError("the loss is not finite")

    with pytest.raises(TrainingError):
        other.run(failing, 7, max_failures=0)
    study.run(landscape.measure, 9)
    assert study.so_far() == (9, study.best())


def test_the_search_finds_the_known_optimum(memory: RDBStorage, name: str) -> None:
    landscape = Landscape.random(SPACE, 2)
    study = opened(memory, name, prior=landscape.prior(0.6))
    study.run(landscape.measure, 20)
    best = study.best()
    assert best is not None
    # Sums of the same twelve numbers in another order.
    assert best.quality == pytest.approx(landscape.best(), rel=1e-12)


def test_running_on_equals_running_through(memory: RDBStorage, name: str) -> None:
    through, parts = Landscape.random(SPACE, 5), Landscape.random(SPACE, 5)
    opened(memory, f"{name}-through").run(through.measure, 9, warm("C0 S1"))
    for trainings in (1, 4, 4, 9):
        opened(memory, name).run(parts.measure, trainings, warm("C0 S1"))
    assert parts.calls == through.calls
    assert plans(StudyView(memory, name)) == plans(StudyView(memory, f"{name}-through"))


def test_a_finished_study_evaluates_nothing_and_queues_nothing(
    memory: RDBStorage, name: str, landscape: Landscape
) -> None:
    opened(memory, name).run(landscape.measure, 3)
    count = len(landscape.calls)
    assert opened(memory, name).run(landscape.measure, 3, warm("C0 S1")) is Ending.TRAININGS
    assert len(landscape.calls) == count
    assert StudyView(memory, name).status().queued == 0


def test_more_warm_plans_than_trainings_wait(
    memory: RDBStorage, name: str, landscape: Landscape
) -> None:
    study = opened(memory, name)
    study.run(landscape.measure, 1, warm("C0", "C1", "C2"))
    assert study.status() == StudyStatus(measured=1, failed=0, running=0, queued=2, interrupted=0)
    assert [one.plan for one in study.trials()] == ["C0", "C1", "C2"]
    study.run(landscape.measure, 3)
    assert plans(study) == ["C0", "C1", "C2"]


def test_the_whole_space_is_a_normal_end(memory: RDBStorage, name: str) -> None:
    space = make_space("50%", layers=1)
    landscape = Landscape.random(space, 0)
    study = opened(memory, name, space, prior=landscape.prior())
    assert study.run(landscape.measure, 100) is Ending.EXHAUSTED
    assert sorted(plans(study)) == sorted(str(plan) for plan in space.enumerate())
    assert study.run(landscape.measure, 100) is Ending.EXHAUSTED
    assert study.status().interrupted == 0


def test_a_sampler_that_gives_up_ends_the_run_normally(
    memory: RDBStorage, name: str, landscape: Landscape, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As when another worker takes the last plan between the count and the proposal.
    study = opened(memory, name)

    def nothing(*_: object) -> None:
        raise SpaceExhaustedError("nothing left")

    monkeypatch.setattr(study._sampler, "propose", nothing)
    assert study.run(landscape.measure, 5) is Ending.EXHAUSTED
    assert study.status().running == 0


def test_failed_trainings_are_recorded_and_not_tried_again(
    memory: RDBStorage, name: str, landscape: Landscape
) -> None:
    def evaluate(plan: Plan, source: str) -> Measurement:
        if plan == Plan.parse("C0"):
            landscape.calls.append(("C0", source))
            raise TrainingError("loss is not finite at step 3")
        return landscape.measure(plan, source)

    seen: list[TrialRecord] = []
    study = opened(memory, name)
    study.run(evaluate, 2, warm("C0", "C1"), seen.append)
    assert [(one.plan, one.state) for one in seen[:2]] == [("C0", "failed"), ("C1", "measured")]
    assert seen[0].failure == "loss is not finite at step 3"
    assert seen[0].measurement is None
    opened(memory, name).run(evaluate, 5, warm("C0"))
    assert [plan for plan, _ in landscape.calls].count("C0") == 1
    assert study.status() == StudyStatus(measured=5, failed=1, running=0, queued=0, interrupted=0)


def test_too_many_failures_stop_the_study_until_more_are_allowed(
    memory: RDBStorage, name: str, landscape: Landscape
) -> None:
    def never(plan: Plan, source: str) -> Measurement:
        raise TrainingError(f"{plan} diverged")

    study = opened(memory, name)
    with pytest.raises(TrainingError, match=r"3 trials have failed, 2 are put up with.*diverged"):
        study.run(never, 5, max_failures=2)
    with pytest.raises(TrainingError, match="3 trials have failed"):
        opened(memory, name).run(landscape.measure, 5, max_failures=2)
    assert landscape.calls == []
    opened(memory, name).run(landscape.measure, 2, max_failures=3)
    assert len(landscape.calls) == 2


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_interrupted_evaluations_are_evaluated_again_in_the_same_order(
    memory: RDBStorage, name: str, fault: type[BaseException]
) -> None:
    through = Landscape.random(SPACE, 5)
    opened(memory, f"{name}-through").run(through.measure, 6, warm("C0 S1", "C1", "C2"))
    landscape = Landscape.random(SPACE, 5)
    stops = iter([0, 1, 4, 4])
    stop = next(stops)

    def evaluate(plan: Plan, source: str) -> Measurement:
        nonlocal stop
        if len(landscape.calls) == stop:
            stop = next(stops, -1)
            raise fault("stopped")
        return landscape.measure(plan, source)

    for _ in range(4):
        study = opened(memory, name)
        with pytest.raises(fault):
            study.run(evaluate, 6, warm("C0 S1", "C1", "C2"))
        assert study.status().running == 0
    # The very object that was interrupted can go on too.
    study.run(evaluate, 6, warm("C0 S1", "C1", "C2"))
    assert landscape.calls == through.calls
    assert study.status() == StudyStatus(6, 0, 0, 0, 0)


def test_infeasible_warm_plans_are_refused_together_and_nothing_is_queued(
    memory: RDBStorage, name: str, landscape: Landscape
) -> None:
    study = opened(memory, name)
    bad = warm("C0", "S0 M0", "C0 M0 M1 M2 M3", "C0 S3[0-1]")
    with pytest.raises(PlanError) as caught:
        study.run(landscape.measure, 3, bad)
    message = str(caught.value)
    assert "S0 M0 (scores): no cross-attention is kept" in message
    assert "C0 M0 M1 M2 M3 (scores): decoder parameters (paper): the plan needs 36,864" in message
    assert "S3[0-1] is no choice of this space" in message
    assert landscape.calls == []
    assert study.trials() == []


def test_other_settings_are_refused_with_a_diff(memory: RDBStorage, name: str) -> None:
    opened(memory, name)
    changed = {"teacher": "abd", "data": {"pages": 7}, "temperature": 2.0}
    with pytest.raises(ConfigError) as caught:
        opened(memory, name, make_space("50%", limit("50%", "macs")), "random", changed, 12)
    message = str(caught.value)
    for line in (
        'objective.teacher: "abc" -> "abd"',
        "objective.steps: 300 -> (absent)",
        "objective.temperature: (absent) -> 2.0",
        "space.budget.limits[0].maximum: 26214 -> 32768",
        'sampler: "circuit" -> "random"',
        "seed: 11 -> 12",
    ):
        assert f"  - {line}" in message
    assert "pages" not in message
    assert "change them back" in message
    assert "another name and output folder" in message
    assert "circuitsearch study fork NEW.yaml FOLDER" in message
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match=r"prior\.worths\.C0: "):
        opened(memory, name, prior=dict.fromkeys(SPACE.names, 1.0))


def test_equal_settings_written_differently_are_the_same(memory: RDBStorage, name: str) -> None:
    opened(memory, name, objective={"a": (1, 2), "b": 1.0})
    opened(memory, name, objective={"b": 1.0, "a": [1, 2]})
    with pytest.raises(DataError):
        opened(memory, f"{name}-nan", objective={"a": float("nan")})


def test_differences_walk_lists_of_equal_length_only() -> None:
    assert differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == ["a[1].b: 2 -> 3"]
    assert differences([1], [1, 2], "x") == ["x: [1] -> [1, 2]"]
    assert differences({"a": 1}, {"a": True}) == ["a: 1 -> true"]
    assert differences({"a": "x" * 200}, {"a": None})[0].endswith("... -> null")


def test_what_cannot_be_opened_is_refused(memory: RDBStorage, name: str) -> None:
    with pytest.raises(ConfigError, match="did you mean 'circuit'"):
        opened(memory, name, sampler="circuits")
    with pytest.raises(InfeasibleError):
        opened(memory, name, make_space("1%"))
    optuna.create_study(storage=memory, study_name=name).ask()
    with pytest.raises(ConfigError, match="was not made by circuitsearch"):
        opened(memory, name)
    opened(memory, f"{name}-ours")
    with pytest.raises(ConfigError, match=rf"did you mean '{name}-ours'"):
        StudyView(memory, f"{name}-OURS")
    with pytest.raises(ConfigError) as caught:
        opened(memory, f"{name}-2").run(
            Landscape.random(SPACE, 0).measure, 0, max_failures=-1, lease=0, attempts=0
        )
    for fault in ("trainings: got 0", "max_failures: got -1", "lease (seconds)", "attempts: got 0"):
        assert fault in str(caught.value)


def test_a_study_killed_while_it_was_created_is_completed(memory: RDBStorage, name: str) -> None:
    optuna.create_study(storage=memory, study_name=name, direction="maximize")
    assert opened(memory, name).identity["seed"] == 11
    optuna.create_study(storage=memory, study_name=f"{name}-min", direction="minimize")
    with pytest.raises(ConfigError, match="was not made by circuitsearch"):
        opened(memory, f"{name}-min")


def test_wrong_measurements_are_refused_and_the_plan_is_kept(
    memory: RDBStorage, name: str, landscape: Landscape
) -> None:
    study = opened(memory, name)
    with pytest.raises(DataError, match="got the measurement of plan 'C1'"):
        study.run(lambda plan, source: landscape.measure(Plan.parse("C1"), source), 1, warm("C0"))

    def silent(plan: Plan, source: str) -> Measurement:
        values = landscape.measure(plan, source).to_json() | {"quality": None}
        return Measurement.from_json(values)

    with pytest.raises(DataError, match="got no quality, which the study maximises"):
        study.run(silent, 1)
    assert [one.plan for one in study.trials()] == ["C0"]
    assert study.status().queued == 1


def test_a_view_reads_without_space_and_without_writing(
    memory: RDBStorage, name: str, landscape: Landscape
) -> None:
    states = []

    def evaluate(plan: Plan, source: str) -> Measurement:
        states.append(StudyView(memory, name).status())
        return landscape.measure(plan, source)

    opened(memory, name).run(evaluate, 2)
    assert states == [StudyStatus(0, 0, 1, 0, 0), StudyStatus(1, 0, 1, 0, 0)]
    view = StudyView(memory, name)
    assert view.identity["objective"] == OBJECTIVE
    assert len(view.measurements()) == 2


def test_ranking_trust_is_that_of_the_losses_of_ranked_plans(memory: RDBStorage, name: str) -> None:
    landscape = Landscape.random(SPACE, 4)
    tried = list(SPACE.enumerate())[:9]
    # the ranking does not know the last plan that is measured
    losses = tuple((plan, -landscape.quality(plan)) for plan in tried[:8])
    study = opened(memory, name, sampler="random", prior=Prior(landscape.prior(), losses))
    assert study.ranking_trust() is None
    study.run(landscape.measure, 9, [(plan, "scores") for plan in tried])
    assert plans(study) == [str(plan) for plan in tried]
    assert study.ranking_trust() == (pytest.approx(1.0), 8)


def test_prior_trust_is_the_rank_correlation_of_scores_and_quality(
    memory: RDBStorage, name: str
) -> None:
    landscape = Landscape.random(SPACE, 4)
    good = opened(memory, f"{name}-good", sampler="random", prior=landscape.prior())
    assert good.prior_trust() is None
    good.run(landscape.measure, 8)
    # Without noise the scores are the worths, so the order is the same.
    assert good.prior_trust() == pytest.approx(1.0)
    inverse = {unit: -score for unit, score in landscape.prior().items()}
    bad = opened(memory, f"{name}-bad", sampler="random", prior=inverse)
    bad.run(landscape.measure, 8)
    assert bad.prior_trust() == pytest.approx(-1.0)
    flat = opened(memory, f"{name}-flat", sampler="random", prior=dict.fromkeys(SPACE.names, 0.0))
    flat.run(landscape.measure, 4)
    assert flat.prior_trust() is None
    none = Study.open(memory, f"{name}-none", SPACE, OBJECTIVE, 0, "circuit", None)
    none.run(landscape.measure, 4)
    assert none.prior_trust() is None


def test_an_incomplete_copy_is_noticed(database: Path, landscape: Landscape) -> None:
    storage = open_storage(database)
    opened(storage, "copied").run(landscape.measure, 1)
    with storage.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM circuitsearch_results"))
    with pytest.raises(StorageError, match="measurement of trial 0 is missing"):
        StudyView(storage, "copied").measurements()
    close_storage(storage)


def test_a_lock_during_the_run_is_a_storage_error(database: Path, landscape: Landscape) -> None:
    storage, holder = open_storage(database, timeout=0.05), open_storage(database)
    study = opened(storage, "locked")

    def evaluate(plan: Plan, source: str) -> Measurement:
        lock.__enter__()
        return landscape.measure(plan, source)

    lock = holder.engine.begin()
    with pytest.raises(StorageError, match=r"study\.db is locked by another process"):
        study.run(evaluate, 1, lease=0.3)
    lock.__exit__(None, None, None)
    # The plan was kept; the next run evaluates it again, without waiting for the lease.
    assert study.run(landscape.measure, 1) is Ending.TRAININGS
    assert len({plan for plan, _ in landscape.calls}) == 1
    assert len(landscape.calls) == 2
    close_storage(storage)
    close_storage(holder)


def test_a_database_that_comes_back_costs_no_training(database: Path, landscape: Landscape) -> None:
    storage, holder = open_storage(database, timeout=0.05), open_storage(database)
    study = opened(storage, "patient")
    lock = holder.engine.begin()
    release = threading.Timer(0.4, lambda: lock.__exit__(None, None, None))

    def evaluate(plan: Plan, source: str) -> Measurement:
        lock.__enter__()
        release.start()
        return landscape.measure(plan, source)

    assert study.run(evaluate, 1, lease=30.0) is Ending.TRAININGS
    release.join()
    assert len(landscape.calls) == study.status().measured == 1
    close_storage(storage)
    close_storage(holder)
