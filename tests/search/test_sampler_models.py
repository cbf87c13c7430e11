"""The samplers' parts: history, prior, posterior against another formula, learning.

What every sampler of the registry must do (feasible, new, reproducible) is in
tests/conformance/test_samplers.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import multivariate_normal

from circuitsearch.core.errors import ConfigError, InfeasibleError
from circuitsearch.search.knapsack import greedy
from circuitsearch.search.samplers import (
    FAILURE,
    CircuitSampler,
    EvolutionSampler,
    FeasibleSampler,
    History,
    NSGA2Sampler,
    Prior,
    PriorSampler,
    RandomSampler,
    RankedSampler,
    RepairedSampler,
    TPERepairedSampler,
    posterior,
    swapped,
    trial_bits,
)
from circuitsearch.search.samplers.ranked import regression
from circuitsearch.search.space import Space
from circuitsearch.search.units import Choices
from tests.search_fixtures import Landscape, limit, make_space

SPACE = make_space("40%", limit("50%", "macs"))
NAMED = SPACE.names
NAMES = ("a", "b", "c")


def trial(
    number: int, state: TrialState, bits: str, value: float | None = None, **attributes: str
) -> FrozenTrial:
    """A trial with one parameter per character of `bits`, fixed parameters when it is queued."""
    chosen = {name: int(bit) for name, bit in zip(NAMES, bits, strict=False)}
    queued = state == TrialState.WAITING
    made = create_trial(
        state=state,
        value=value,
        params={} if queued else chosen,
        distributions={} if queued else {name: CategoricalDistribution((0, 1)) for name in chosen},
        system_attrs={"fixed_params": chosen} if queued else {},
        user_attrs=attributes,
    )
    made.number = number
    return made


def test_history_takes_every_plan_that_is_not_free_to_be_tried_again() -> None:
    trials = [
        trial(1, TrialState.COMPLETE, "010", 0.5),
        trial(0, TrialState.COMPLETE, "110", 0.25),  # out of order on purpose
        trial(2, TrialState.FAIL, "001"),  # a plain failure: free again
        trial(3, TrialState.FAIL, "011", **{FAILURE: "loss is not finite"}),
        trial(4, TrialState.WAITING, "100"),
        trial(5, TrialState.RUNNING, "101"),
        trial(6, TrialState.RUNNING, "11"),  # another process is still writing its plan
        trial(7, TrialState.PRUNED, "111"),
        trial(8, TrialState.RUNNING, "000"),  # the trial that asks
    ]
    history = History.read(trials, NAMES, current=8)
    assert history.plans.tolist() == [[1, 1, 0], [0, 1, 0]]
    assert history.values.tolist() == [0.25, 0.5]
    assert history.taken == {(0, 1, 0), (1, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 1)}
    assert trial_bits(trials[6], NAMES) is None
    empty = History.read([], NAMES)
    assert empty.plans.shape == (0, 3)


def test_prior_needs_every_unit_and_ignores_heads() -> None:
    scores = {name: float(index) for index, name in enumerate(SPACE.names)}
    array = Prior({**scores, "C3.H11": 9.0}).array(SPACE)
    assert array is not None
    assert array.tolist() == list(range(12))
    assert Prior().array(SPACE) is None
    del scores["M1"]
    scores["C2"] = float("inf")
    with pytest.raises(ConfigError, match=r"(?s)M1 has no worth.*C2: got inf"):
        Prior(scores).array(SPACE)


def test_posterior_equals_stacked_least_squares() -> None:
    rng = np.random.default_rng(0)
    plans = rng.integers(0, 2, size=(9, 5)).astype(float)
    values = rng.uniform(0.2, 0.9, size=9)
    prior, spread = rng.gamma(1.0, size=5), 0.7
    mean, covariance = posterior(plans, values, prior, spread)
    # The same model solved another way: prior and data as weighted rows of one regression.
    predicted = plans @ prior
    scale = (values @ predicted) / (predicted @ predicted)
    tau = scale * spread
    residual = values - scale * predicted
    sigma = max(0.05 * values.max(), 0.5 * residual.std())
    rows = np.vstack([np.eye(5) / tau, plans / sigma])
    targets = np.concatenate([scale * prior / tau, values / sigma])
    expected, *_ = np.linalg.lstsq(rows, targets, rcond=None)
    # Two ways through double precision with condition numbers of about 1e3.
    np.testing.assert_allclose(mean, expected, rtol=1e-9)
    np.testing.assert_allclose(covariance, np.linalg.inv(rows.T @ rows), rtol=1e-9, atol=1e-15)


def test_posterior_before_and_after_data() -> None:
    prior = np.array([3.0, 1.0, 0.5])
    mean, covariance = posterior(np.empty((0, 3)), np.empty(0), prior, 2.0)
    assert mean.tolist() == prior.tolist()
    np.testing.assert_array_equal(covariance, np.eye(3))
    # Every unit measured alone a hundred times: the data win over a wrong prior.
    plans, worths = np.tile(np.eye(3), (100, 1)), np.array([0.1, 0.6, 0.3])
    mean, covariance = posterior(plans, plans @ worths, prior, 2.0)
    # sigma is 5 % of the largest value, hence 0.03 / sqrt(100) per worth, and a little prior.
    np.testing.assert_allclose(mean, worths, atol=0.01)
    assert (np.diag(covariance) < 0.02**2).all()


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [0.4, 0.4, 0.4]])
@pytest.mark.parametrize("prior", [[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
def test_posterior_survives_useless_data_and_priors(
    values: list[float], prior: list[float]
) -> None:
    mean, covariance = posterior(np.eye(3), np.array(values), np.array(prior), 0.5)
    assert np.isfinite(mean).all()
    assert (np.linalg.eigvalsh(covariance) > 0).all()
    if values[0] > 0:  # what each unit is worth was measured
        np.testing.assert_allclose(mean, values, rtol=0.2)


def test_circuit_starts_with_the_scores_and_hedges_every_second_plan() -> None:
    scores = dict(zip(SPACE.names, np.arange(1.0, 13.0).tolist(), strict=True))
    sampler = CircuitSampler(SPACE, Prior(scores), 0)
    none = History(np.empty((0, 12)), np.empty(0), frozenset())
    assert sampler.propose(none) == greedy(np.arange(1.0, 13.0), SPACE)
    # With an odd number of plans taken, scores do not count: their reverse gives the same proposal.
    first = SPACE.bits(next(SPACE.enumerate()))
    odd = History(np.array([first], dtype=float), np.array([0.3]), frozenset({first}))
    reverse = CircuitSampler(
        SPACE, Prior(dict(zip(SPACE.names, np.arange(12.0, 0.0, -1.0), strict=True))), 0
    )
    assert sampler.propose(odd) == reverse.propose(odd)
    assert sampler.propose(none) != reverse.propose(none)


def test_circuit_works_without_scores_and_with_scores_of_both_signs() -> None:
    landscape = Landscape.random(SPACE, 3)
    mixed = dict(zip(SPACE.names, np.random.default_rng(0).normal(size=12).tolist(), strict=True))
    zero = dict.fromkeys(SPACE.names, 0.0)
    for prior in (None, mixed, zero):
        assert regret(CircuitSampler(SPACE, Prior(prior), 0), landscape, 30) < 0.1


def regret(sampler: FeasibleSampler, landscape: Landscape, evaluations: int) -> float:
    """How far the best of so many evaluated plans stays below the optimum, relative to it."""
    bits = [sampler.propose(History(np.empty((0, 12)), np.empty(0), frozenset()))]
    space = sampler.space
    while len(bits) < evaluations:
        values = [landscape.measure(space.plan(one)).quality for one in bits]
        bits.append(
            sampler.propose(History(np.array(bits, float), np.array(values), frozenset(bits)))
        )
    optimum = landscape.best()
    return 1 - max(landscape.quality(space.plan(one)) for one in bits) / optimum


def test_circuit_beats_the_baselines_on_additive_landscapes() -> None:
    circuit, random, prior = [], [], []
    for seed in range(6):
        landscape = Landscape.random(SPACE, seed, noise=0.01)
        scores = landscape.prior(correlation=0.6, seed=seed)
        circuit.append(regret(CircuitSampler(SPACE, Prior(scores), seed), landscape, 20))
        random.append(regret(RandomSampler(SPACE, None, seed), landscape, 20))
        prior.append(regret(PriorSampler(SPACE, Prior(scores), seed), landscape, 20))
    # Of 856 plans 20 are tried; the model has 12 worths to learn (search.md 3: 0.000 at 20 against
    # 0.174 and 0.053, there with interactions).
    assert np.mean(circuit) < 0.02
    assert np.mean(circuit) < 0.5 * np.mean(prior)
    assert np.mean(circuit) < 0.2 * np.mean(random)


def test_circuit_stays_near_the_best_plan_so_far() -> None:
    space = make_space("20%", choices=Choices("heads"))  # 36 units
    to_best, to_others = [], []
    for seed in range(20):
        draws, tried = RandomSampler(space, None, seed), list[tuple[int, ...]]()
        while len(tried) < 8:
            plans = np.array(tried, dtype=float).reshape(len(tried), len(space.units))
            tried.append(draws.propose(History(plans, np.zeros(len(tried)), frozenset(tried))))
        plans, values = np.array(tried, dtype=float), np.full(8, 0.5)
        values[3] = 0.6
        proposed = CircuitSampler(space, None, seed).propose(
            History(plans, values, frozenset(tried))
        )
        apart = np.abs(plans - np.array(proposed)).sum(axis=1)
        to_best.append(apart[3])
        to_others.append(np.delete(apart, 3).mean())
    # without a trust region the two are alike: 12.8 and 14.1 units
    assert np.mean(to_best) < np.mean(to_others) / 2


def test_prior_sampler_starts_with_the_scores_own_knapsack() -> None:
    values = np.random.default_rng(1).normal(size=12)
    sampler = PriorSampler(SPACE, Prior(dict(zip(SPACE.names, values.tolist(), strict=True))), 5)
    none = History(np.empty((0, 12)), np.empty(0), frozenset())
    assert sampler.propose(none) == greedy(values, SPACE)
    with pytest.raises(ConfigError, match="'prior' needs scores"):
        PriorSampler(SPACE, None, 0)


def test_random_fill_reaches_all_units() -> None:
    sampler = RandomSampler(SPACE, None, 0)
    taken: set[tuple[int, ...]] = set()
    for _ in range(30):
        taken.add(sampler.propose(History(np.empty((0, 12)), np.empty(0), frozenset(taken))))
    assert np.array(sorted(taken)).any(axis=0).all()


@pytest.mark.parametrize(
    "kind", [RandomSampler, EvolutionSampler, TPERepairedSampler, NSGA2Sampler]
)
def test_plans_that_put_nothing_in_are_reached_too(kind: type[FeasibleSampler]) -> None:
    """A stand-in costs hardly anything, and filling up would put it in everywhere."""
    space = make_space("31.25%", choices=Choices(replacements=("mean",)))
    sampler, found = kind(space, None, 0), list[tuple[int, ...]]()
    for _ in range(40):
        plans = np.array(found, dtype=float).reshape(len(found), len(space.units))
        history = History(plans, np.arange(len(found), dtype=float), frozenset(found))
        found.append(sampler.propose(history))
    empty = [
        any(not any(bits[unit] for unit in part.indices) for part in space.parts) for bits in found
    ]
    assert sum(empty) > 20


def test_misuse_is_refused() -> None:
    with pytest.raises(InfeasibleError):
        RandomSampler(make_space("1%"), None, 0)
    space: Space = make_space("20%")
    maximise = optuna.create_study(direction="maximize", sampler=RandomSampler(space, None, 0))
    with pytest.raises(ConfigError, match="'dropout' is not a unit of the search space"):
        maximise.ask().suggest_float("dropout", 0, 1)
    minimise = optuna.create_study(sampler=RandomSampler(space, None, 0))
    with pytest.raises(ConfigError, match="direction must be 'maximize'"):
        minimise.ask().suggest_categorical("S0", (0, 1))


def test_a_prior_is_read_back_equal_and_its_ranking_explains_the_units() -> None:
    landscape = Landscape.random(SPACE, 4)
    prior = landscape.knowledge()
    assert Prior.from_json(json.loads(json.dumps(prior.to_json()))) == prior
    fitted = prior.fitted(SPACE)
    assert fitted is not None
    # The ranking comes from additive worths; what a fit of ranks loses is the scale at the ends.
    assert np.corrcoef(fitted, landscape.worths)[0, 1] > 0.9
    assert Prior().fitted(SPACE) is None


def test_ranked_starts_with_the_rankings_best_and_unlearns_a_wrong_ranking() -> None:
    landscape = Landscape.random(SPACE, 5, noise=0.005)
    right = landscape.knowledge()
    none = History(np.empty((0, 12)), np.empty(0), frozenset())
    best = min(right.ranking, key=lambda row: row[1])[0]
    assert RankedSampler(SPACE, right, 0).propose(none) == SPACE.bits(best)
    wrong = Prior(None, tuple((plan, -loss) for plan, loss in right.ranking))
    # The reverse of the truth: the worst come first, and still the optimum is near after 40.
    assert regret(RankedSampler(SPACE, wrong, 0), landscape, 40) < 0.1
    assert regret(RankedSampler(SPACE, right, 0), landscape, 5) < 0.02
    with pytest.raises(ConfigError, match="needs the ranking of plans under the elastic teacher"):
        RankedSampler(SPACE, Prior(landscape.prior()), 0)


def test_ranked_plans_outside_the_ranking_come_last() -> None:
    space = make_space("12.5%", layers=2)
    plans = list(space.enumerate())
    few = Prior(None, tuple((plan, float(place)) for place, plan in enumerate(plans[:3])))
    sampler, taken = RankedSampler(space, few, 0), []
    for _ in plans:
        history = History(np.empty((0, 6)), np.empty(0), frozenset(taken))
        taken.append(sampler.propose(history))
    assert {space.plan(bits) for bits in taken[:3]} == set(plans[:3])
    assert {space.plan(bits) for bits in taken} == set(plans)


def test_the_regression_behind_the_ranking_equals_its_definition() -> None:
    """In the space of data: y ~ N(X w0, X V X' + noise), its density and what it says of w."""
    rng = np.random.default_rng(5)
    rows, values = rng.standard_normal((7, 6)), rng.uniform(size=7)
    expected = np.array([0.5, 0.1, 0.0, 0.0, 0.0, 0.0])
    prior = np.diag([1.0, 0.1**2, *[0.03**2] * 4])
    spread = rows @ prior @ rows.T + 0.02**2 * np.eye(7)
    gain = prior @ rows.T @ np.linalg.inv(spread)
    density = multivariate_normal(rows @ expected, spread).logpdf(values)
    likelihood, mean, covariance = regression(rows.T @ rows, rows.T @ values, 0.1, 0.03)
    data = 0.5 * (values @ values / 0.02**2 + 7 * np.log(2 * np.pi * 0.02**2))
    assert likelihood == pytest.approx(density + data, rel=1e-9)
    np.testing.assert_allclose(mean, expected + gain @ (values - rows @ expected), rtol=1e-7)
    np.testing.assert_allclose(covariance, prior - gain @ rows @ prior, rtol=1e-6, atol=1e-12)


def test_a_child_by_swaps_is_feasible_and_close_to_its_parent() -> None:
    rng = np.random.default_rng(0)
    parents = [SPACE.bits(plan) for plan in SPACE.enumerate()]
    for _ in range(50):
        parent = parents[rng.integers(len(parents))]
        child = swapped(parent, SPACE, rng, 1)
        assert child is not None
        assert SPACE.feasible(SPACE.plan(child))
        # A unit that costs two is swapped for two that cost one, and the rest is filled up.
        assert sum(a != b for a, b in zip(parent, child, strict=True)) <= 8


def test_repaired_samplers_learn() -> None:
    landscape = Landscape.random(SPACE, 6, noise=0.01)
    for kind in (TPERepairedSampler, NSGA2Sampler, EvolutionSampler):
        found = np.mean([regret(kind(SPACE, None, seed), landscape, 40) for seed in range(3)])
        blind = np.mean(
            [regret(RandomSampler(SPACE, None, seed), landscape, 40) for seed in (0, 1, 2)]
        )
        assert found < blind


def asked(make: Callable[[], BaseSampler], history: History) -> list[int]:
    """What one of Optuna's samplers asks for next, told of the history by the public way alone."""
    study = optuna.create_study(direction="maximize")
    for place, (plan, value) in enumerate(zip(history.plans, history.values, strict=True)):
        # every plan is proposed, as the sampler counts, and then another one is told
        study.sampler = Told(make(), dict(zip(NAMED, map(int, plan), strict=True)))
        trial = study.ask()
        assert [trial.suggest_categorical(name, (0, 1)) for name in NAMED] == plan.tolist()
        assert trial.number == place
        study.tell(trial, float(value))
    study.sampler = make()
    trial = study.ask()
    return [trial.suggest_categorical(name, (0, 1)) for name in NAMED]


class Told(BaseSampler):
    """Proposes what it is told, after another sampler has made a proposal of its own."""

    def __init__(self, asked: BaseSampler, plan: dict[str, int]) -> None:
        self._asked, self._plan = asked, plan

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {name: CategoricalDistribution((0, 1)) for name in NAMED}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, int]:
        self._asked.sample_relative(study, trial, search_space)
        return self._plan

    def sample_independent(self, *args: object) -> int:
        raise AssertionError(args)


