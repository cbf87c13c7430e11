"""The ledger: who gets which plan, on SQLite and on PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage

from circuitsearch.core.errors import ConfigError, TrainingError
from circuitsearch.core.plan import Plan
from circuitsearch.search.storage.connection import close_storage, open_storage
from circuitsearch.search.storage.ledger import Ledger, Outlook, Terms
from circuitsearch.search.storage.rows import Outcome, Row
from circuitsearch.search.storage.transactions import create_study, set_stop
from circuitsearch.search.storage.workers import worker_name
from tests.search_fixtures import Landscape, make_space

TERMS = Terms(trainings=3, max_failures=1, lease=60.0, attempts=2)
A, B, C = "elsewhere:1:a.0", "elsewhere:2:b.0", "elsewhere:3:c.0"  # workers on another machine


@pytest.fixture(params=["sqlite", "postgres"])
def storage(request: pytest.FixtureRequest) -> Iterator[RDBStorage]:
    """Each back-end in turn."""
    if request.param == "sqlite":
        yield request.getfixturevalue("memory")
        return
    opened = open_storage(request.getfixturevalue("postgres"))
    yield opened
    close_storage(opened)


@pytest.fixture
def ledger(storage: RDBStorage, name: str) -> Ledger:
    create_study(storage, name, {"about": "nothing"})
    return Ledger(storage, name, "objective")


def plan(text: str) -> tuple[Plan, str]:
    return Plan.parse(text), "scores"


def outcome(text: str, quality: float = 0.5) -> Outcome:
    return Outcome(Landscape(make_space(), [quality / 12] * 12).measure(Plan.parse(text)))


def claimed(got: Row | Outlook) -> str:
    """The plan of a claim that was granted."""
    assert isinstance(got, Row), got
    return got.plan


def states(ledger: Ledger) -> list[tuple[int, str, str]]:
    return [(row.number, row.plan, row.state) for row in ledger.rows()]


def test_queued_plans_are_claimed_in_their_order_and_each_once(ledger: Ledger) -> None:
    assert ledger.queue([plan("C1"), plan("C0"), plan("C1")]) == 2
    assert ledger.queue([plan("C0"), plan("C2")]) == 1
    assert [claimed(ledger.claim(worker, TERMS)) for worker in (A, B, C)] == ["C1", "C0", "C2"]
    first = ledger.rows()[0]
    assert (first.number, first.source, first.worker, first.deaths) == (0, "scores", A, 0)
    assert first.since is not None
    assert first.lease_until == pytest.approx(first.since + 60.0)
    # The database's clock is the real one.
    assert first.since == pytest.approx(time.time(), abs=5.0)


def test_a_proposal_is_taken_when_nothing_is_queued_and_it_is_new(ledger: Ledger) -> None:
    ledger.queue([plan("C0")])
    proposal = (Plan.parse("C1"), "sampler")
    assert claimed(ledger.claim(A, TERMS, proposal)) == "C0"
    assert ledger.claim(B, TERMS) is Outlook.PROPOSE
    assert claimed(ledger.claim(B, TERMS, proposal)) == "C1"
    assert ledger.claim(C, TERMS, proposal) is Outlook.PROPOSE
    assert states(ledger) == [(0, "C0", "running"), (1, "C1", "running")]


def test_measured_and_running_plans_fill_the_budget(ledger: Ledger) -> None:
    terms = Terms(trainings=2)
    ledger.queue([plan("C0"), plan("C1"), plan("C2")])
    for worker in (A, B):
        claimed(ledger.claim(worker, terms))
    assert ledger.claim(C, terms) is Outlook.WAIT
    done = ledger.record(Plan.parse("C0").hash, A, outcome("C0"))
    assert (done.state, done.worker, done.outcome) == ("measured", A, outcome("C0"))
    assert ledger.claim(A, terms) is Outlook.WAIT
    ledger.record(Plan.parse("C1").hash, B, outcome("C1"))
    assert ledger.claim(A, terms) is Outlook.SPENT
    assert [state for _, _, state in states(ledger)] == ["measured", "measured", "queued"]
    # A spent budget queues nothing more.
    assert ledger.queue([plan("C3")], trainings=2) == 0


def test_failures_make_room_for_other_plans_until_there_are_too_many(ledger: Ledger) -> None:
    terms = Terms(trainings=1, max_failures=1)
    ledger.queue([plan("C0"), plan("C1"), plan("C2")])
    for text in ("C0", "C1"):
        assert claimed(ledger.claim(A, terms)) == text
        ledger.record(Plan.parse(text).hash, A, Outcome(None, f"{text} diverged"))
    with pytest.raises(TrainingError, match=r"2 trials have failed, 1 are put up with.*C1 div"):
        ledger.claim(A, terms)
    assert claimed(ledger.claim(A, Terms(trainings=1, max_failures=2))) == "C2"


def test_what_is_handed_back_comes_first(ledger: Ledger) -> None:
    ledger.queue([plan("C0"), plan("C1"), plan("C2")])
    claimed(ledger.claim(A, TERMS))
    claimed(ledger.claim(B, TERMS))
    ledger.release(A)
    ledger.release(C)  # holds nothing
    assert states(ledger)[:2] == [(0, "C0", "queued"), (1, "C1", "running")]
    assert claimed(ledger.claim(C, TERMS)) == "C0"
    assert ledger.rows()[0].deaths == 0


def test_a_worker_that_asks_again_gets_what_it_holds(ledger: Ledger) -> None:
    # As when the answer of the database was lost on its way.
    ledger.queue([plan("C0"), plan("C1")])
    assert claimed(ledger.claim(A, TERMS)) == claimed(ledger.claim(A, TERMS)) == "C0"
    assert ledger.rows()[0].deaths == 0


def test_an_expired_claim_is_taken_over_and_its_late_result_dropped(ledger: Ledger) -> None:
    short = Terms(trainings=1, lease=0.05, attempts=3)
    ledger.queue([plan("C0")])
    claimed(ledger.claim(A, short))
    assert ledger.claim(B, short) is Outlook.WAIT
    time.sleep(0.06)
    assert ledger.rows()[0].stale
    taken = ledger.claim(B, TERMS)
    assert isinstance(taken, Row)
    assert (taken.plan, taken.worker, taken.deaths) == ("C0", B, 1)
    assert not ledger.extend(taken.plan_hash, A, 60.0)
    assert ledger.extend(taken.plan_hash, B, 60.0)
    ledger.release(A)  # holds nothing any more
    assert ledger.rows()[0].state == "running"
    first = ledger.record(taken.plan_hash, B, outcome("C0", 0.5))
    late = ledger.record(taken.plan_hash, A, outcome("C0", 0.9))
    assert late == first
    assert ledger.rows() == [first]


def test_a_slow_worker_may_be_first_after_all(ledger: Ledger) -> None:
    ledger.queue([plan("C0")])
    claimed(ledger.claim(A, Terms(trainings=1, lease=0.02)))
    time.sleep(0.03)
    claimed(ledger.claim(B, TERMS))
    ledger.record(Plan.parse("C0").hash, A, outcome("C0", 0.9))
    late = ledger.record(Plan.parse("C0").hash, B, outcome("C0", 0.5))
    assert (late.worker, late.outcome) == (A, outcome("C0", 0.9))


def test_a_heartbeat_keeps_a_claim(ledger: Ledger) -> None:
    short = Terms(trainings=1, lease=0.2)
    ledger.queue([plan("C0")])
    row = ledger.claim(A, short)
    assert isinstance(row, Row)
    for _ in range(3):
        time.sleep(0.1)
        assert ledger.extend(row.plan_hash, A, 0.2)
        assert ledger.claim(B, short) is Outlook.WAIT


def test_a_plan_whose_workers_die_fails(ledger: Ledger) -> None:
    ledger.queue([plan("C0"), plan("C1")])
    for worker in (A, B):
        assert claimed(ledger.claim(worker, Terms(trainings=1, lease=0.02, attempts=2))) == "C0"
        time.sleep(0.03)
    assert claimed(ledger.claim(C, TERMS)) == "C1"
    failed = ledger.rows()[0]
    assert (failed.state, failed.deaths) == ("failed", 2)
    assert failed.outcome == Outcome(None, "its worker died 2 times")


def test_a_dead_process_of_this_machine_loses_its_plan_at_once(ledger: Ledger) -> None:
    script = (
        "from circuitsearch.search.storage.workers import worker_name\n"
        "with worker_name() as name: print(name)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    dead = done.stdout.strip()
    ledger.queue([plan("C0")])
    claimed(ledger.claim(dead, TERMS))
    with worker_name() as here:
        again = ledger.claim(here, TERMS)
        assert isinstance(again, Row)
        assert (again.worker, again.deaths) == (here, 1)
        assert ledger.claim(B, Terms(trainings=1)) is Outlook.WAIT
    # This run of our own process has ended, too.
    assert claimed(ledger.claim(B, Terms(trainings=1))) == "C0"


def test_stop_lets_nobody_begin(ledger: Ledger, storage: RDBStorage, name: str) -> None:
    ledger.queue([plan("C0"), plan("C1")])
    row = ledger.claim(A, TERMS)
    assert isinstance(row, Row)
    set_stop(storage, name, True)
    assert ledger.claim(B, TERMS) is Outlook.STOPPED
    ledger.record(row.plan_hash, A, outcome("C0"))
    assert ledger.claim(A, TERMS) is Outlook.STOPPED
    assert ledger.claim(A, Terms(trainings=1)) is Outlook.SPENT
    set_stop(storage, name, False)
    assert claimed(ledger.claim(A, TERMS)) == "C1"


def test_objectives_and_studies_do_not_mix(ledger: Ledger, storage: RDBStorage, name: str) -> None:
    other = Ledger(storage, name, "longer")
    create_study(storage, f"{name}-2", {})
    stranger = Ledger(storage, f"{name}-2", "objective")
    for one in (ledger, other, stranger):
        one.queue([plan("C0")])
        claimed(one.claim(A, TERMS))
    ledger.record(Plan.parse("C0").hash, A, outcome("C0"))
    assert other.rows()[0].state == stranger.rows()[0].state == "running"
    assert other.counts() == {"running": 1}


def test_a_study_that_is_not_there_is_named(storage: RDBStorage, name: str) -> None:
    with pytest.raises(ConfigError, match=f"Study '{name}' is not in "):
        Ledger(storage, name, "objective").queue([plan("C0")])


def test_results_are_rows_that_other_programs_can_read(
    ledger: Ledger, storage: RDBStorage, name: str
) -> None:
    ledger.queue([plan("C0")])
    row = ledger.claim(A, TERMS)
    assert isinstance(row, Row)
    ledger.record(row.plan_hash, A, outcome("C0"))
    query = sa.text("SELECT plan, state, reason FROM circuitsearch_results WHERE study = :study")
    with storage.engine.begin() as connection:
        assert connection.execute(query, {"study": name}).all() == [("C0", "measured", None)]
