"""A study for many: joining in, stopping, waiting for others, further phases."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage

from circuitsearch.core.errors import ConfigError, TrainingError
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.search.storage.ledger import Terms
from circuitsearch.search.storage.rows import Row
from circuitsearch.search.storage.view import StudyStatus, StudyView
from circuitsearch.search.study import Ending, Study
from tests.search_fixtures import Landscape, limit, make_space

SPACE = make_space("40%", limit("50%", "macs"))
OBJECTIVE = {"teacher": "abc", "steps": 300}
VERSIONS = {"circuitsearch": "0.1", "torch": "2.8.0"}


@pytest.fixture
def landscape() -> Landscape:
    return Landscape.random(SPACE, 5, noise=0.02)


def opened(storage: RDBStorage, name: str, **about: Any) -> Study:
    prior = Landscape.random(SPACE, 5).prior(0.6)
    return Study.open(storage, name, SPACE, OBJECTIVE, 11, "circuit", prior, **about)


def warm(*texts: str) -> list[tuple[Plan, str]]:
    return [(Plan.parse(text), "scores") for text in texts]


def held_elsewhere(study: Study, lease: float = 60.0) -> Row:
    """Let a worker on another machine claim the next plan."""
    row = study._ledger.claim("elsewhere:1:a.0", Terms(trainings=9, lease=lease))
    assert isinstance(row, Row)
    return row


def test_a_worker_that_joins_proposes_what_the_first_one_would(
    memory: RDBStorage, name: str
) -> None:
    through, parts = Landscape.random(SPACE, 5), Landscape.random(SPACE, 5)
    opened(memory, f"{name}-through").run(through.measure, 8, warm("C0"))
    opened(memory, name, config={"pages": [1, 2]}).run(parts.measure, 3, warm("C0"))
    joined = Study.attach(memory, name)
    assert joined.config == {"pages": [1, 2]}
    assert joined.space.to_json() == SPACE.to_json()
    joined.run(parts.measure, 8)
    assert parts.calls == through.calls


def test_workers_with_other_versions_are_refused(memory: RDBStorage, name: str) -> None:
    opened(memory, name, versions=VERSIONS)
    Study.attach(memory, name, VERSIONS)
    Study.attach(memory, name)
    with pytest.raises(ConfigError) as caught:
        Study.attach(memory, name, {"circuitsearch": "0.1", "torch": "2.9.0", "optuna": "5"})
    message = str(caught.value)
    assert 'torch: "2.8.0" -> "2.9.0"' in message
    assert 'optuna: (absent) -> "5"' in message
    assert "circuitsearch:" not in message


def test_versions_change_only_while_nobody_is_at_work(memory: RDBStorage, name: str) -> None:
    study = opened(memory, name, versions=VERSIONS)
    study.queue(warm("C0"))
    held_elsewhere(study)
    newer = VERSIONS | {"torch": "2.9.0"}
    with pytest.raises(ConfigError, match=r'torch: "2\.8\.0" -> "2\.9\.0"'):
        opened(memory, name, versions=newer)
    assert StudyView(memory, name).versions == VERSIONS
    study._ledger.release("elsewhere:1:a.0")
    opened(memory, name, versions=newer, config={"new": True})
    view = StudyView(memory, name)
    assert (view.versions, view.config) == (newer, {"new": True})
    opened(memory, name)  # what is not given stays
    assert StudyView(memory, name).versions == newer


def test_a_configuration_is_stored_while_others_are_at_work(memory: RDBStorage, name: str) -> None:
    study = opened(memory, name, versions=VERSIONS, config={"trainings": 4})
    study.queue(warm("C0"))
    held_elsewhere(study)
    opened(memory, name, versions=VERSIONS, config={"trainings": 9, "a": {"z": 1, "b": 2}})
    stored = Study.attach(memory, name).config
    assert stored == {"trainings": 9, "a": {"z": 1, "b": 2}}
    assert [*stored["a"]] == ["z", "b"]  # of losses the order counts
    opened(memory, name, versions=VERSIONS, config={"trainings": 9})
    # One that is refused for its versions leaves the stored configuration as it is.
    with pytest.raises(ConfigError, match="is run with other versions"):
        opened(memory, name, versions=VERSIONS | {"torch": "2.9.0"}, config={"trainings": 1})
    view = StudyView(memory, name)
    assert (view.versions, view.config) == (VERSIONS, {"trainings": 9})


def test_stop_ends_the_run_after_its_trial_until_it_is_resumed(
    memory: RDBStorage, name: str, landscape: Landscape
) -> None:
    study = opened(memory, name)

    def evaluate(plan: Plan, source: str) -> Measurement:
        if len(landscape.calls) == 1:
            Study.attach(memory, name).stop()
        return landscape.measure(plan, source)

    assert study.run(evaluate, 5, warm("C0", "C1", "C2")) is Ending.STOPPED
    assert study.status() == StudyStatus(2, 0, 0, 1, 0)
    assert study.stopping()
    assert study.run(landscape.measure, 5) is Ending.STOPPED
    assert len(landscape.calls) == 2
    assert study.run(landscape.measure, 5, resume=True) is Ending.TRAININGS
    assert not study.stopping()


def test_a_view_shows_who_evaluates_what(memory: RDBStorage, name: str) -> None:
    study = opened(memory, name)
    study.queue(warm("C0", "C1"))
    held_elsewhere(study)
    running, queued = StudyView(memory, name).trials()
    assert (running.state, running.worker) == ("running", "elsewhere:1:a.0")
    assert running.since is not None
    assert running.lease is not None
    assert abs((datetime.now(UTC) - running.since).total_seconds()) < 5
    assert (running.lease - running.since).total_seconds() == pytest.approx(60.0)
    assert (queued.state, queued.worker, queued.since) == ("queued", None, None)
    held_elsewhere(opened(memory, name), lease=0.01)
    threading.Event().wait(0.02)
    assert StudyView(memory, name).trials()[0].state == "interrupted"
    assert StudyView(memory, name).status() == StudyStatus(0, 0, 0, 1, 1)


def test_a_worker_waits_for_the_last_plans_and_takes_them_over(
    memory: RDBStorage, name: str, landscape: Landscape
) -> None:
    study = opened(memory, name)
    study.queue(warm("C0", "C1"))
    held_elsewhere(study, lease=0.3)
    assert study.run(landscape.measure, 2) is Ending.TRAININGS
    assert [plan for plan, _ in landscape.calls] == ["C1", "C0"]


def test_a_worker_waits_for_others_before_it_calls_the_space_exhausted(
    memory: RDBStorage, name: str
) -> None:
    space = make_space("50%", layers=1)
    landscape = Landscape.random(space, 0)
    study = Study.open(memory, name, space, OBJECTIVE, 1, "random")
    plans = list(space.enumerate())
    study.queue([(plan, "all") for plan in plans])
    row = study._ledger.claim("elsewhere:1:a.0", Terms(trainings=99, lease=0.3))
    assert isinstance(row, Row)
    assert study.run(landscape.measure, 99) is Ending.EXHAUSTED
    assert landscape.calls[-1][0] == row.plan
    assert study.status().measured == len(plans)


def test_a_lost_race_is_proposed_again(
    memory: RDBStorage, name: str, landscape: Landscape, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, other = opened(memory, name), opened(memory, name)
    sampler = study._sampler
    assert sampler is not None
    original, raced = sampler.propose, []

    def slow(history: Any) -> Any:
        bits = original(history)
        if len(raced) < 2:  # another worker with the same history is faster, twice
            raced.append(bits)
            other._ledger.queue([(SPACE.plan(bits), "sampler")])
            other.run(landscape.measure, len(raced))
        return bits

    monkeypatch.setattr(sampler, "propose", slow)
    study.run(landscape.measure, 4)
    assert len({plan for plan, _ in landscape.calls}) == len(landscape.calls) == 4
    assert len(set(raced)) == 2


def test_further_phases_keep_their_results_apart(
    memory: RDBStorage, name: str, landscape: Landscape
) -> None:
    study = opened(memory, name)
    study.run(landscape.measure, 4, warm("C0", "C1"))
    full = study.phase("full", OBJECTIVE | {"steps": 3000})
    better = Landscape.random(SPACE, 5)

    def evaluate(plan: Plan, source: str) -> Measurement:
        if plan == Plan.parse("C1"):
            raise TrainingError("diverged")
        return better.measure(plan, source)

    # It evaluates what it is given and proposes nothing of its own.
    assert full.run(evaluate, 2, warm("C0", "C1")) is Ending.EXHAUSTED
    assert [plan for plan, _ in better.calls] == ["C0"]
    assert full.status() == StudyStatus(1, 1, 0, 0, 0)
    assert study.status() == StudyStatus(4, 0, 0, 0, 0)
    assert StudyView(memory, name).phases() == ["full"]
    view = StudyView(memory, name, "full")
    assert view.objective["steps"] == 3000
    assert [one.plan for one in view.measurements()] == ["C0"]
    # Optuna's tools see two studies.
    counts = [
        len(optuna.load_study(storage=memory, study_name=one).trials)
        for one in (name, f"{name}:full")
    ]
    assert counts == [4, 2]
    joined = Study.attach(memory, name, phase="full")
    assert joined.run(evaluate, 2, warm("C2")) is Ending.TRAININGS
    assert study.phase("full", OBJECTIVE | {"steps": 3000}).status().measured == 2


def test_phases_that_would_mix_are_refused(memory: RDBStorage, name: str) -> None:
    study = opened(memory, name)
    study.phase("full", {"steps": 3000})
    with pytest.raises(ConfigError, match=r"objective\.steps: 3000 -> 3001"):
        study.phase("full", {"steps": 3001})
    with pytest.raises(ConfigError, match="has the objective of full"):
        study.phase("longest", {"steps": 3000})
    with pytest.raises(ConfigError, match="has the objective of the search itself"):
        study.phase("short", OBJECTIVE)
    with pytest.raises(ConfigError, match="names of 1 to 64 characters"):
        study.phase(" ", {"steps": 1})
    with pytest.raises(ConfigError, match="did you mean 'full'"):
        StudyView(memory, name, "Full")
