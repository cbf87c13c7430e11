"""What every sampler of the registry must do; a new row in `REGISTRY` is tested by being there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import Trial, TrialState

from circuitsearch.search.samplers import (
    FAILURE,
    REGISTRY,
    FeasibleSampler,
    History,
    SpaceExhaustedError,
)
from circuitsearch.search.space import Bits, Space
from circuitsearch.search.units import Choices
from tests.search_fixtures import Landscape, limit, make_space

SPACES = {
    "one row": make_space("50%", layers=2),
    "two rows": make_space("60%", limit("60%", "macs"), layers=2),
    "least": make_space("6.25%"),
    "no row": make_space(layers=1),
    "heads": make_space("10%", layers=1, choices=Choices("heads", (64,), ("mean",))),
    "tokens": make_space("35%", layers=2, choices=Choices(replacements=("token",))),
}

pytestmark = [
    pytest.mark.parametrize("name", REGISTRY),
    pytest.mark.parametrize("budget", SPACES),
]


def sampler(name: str, space: Space, seed: int = 0) -> FeasibleSampler:
    """A fresh sampler, as a new process would build it."""
    return REGISTRY[name](space, Landscape.random(space, 1).knowledge(), seed, "single")


def new_study(name: str, space: Space, seed: int = 0) -> optuna.Study:
    """An empty study in memory."""
    return optuna.create_study(direction="maximize", sampler=sampler(name, space, seed))


def ask(study: optuna.Study, space: Space) -> tuple[Trial, Bits]:
    """Start a trial and read its plan."""
    trial = study.ask()
    return trial, tuple(trial.suggest_categorical(unit, (0, 1)) for unit in space.names)


def sequence(
    study: optuna.Study, space: Space, count: int, kill_at: tuple[int, ...] = ()
) -> list[Bits]:
    """Evaluate plans; at the given places a trial dies first and a new process goes on."""
    landscape, found = Landscape.random(space, 1, noise=0.01), []
    while len(found) < count:
        trial, bits = ask(study, space)
        if len(found) in kill_at:
            kill_at = tuple(place for place in kill_at if place != len(found))
            study.tell(trial, state=TrialState.FAIL)
            assert isinstance(study.sampler, FeasibleSampler)
            again = type(study.sampler)
            study.sampler = again(space, Landscape.random(space, 1).knowledge(), study.sampler.seed)
            continue
        study.tell(trial, landscape.measure(space.plan(bits)).quality)
        found.append(bits)
    return found


def test_parameters_are_the_units(name: str, budget: str) -> None:
    space = SPACES[budget]
    study = new_study(name, space)
    trial, _ = ask(study, space)
    assert tuple(trial.params) == space.names
    assert all(one == CategoricalDistribution((0, 1)) for one in trial.distributions.values())
    assert all(type(value) is int for value in trial.params.values())


def test_visits_every_feasible_plan_once_and_then_says_so(name: str, budget: str) -> None:
    space = SPACES[budget]
    study = new_study(name, space)
    plans = [space.bits(plan) for plan in space.enumerate()]
    found = sequence(study, space, len(plans))
    assert len(set(found)) == len(found)
    assert set(found) == set(plans)
    with pytest.raises(SpaceExhaustedError, match=f"All {len(plans)} feasible plans"):
        ask(study, space)


def test_stopped_killed_and_resumed_gives_the_same_sequence(name: str, budget: str) -> None:
    space = SPACES[budget]
    count = min(23, space.count())  # beyond what a genetic algorithm takes for two generations
    whole = sequence(new_study(name, space), space, count)
    kill_at = (0, 2, 10, 12, count - 1)
    assert sequence(new_study(name, space), space, count, kill_at=kill_at) == whole


def test_queued_and_quarantined_plans_are_not_proposed(name: str, budget: str) -> None:
    space = SPACES[budget]
    study = new_study(name, space)
    plans = [space.bits(plan) for plan in space.enumerate()]
    trial, failed = ask(study, space)
    trial.set_user_attr(FAILURE, "loss is not finite")
    study.tell(trial, state=TrialState.FAIL)
    queued = next(bits for bits in plans if bits != failed)
    # A queued plan is found in `fixed_params`. `Trial` instead of `ask`, which would start it.
    rest = [bits for bits in plans if bits not in (failed, queued)]
    storage, proposals = study._storage, []
    for _ in rest:
        trial_id = storage.create_new_trial(study._study_id)
        if not proposals:
            study.enqueue_trial(dict(zip(space.names, queued, strict=True)))
        started = Trial(study, trial_id)
        proposals.append(tuple(started.suggest_categorical(unit, (0, 1)) for unit in space.names))
        study.tell(started, 0.5)
    assert sorted(proposals) == sorted(rest)


_SCRIPT = """
import json, sys
from tests.conformance.test_samplers import REGISTRY, SPACES, new_study, sequence
found = {
    f"{name} {budget}": sequence(new_study(name, space, 7), space, min(5, space.count()))
    for name in REGISTRY for budget, space in SPACES.items()
}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def other_process() -> dict[str, list[list[int]]]:
    """Sequences of all samplers, computed by another process with another hash seed."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        cwd=root,
        env={"PYTHONPATH": str(root), "PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    found: dict[str, list[list[int]]] = json.loads(done.stdout)
    return found


def test_another_process_proposes_the_same(
    name: str, budget: str, other_process: dict[str, list[list[int]]]
) -> None:
    space = SPACES[budget]
    here = sequence(new_study(name, space, 7), space, min(5, space.count()))
    assert [list(bits) for bits in here] == other_process[f"{name} {budget}"]


def test_the_seed_matters(name: str, budget: str) -> None:
    space = SPACES[budget]
    count = min(12, space.count())
    sequences = [tuple(sequence(new_study(name, space, seed), space, count)) for seed in range(3)]
    # Four plans can be ordered alike by chance, more than four hardly by three seeds.
    assert len(set(sequences)) > 1 or space.count() <= 4


def test_pareto_proposals_stay_feasible_and_differ_in_cost(name: str, budget: str) -> None:
    space = SPACES[budget]
    knowledge = Landscape.random(space, 1).knowledge()
    proposing = REGISTRY[name](space, knowledge, 0, "pareto")
    plans, taken = [], set()
    for _ in range(min(10, space.count())):
        history = History(np.empty((0, len(space.names))), np.empty(0), frozenset(taken))
        bits = proposing.propose(history)
        assert space.feasible(space.plan(bits))
        assert bits not in taken
        taken.add(bits)
        plans.append(bits)
    spent = {space.remaining(bits) for bits in plans}
    if budget == "two rows":
        assert len(spent) > 3