def known(sampler: FeasibleSampler, trials: int, sign: float = 1.0) -> History:
    """A history of the first plans of the space; `sign` -1 turns good into bad."""
    landscape = Landscape.random(SPACE, 2)
    plans = [SPACE.bits(plan) for plan in SPACE.enumerate()][:trials]
    values = np.array([sign * landscape.quality(SPACE.plan(bits)) for bits in plans])
    rows = np.array(plans, dtype=float).reshape(trials, len(SPACE.units))
    return History(rows, values, frozenset(plans))


@pytest.mark.parametrize("trials", [0, 3, 9, 10, 12, 20, 31])
@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (TPERepairedSampler, partial(TPESampler, n_startup_trials=5, multivariate=True)),
        (NSGA2Sampler, partial(NSGAIISampler, population_size=10)),
    ],
)
def test_repaired_samplers_wish_what_optuna_asks_for(
    trials: int, kind: type[RepairedSampler], plain: Callable[..., BaseSampler]
) -> None:
    sampler = kind(SPACE)
    history = known(sampler, trials)
    sampler.replay(known(sampler, trials // 2))  # told in two steps, as a study goes on
    sampler.wish(3)
    sampler.replay(history)
    wish = [sampler.wish(7), sampler.wish(7)]
    assert wish[0] == wish[1]  # what was asked before does not matter
    found = [wish[0][name] for name in NAMED]
    if kind is TPERepairedSampler or trials % 10:  # parents in the order of their trials
        assert found == asked(lambda: plain(seed=7), history)


@pytest.mark.parametrize("kind", [TPERepairedSampler, NSGA2Sampler])
def test_repaired_samplers_go_by_measured_qualities(kind: type[RepairedSampler]) -> None:
    changed = 0
    for trials in (12, 20, 31):
        good, bad = (kind(SPACE, None, 5) for _ in range(2))
        proposals = good.propose(known(good, trials)), bad.propose(known(bad, trials, -1.0))
        changed += proposals[0] != proposals[1]
    assert changed == 3


def test_a_listed_space_gets_the_proposals_of_the_integer_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    landscape = Landscape.random(SPACE, 3)

    def proposals(listed: int) -> list[tuple[int, ...]]:
        monkeypatch.setattr("circuitsearch.search.samplers.base._LISTED", listed)
        sampler = CircuitSampler(SPACE, landscape.knowledge(), seed=1)
        tried: list[tuple[int, ...]] = []
        for _ in range(40):
            values = np.array([landscape.quality(SPACE.plan(bits)) for bits in tried])
            plans = np.array(tried, dtype=float).reshape(len(tried), len(SPACE.units))
            tried.append(sampler.propose(History(plans, values, frozenset(tried))))
        return tried

    assert proposals(10**6) == proposals(0)
