"""Measured limits: predictions, measuring before a plan becomes a trial, refusals that last."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import RDBStorage

from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.components import Kind
from circuitsearch.core.errors import ConfigError, InfeasibleError, PlanError, StorageError
from circuitsearch.core.files import seed_from
from circuitsearch.core.plan import Plan, units_kept
from circuitsearch.core.speed import measured_name
from circuitsearch.search.predictions import Prediction, calibration_plans, fit_prediction
from circuitsearch.search.space import Space
from circuitsearch.search.storage.connection import close_storage, open_storage
from circuitsearch.search.storage.tables import SCHEMA
from circuitsearch.search.storage.transactions import find_study
from circuitsearch.search.storage.view import StudyView
from circuitsearch.search.study import Ending, Study
from circuitsearch.search.transfer import copy, fork
from circuitsearch.search.units import Choices
from circuitsearch.search.upgrade import upgrade
from tests.search_fixtures import Landscape, teacher_shape
from tests.search_processes import begun, log_line, workers

SHAPE = teacher_shape()
LATENCY, MEMORY = measured_name("latency", "decoder"), measured_name("memory", "total")
MS = 10**6
PER_KIND = {Kind.SELF: 3 * MS, Kind.CROSS: 4 * MS, Kind.FEED: 2 * MS}


def linear(plan: Plan) -> int:
    """Nanoseconds of a machine on which sub-layers simply add up."""
    return 5 * MS + sum(PER_KIND[one.kind] for one, _ in plan.kept)


def curved(plan: Plan) -> int:
    """A machine that is up to 10 % faster or slower for each plan: no sum over units is right."""
    return linear(plan) * (900 + seed_from("machine", plan.hash) % 201) // 1000


def space(limit: str, figures=curved, choices: Choices | None = None) -> Space:  # type: ignore[no-untyped-def]
    """The space of the toy teacher under a limit on its measured latency."""
    choices = choices or Choices()
    measured = [(plan, figures(plan)) for plan in calibration_plans(SHAPE.decoder, choices)]
    whole = {LATENCY: figures(Plan.full(4))}
    budget = Budget.resolve([LimitSpec("latency", limit)], SHAPE, whole=whole)
    known = fit_prediction(measured, SHAPE.decoder, "toy machine")
    return Space(SHAPE, budget, choices, {LATENCY: known})


def test_a_linear_machine_is_predicted_exactly() -> None:
    choices = Choices(attention="counts", widths=(32, 64), replacements=("mean", "alone"))
    stand_ins = {"mean": 0.5 * MS, "alone": 5 * MS}

    def figure(plan: Plan) -> int:
        total = 7.0 * MS
        for one, keep in plan.kept:
            if keep.replacement is not None:
                total += stand_ins[keep.replacement]
                continue
            opening, unit = {Kind.FEED: (1.0, 0.01)}.get(one.kind, (2.0, 0.75))
            total += (opening + unit * units_kept(one, keep, SHAPE.decoder)) * MS
        return round(total)

    plans = calibration_plans(SHAPE.decoder, choices)
    assert len(plans) == len(set(plans))
    known = fit_prediction([(plan, figure(plan)) for plan in plans], SHAPE.decoder)
    assert known.error < 1e-9
    # each figure is rounded to a nanosecond, so sums of at most 13 rounded prices differ by few
    for text in (
        "C3",
        "M0 C2 S3 C3",
        "S0[0-2] C1 M1:32",
        "M0=mean C2=alone S3[0]",
        "C0=mean C1[1]",
    ):
        plan = Plan.parse(text).fitted(SHAPE.decoder)
        assert known.total(plan, SHAPE.decoder) == pytest.approx(figure(plan), abs=20)
    budget = Budget.resolve([LimitSpec("latency", "20ms")], SHAPE)
    room = Space(SHAPE, budget, choices, {LATENCY: known})
    for plan in plans:
        spent = room.allowed[0] - room.remaining(room.bits(plan))[0]
        assert spent == pytest.approx(figure(plan), abs=20)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(10**3, 10**9),
    st.tuples(*[st.integers(0, 10**8)] * 3),
)
def test_any_machine_that_adds_up_is_predicted(fixed: int, costs: tuple[int, int, int]) -> None:
    def figure(plan: Plan) -> int:
        return fixed + sum(dict(zip(Kind, costs, strict=True))[one.kind] for one, _ in plan.kept)

    plans = calibration_plans(SHAPE.decoder, Choices())
    known = fit_prediction([(plan, figure(plan)) for plan in plans], SHAPE.decoder)
    for text in ("C0", "S0 C0 M3", "S0 S1 C2 C3 M0 M1"):
        # least squares in double precision over figures of up to 1e9
        expected = figure(Plan.parse(text))
        assert known.total(Plan.parse(text), SHAPE.decoder) == pytest.approx(expected, rel=1e-6)


def test_a_beginning_that_can_be_replaced_is_among_the_plans_measured() -> None:
    choices = Choices(replacements=("token",))
    plans = calibration_plans(SHAPE.decoder, choices)
    known = fit_prediction([(plan, 10**6 + len(plan.kept)) for plan in plans], SHAPE.decoder)
    assert {"S=token", "C=token", "M=token"} <= set(known.replaced)
    budget = Budget.resolve([LimitSpec("latency", "1s")], SHAPE)
    assert Space(SHAPE, budget, choices, {LATENCY: known}).count() > 0


def test_what_cannot_be_predicted_is_refused() -> None:
    budget = Budget.resolve(
        [LimitSpec("latency", "1s"), LimitSpec("memory", "1GB", "total")], SHAPE
    )
    with pytest.raises(ConfigError, match=r"decoder latency \(measured\).*needs a prediction"):
        Space(SHAPE, budget)
    with pytest.raises(ConfigError, match="nothing is known of S0"):
        Space(SHAPE, budget, None, {LATENCY: Prediction(5), MEMORY: Prediction(5)})
    with pytest.raises(ConfigError, match="not above 0"):
        fit_prediction([(Plan.parse("C0"), 0)], SHAPE.decoder)


def test_a_space_reads_its_predictions_back_and_spaces_without_keep_their_form() -> None:
    room = space("60%")
    again = Space.from_json(room.to_json())
    assert again.to_json() == room.to_json()
    assert list(again.enumerate()) == list(room.enumerate())
    plain = Space(SHAPE, Budget.resolve([LimitSpec("parameters", "40%")], SHAPE))
    assert set(plain.to_json()) == {"teacher", "budget", "choices"}


def test_counting_and_listing_agree_under_a_measured_limit() -> None:
    room = space("55%")
    plans = list(room.enumerate())
    assert room.count() == len(plans) > 100
    known = room.predictions[LATENCY]
    allowed = room.budget.limits[0].maximum * 105 // 100
    every = Space(SHAPE, Budget(()))
    assert plans == [p for p in every.enumerate() if known.total(p, SHAPE.decoder) <= allowed]


def test_an_impossible_budget_is_refused_with_the_numbers() -> None:
    room = space("8ms", linear)
    plan, _ = room.smallest()
    with pytest.raises(InfeasibleError, match="is predicted to need 9 ms"):
        room.check()
    room = space("10ms", linear)
    room.check()
    room.check({LATENCY: 10 * MS})
    with pytest.raises(InfeasibleError) as caught:
        room.check({LATENCY: 10 * MS + 200_000})
    assert (
        f"decoder latency (measured): the limit '10ms' allows 10 ms, the smallest legal student "
        f"{str(plan)!r} was measured at 10.2 ms"
    ) in str(caught.value)


class Machine:
    """Measures by formula and remembers how often it was asked."""

    def __init__(self, figures=curved) -> None:  # type: ignore[no-untyped-def]
        self.figures = figures
        self.asked: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, plan: Plan) -> Mapping[str, int]:
        with self._lock:
            self.asked[str(plan)] += 1
        return {LATENCY: self.figures(plan), MEMORY: 1}


def checked(study: StudyView, room: Space, machine: Machine) -> int:
    """Check what must hold of every study; return how many plans were refused."""
    limit = room.budget.limits[0].maximum
    trials = study.trials()
    assert trials
    assert all(curved(Plan.parse(one.plan)) <= limit for one in trials)
    assert set(machine.asked.values()) == {1}
    assert {one.plan for one in trials} <= set(machine.asked)
    slow = [text for text in machine.asked if curved(Plan.parse(text)) > limit]
    assert study.status().refused == len(slow)
    return len(slow)


def opened(storage: RDBStorage, name: str, room: Space, sampler: str = "circuit") -> Study:
    prior = Landscape.random(room, 5).prior(0.6)
    return Study.open(storage, name, room, {"steps": 3}, 11, sampler, prior)


@pytest.mark.parametrize("sampler", ["circuit", "random", "evolution"])
def test_no_trial_is_over_the_limit_and_no_plan_is_measured_twice(
    memory: RDBStorage, name: str, sampler: str
) -> None:
    room, machine = space("45%"), Machine()
    landscape = Landscape.random(room, 5)
    study = opened(memory, name, room, sampler)
    feasible = list(room.enumerate())
    warm = [(plan, "ranking") for plan in feasible[:: len(feasible) // 12]]
    assert study.run(landscape.measure, 25, warm, admit=machine) is Ending.TRAININGS
    refused = checked(study, room, machine)
    assert refused > 0
    assert study.phase("full", {"steps": 9}).status().refused == 0  # a phase refuses no plan
    limit = room.budget.limits[0].maximum
    fast = [str(plan) for plan, _ in warm if curved(plan) <= limit]
    assert 0 < len(fast) < len(warm)
    assert [one.plan for one in study.trials()][: len(fast)] == fast
    # Another worker, or this one on another day, knows what was measured.
    Study.attach(memory, name).run(landscape.measure, 32, warm, admit=machine)
    assert checked(study, room, machine) >= refused
    verdict = study.speed(Plan.parse(study.trials()[0].plan))
    assert verdict is not None
    assert verdict.where == "toy machine"
    assert room.budget.slack(Plan.parse(verdict.plan), SHAPE, verdict.amounts)[LATENCY] >= 0


def test_a_study_in_parts_equals_one_in_one_go(memory: RDBStorage, name: str) -> None:
    room = space("45%")
    through, parts = Landscape.random(room, 5), Landscape.random(room, 5)
    first, second = Machine(), Machine()
    opened(memory, f"{name}-through", room).run(through.measure, 12, admit=first)
    for trainings in (1, 5, 12):
        opened(memory, name, room).run(parts.measure, trainings, admit=second)
    assert parts.calls == through.calls
    assert first.asked == second.asked


def test_the_whole_space_is_measured_once_and_then_exhausted(memory: RDBStorage, name: str) -> None:
    room, machine = space("11ms"), Machine()
    study = opened(memory, name, room)
    ending = study.run(Landscape.random(room, 5).measure, 10_000, admit=machine)
    assert ending is Ending.EXHAUSTED
    assert checked(study, room, machine) > 0
    assert set(machine.asked) == {str(plan) for plan in room.enumerate()}


def test_an_interrupted_measurement_is_taken_up_again(memory: RDBStorage, name: str) -> None:
    room, machine = space("45%"), Machine()
    landscape = Landscape.random(room, 5)
    study = opened(memory, name, room)

    def stopped(plan: Plan) -> Mapping[str, int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(landscape.measure, 5, admit=stopped)
    with memory.engine.connect() as connection:
        left = sa.text("SELECT count(*) FROM circuitsearch_speeds WHERE study = :study")
        assert connection.scalar(left, {"study": name}) == 0
    assert study.trials() == []
    study.run(landscape.measure, 5, admit=machine)
    checked(study, room, machine)
    with pytest.raises(ConfigError, match="was not measured"):
        study.run(landscape.measure, 9, admit=lambda plan: {MEMORY: 3})


def test_a_silent_worker_loses_what_it_measures(memory: RDBStorage, name: str) -> None:
    room, machine = space("45%"), Machine()
    study = opened(memory, name, room)
    plan = next(room.enumerate())
    assert study._speeds.claim(plan, "elsewhere:1:a.0", 0.2) is True
    assert study._speeds.claim(plan, "another:1:a.0", 5.0) is False
    assert study.run(Landscape.random(room, 5).measure, 1, [(plan, "x")], admit=machine)
    assert [one.plan for one in study.trials()] == [str(plan)]


def test_a_plan_is_held_for_the_lease_while_it_is_measured(memory: RDBStorage, name: str) -> None:
    room, held = space("45%"), []
    study = opened(memory, name, room)
    quick = [plan for plan in room.enumerate() if curved(plan) <= room.budget.limits[0].maximum]

    def measure(plan: Plan) -> Mapping[str, int]:
        query = sa.text("SELECT max(lease_until) FROM circuitsearch_speeds WHERE study = :study")
        with memory.engine.connect() as connection:
            held.append(connection.scalar(query, {"study": name}) - time.time())
        return {LATENCY: curved(plan), MEMORY: 1}

    assert study.admitted(quick[:1], measure, 1000.0) == quick[:1]
    assert study.queue([(quick[1], "mine")], measure, 2000.0) == 1
    assert held == pytest.approx([1000, 2000], abs=60)


def test_a_users_plans_are_refused_with_the_numbers(memory: RDBStorage, name: str) -> None:
    room, machine = space("45%"), Machine()
    limit = room.budget.limits[0].maximum
    study = opened(memory, name, room)
    slow = next(plan for plan in room.enumerate() if curved(plan) > limit)
    fast = next(plan for plan in room.enumerate() if curved(plan) <= limit)
    with pytest.raises(PlanError, match=r"\(mine\): decoder latency \(measured\): the student was"):
        study.queue([(fast, "mine"), (slow, "mine")], machine)
    assert study.trials() == []
    assert study.queue([(fast, "mine")], machine) == 1
    assert set(machine.asked.values()) == {1}
    for refuse in (lambda: study.queue([(fast, "mine")]), lambda: study.run(lambda *_: None, 1)):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="pass admit"):
            refuse()


def test_without_measured_limits_nothing_is_measured(memory: RDBStorage, name: str) -> None:
    room = Space(SHAPE, Budget.resolve([LimitSpec("parameters", "40%")], SHAPE))
    machine = Machine()
    study = opened(memory, name, room)
    study.run(Landscape.random(room, 5).measure, 3, admit=machine)
    assert not machine.asked
    assert study.status().refused == 0


def test_copies_and_forks_keep_what_was_measured(memory: RDBStorage, name: str) -> None:
    room, machine = space("45%"), Machine()
    landscape = Landscape.random(room, 5)
    study = opened(memory, name, room)
    study.run(landscape.measure, 20, admit=machine)
    refused = study.status().refused
    assert refused > 0
    assert copy(memory, memory, name, f"{name}-copy").status().refused == refused
    figures = sorted(curved(Plan.parse(one.plan)) for one in study.trials())
    tight, other = space(f"{figures[10]}ns"), Machine()
    new = fork(memory, name, f"{name}-tight", tight, {"steps": 3}, 11, admit=other)
    checked(new, tight, other)
    assert 0 < new.status().measured < 20


@pytest.mark.parametrize("steps", [3, 4])
def test_a_fork_measures_before_it_writes_anything(
    memory: RDBStorage, name: str, steps: int
) -> None:
    room, machine = space("45%"), Machine()
    study = opened(memory, name, room)
    study.run(Landscape.random(room, 5).measure, 12, admit=machine)
    figures = sorted(curved(Plan.parse(one.plan)) for one in study.trials())
    tight, other, forked = space(f"{figures[8]}ns"), Machine(), f"{name}-tight"

    def stopped(plan: Plan) -> Mapping[str, int]:
        assert find_study(memory, forked) is None
        if len(other.asked) == 3:
            raise KeyboardInterrupt
        return other(plan)

    with pytest.raises(KeyboardInterrupt):
        fork(memory, name, forked, tight, {"steps": steps}, 11, admit=stopped)
    with pytest.raises(ConfigError, match="pass admit"):
        fork(memory, name, forked, tight, {"steps": steps}, 11)
    again = Machine()
    new = fork(memory, name, forked, tight, {"steps": steps}, 11, best=2, admit=again)
    trials = new.trials()
    assert 0 < checked(new, tight, again) + len(trials) <= 12
    if steps == 3:
        assert {one.state for one in trials} == {"measured"}
    else:  # no more is measured than is needed
        assert [one.source for one in trials] == ["fork"] * 2
        assert len(again.asked) == 2 + new.status().refused
    # What was measured is known to whoever runs it.
    new.run(Landscape.random(tight, 5).measure, len(trials), admit=again)
    assert set(again.asked.values()) == {1}
    verdict = new.speed(Plan.parse(trials[0].plan))
    assert verdict is not None
    assert verdict.amounts[LATENCY] == curved(Plan.parse(trials[0].plan))


# Several workers


def measured_work(url: str, name: str, log: str, trainings: int) -> None:
    """Be a worker of a study with a measured limit; every measurement leaves a line."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def admit(plan: Plan) -> Mapping[str, int]:
        log_line(log, f"begin {os.getpid()} {plan}")
        time.sleep(0.02)
        return {LATENCY: curved(plan)}

    storage = open_storage(url)
    study = Study.attach(storage, name)
    landscape = Landscape.random(study.space, 5)
    study.run(landscape.measure, trainings, admit=admit, attempts=1000)
    close_storage(storage)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "postgresql":
        yield request.getfixturevalue("postgres")
    else:
        yield f"sqlite:///{request.getfixturevalue('database')}"


