"""A study that is killed at any moment ends like one that never was."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest

from circuitsearch.search.storage.connection import close_storage, open_storage
from circuitsearch.search.storage.view import StudyView
from tests.search_fixtures import run_story
from tests.search_processes import processes


@pytest.fixture(scope="module")
def undisturbed(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What the study of the kill tests finds when nothing disturbs it."""
    path = tmp_path_factory.mktemp("undisturbed") / "study.db"
    path.write_bytes(empty_database.read_bytes())
    run_story(str(path))
    return story(str(path))


def story(url: str) -> list[Any]:
    """Plans, sources, qualities and failures in the order of the trials that came to an end."""
    storage = open_storage(url)
    view = StudyView(storage, "story")
    trials = view.trials()
    rows = [
        (one.plan, one.source, one.measurement and one.measurement.quality, one.failure)
        for one in trials
    ]
    assert [one.number for one in trials] == list(range(len(trials)))
    # Optuna's tools see the same, each trial once.
    seen = optuna.load_study(storage=storage, study_name="story").trials
    assert [(one.user_attrs["plan"], one.value) for one in seen] == [row[::2] for row in rows]
    status = view.status()
    assert (status.running, status.queued) == (0, 0)
    close_storage(storage)
    return rows


_DEATHS = ((50, 100), (30, 250))  # ranges of statements: first process, later ones


def die_and_resume(url: str, seed: int, most: int, delay: bool = False) -> int:
    """Run the story in processes that are killed, at most `most` times; return how many were.

    They die at a random SQL statement (the story takes about 380), or after a random delay.
    """
    draws = random.Random(seed)
    for killed in range(most + 1):
        # The first dies among the warm plans, where a lost place in the queue would show.
        statement = 0 if delay or killed == most else draws.randint(*_DEATHS[killed > 0])
        pause = 0.01 if delay else 0.0
        child = processes().Process(target=run_story, args=(url, statement, pause))
        child.start()
        if delay and killed < most:
            child.join(draws.uniform(0.0, 1.2))
            child.kill()
        child.join(120)
        if child.exitcode == 0:
            return killed
        assert child.exitcode == -signal.SIGKILL
    raise AssertionError("the study never came to its end")


def test_killed_at_random_statements_it_ends_like_the_undisturbed_one(
    database: Path, undisturbed: list[Any]
) -> None:
    assert die_and_resume(str(database), seed=0, most=4) >= 2
    assert story(str(database)) == undisturbed


def test_killed_at_random_moments_it_ends_like_the_undisturbed_one(
    database: Path, undisturbed: list[Any]
) -> None:
    die_and_resume(str(database), seed=2, most=2, delay=True)
    assert story(str(database)) == undisturbed


def test_killed_on_postgres_it_ends_like_the_undisturbed_one_on_sqlite(
    postgres: str, undisturbed: list[Any]
) -> None:
    close_storage(open_storage(postgres))  # create the tables
    assert die_and_resume(postgres, seed=3, most=2) >= 1
    assert story(postgres) == undisturbed


def test_a_story_has_every_kind_of_trial(undisturbed: list[Any]) -> None:
    assert [row[0] for row in undisturbed[:3]] == ["C0 S1", "C1 M2", "C3 M3"]
    assert [row[3] for row in undisturbed].count("loss is not finite") == 1
    assert [row[1] for row in undisturbed].count("sampler") == 7
    assert len({row[0] for row in undisturbed}) == 10
