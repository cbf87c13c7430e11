"""Many workers on one study, in processes of their own, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest

from circuitsearch.search.storage.connection import close_storage, open_storage
from circuitsearch.search.storage.view import StudyView
from tests.search_fixtures import Landscape
from tests.search_processes import begun, create_and_work, new_study, space, work, workers


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """Each back-end in turn."""
    name = "database" if request.param == "sqlite" else "postgres"
    return str(request.getfixturevalue(name))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def closed(study: StudyView) -> None:
    """Close what this process has open, for the children's sake."""
    close_storage(study._storage)


def seen(url: str, name: str) -> tuple[StudyView, list[optuna.trial.FrozenTrial]]:
    """The study, and what Optuna has of it."""
    storage = open_storage(url)
    return StudyView(storage, name), optuna.load_study(storage=storage, study_name=name).trials


def test_four_workers_evaluate_eighty_queued_plans_once_each(url: str, log: Path) -> None:
    study = new_study(url, "queued")
    plans = [plan for plan, _ in zip(space().enumerate(), range(80), strict=False)]
    study.queue([(plan, "all") for plan in plans])
    closed(study)
    with workers(4, work, url, "queued", str(log), 80) as started:
        pass
    assert [one.exitcode for one in started] == [0] * 4
    assert sorted(begun(log)) == sorted(str(plan) for plan in plans)
    view, trials = seen(url, "queued")
    assert [one.plan for one in view.trials()] == [str(plan) for plan in plans]
    assert sorted(one.user_attrs["plan"] for one in trials) == sorted(map(str, plans))
    assert [one.number for one in trials] == list(range(80))
    assert len({one.worker for one in view.trials()}) > 1
    closed(view)


def test_six_workers_meet_a_budget_of_two_hundred_exactly(url: str, log: Path) -> None:
    closed(new_study(url, "budget"))
    with workers(6, work, url, "budget", str(log), 200) as started:
        pass
    assert [one.exitcode for one in started] == [0] * 6
    view, trials = seen(url, "budget")
    plans = begun(log)
    assert len(plans) == len(set(plans)) == 200
    assert [one.state for one in view.trials()] == ["measured"] * 200
    assert {one.plan for one in view.trials()} == set(plans)
    assert len(trials) == len({one.user_attrs["plan_hash"] for one in trials}) == 200
    closed(view)


def test_workers_that_start_together_share_one_new_study(postgres: str, log: Path) -> None:
    # An empty schema: all tables, the study and its mirror are created by whoever is first.
    with workers(4, create_and_work, postgres, "together", str(log), 6) as started:
        pass
    assert [one.exitcode for one in started] == [0] * 4
    view, trials = seen(postgres, "together")
    assert len(begun(log)) == view.status().measured == len(trials) == 6
    closed(view)


def test_what_a_killed_worker_leaves_is_taken_over_at_once(database: Path, log: Path) -> None:
    study = new_study(str(database), "killed")
    with workers(2, work, str(database), "killed", str(log), 4, 0.3) as started:
        while not begun(log):
            time.sleep(0.01)
        victim = int(log.read_text().split()[1])
        os.kill(victim, signal.SIGKILL)
    # The other one has not waited for the lease of two minutes.
    assert sorted(one.exitcode for one in started) == [-signal.SIGKILL, 0]
    view = StudyView(study._storage, "killed")
    assert view.status().measured == 4
    counts = Counter(begun(log))
    assert sorted(counts.values()) == [1, 1, 1, 2]
    assert [row.deaths for row in view._ledger.rows()].count(1) == 1
    closed(study)


def test_a_living_worker_keeps_a_plan_longer_than_its_lease(postgres: str, log: Path) -> None:
    study = new_study(postgres, "slow")
    with workers(2, work, postgres, "slow", str(log), 1, 1.0, 0.3):
        pass
    assert len(begun(log)) == 1
    assert study.status().measured == 1
    closed(study)


def test_a_silent_worker_loses_its_plan_and_its_late_result(database: Path, log: Path) -> None:
    study = new_study(str(database), "silent")
    with workers(1, work, str(database), "silent", str(log), 1, 0.2, 0.3) as started:
        while not begun(log):
            time.sleep(0.01)
        os.kill(started[0].pid, signal.SIGSTOP)
        try:
            while study.status().interrupted == 0:
                time.sleep(0.05)
            landscape, seen_here = Landscape.random(space(), 5), []
            study.run(landscape.measure, 1, (), seen_here.append, lease=0.3)
        finally:
            os.kill(started[0].pid, signal.SIGCONT)
    assert started[0].exitcode == 0
    assert [plan for plan, _ in landscape.calls] == begun(log)
    assert study.trials() == seen_here
    closed(study)