def test_four_workers_measure_each_plan_once(url: str, name: str, tmp_path: Path) -> None:
    room = space("45%")
    storage = open_storage(url)
    study = opened(storage, name, room, "random")
    log = tmp_path / "log"
    with workers(4, measured_work, url, name, str(log), 14) as started:
        pass
    assert [one.exitcode for one in started] == [0] * 4
    machine = Machine()
    machine.asked = Counter(begun(log))
    assert checked(study, room, machine) > 0
    assert study.status().measured == 14
    close_storage(storage)


def test_databases_of_the_second_schema_are_raised(database: Path) -> None:
    storage = open_storage(database)
    room = Space(SHAPE, Budget.resolve([LimitSpec("parameters", "40%")], SHAPE))
    opened(storage, "old", room).run(Landscape.random(room, 5).measure, 2)
    with storage.engine.begin() as connection:
        connection.execute(sa.text("UPDATE circuitsearch_studies SET schema_version = 2"))
        connection.execute(sa.text("DROP TABLE circuitsearch_speeds"))
    close_storage(storage)
    storage = open_storage(database)
    with pytest.raises(StorageError, match="circuitsearch study upgrade"):
        StudyView(storage, "old")
    close_storage(storage)
    assert upgrade(database) == ["old"]
    assert upgrade(database) == []
    storage = open_storage(database)
    assert StudyView(storage, "old").status().measured == 2
    with storage.engine.connect() as connection:
        found = connection.scalar(sa.text("SELECT schema_version FROM circuitsearch_studies"))
    assert found == SCHEMA == 3
    close_storage(storage)
