from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsearch.core.components import Kind, SubLayer, sublayers
from circuitsearch.core.plan import Plan
from circuitsearch.search.storage.connection import close_storage, open_storage
from circuitsearch.search.study import Study
from circuitsearch.show.report_found import (
    Found,
    best_tenth,
    head_selection,
    incumbents,
    selection,
    trust_words,
)
from tests.search_fixtures import Landscape, limit, make_space
from tests.show.results import SHAPE, measured

QUALITIES = st.lists(st.none() | st.floats(0.05, 0.9), max_size=30)
PLANS = st.lists(
    st.lists(st.sampled_from(["", "[0-3]", "[4,7]", "=mean", "=linear"]), min_size=12, max_size=12),
    min_size=1,
    max_size=8,
)


def plan_of(suffixes: list[str], skipped: int) -> Plan:
    """A plan of twelve sub-layers; feed-forwards take widths instead of heads."""
    kept = []
    for one, suffix in zip(sublayers(4), suffixes, strict=True):
        if (one.position + skipped) % 3 == 0:
            continue
        feed = one.kind is Kind.FEED
        kept.append(f"{one}{':64' if feed and suffix.startswith('[') else suffix}")
    return Plan.parse(" ".join(kept))


@given(QUALITIES)
def test_the_incumbent_is_the_best_of_what_came_before(qualities: list[float | None]) -> None:
    trials = [measured("C3", quality=one, seed=n) for n, one in enumerate(qualities)]
    steps = incumbents(trials)
    assert [step.trainings for step in steps] == list(range(1, len(trials) + 1))
    for place, step in enumerate(steps):
        known = [one for one in qualities[: place + 1] if one is not None]
        assert step.best == (max(known) if known else None)
        assert step.quality == qualities[place]


@given(st.lists(st.floats(0.05, 0.9), max_size=45))
def test_the_best_tenth_is_rounded_up_and_beats_all_others(qualities: list[float]) -> None:
    trials = [measured("C3", quality=one, seed=n) for n, one in enumerate(qualities)]
    chosen = best_tenth(trials)
    assert len(chosen) == math.ceil(len(trials) / 10)
    others = [one.quality for one in trials if one not in chosen]
    assert all(a.quality >= b for a in chosen for b in others)


def test_ties_go_to_the_lower_loss() -> None:
    worse = measured("C3", quality=0.5, loss=2.0)
    better = measured("C2", quality=0.5, loss=1.0)
    assert best_tenth([worse, better]) == (better,)


@given(PLANS)
def test_selection_frequency_is_a_count(drawn: list[list[str]]) -> None:
    plans = [plan_of(suffixes, n) for n, suffixes in enumerate(drawn)]
    shares = selection(plans, SHAPE.decoder)
    heads = head_selection(plans, SHAPE.decoder)
    assert list(shares) == list(sublayers(4))
    for one, share in shares.items():
        counted = 0
        per_head = [0] * 16
        for plan in plans:
            # by the text alone: what stands in for a sub-layer keeps none of it
            items = [i for i in str(plan).split() if i.startswith(one.name)]
            if not items or "=" in items[0]:
                continue
            counted += 1
            for head in {"": range(16), "[0-3]": range(4), "[4,7]": (4, 7)}.get(
                items[0].removeprefix(one.name), ()
            ):
                per_head[head] += 1
        assert share == counted / len(plans)
        if one.kind is not Kind.FEED:
            assert heads[one] == tuple(n / len(plans) for n in per_head)
    assert all(one.kind is not Kind.FEED for one in heads)


def test_a_decoder_without_an_encoder_has_no_cross_attention() -> None:
    decoder = replace(SHAPE.decoder, encoder_width=0)
    assert {one.kind for one in selection([Plan.parse("S0 M1")], decoder)} == {Kind.SELF, Kind.FEED}


@pytest.mark.parametrize(
    ("trust", "words"),
    [
        (None, "Not known"),
        (0.9, "well"),
        (0.5, "in part"),
        (0.2, "little"),
        (0.0, "nothing"),
        (-0.5, "misled"),
    ],
)
def test_prior_trust_is_said_in_words(trust: float | None, words: str) -> None:
    told = trust_words(trust, 9)
    assert words in told
    assert trust is None or "9 plans" in told
    assert "predicted loss" not in told


def test_what_the_ranking_was_worth_is_said_beside_the_effects() -> None:
    told = trust_words(-0.5, 9, (0.91, 7))
    assert "the effects misled" in told
    assert "Spearman 0.91 between predicted loss" in told
    assert "over the 7 of them that were ranked" in told
    assert "these losses ranked the plans well" in told
    assert "Not known" in trust_words(None, 9, (0.91, 7))


def test_a_study_is_read(tmp_path) -> None:
    space = make_space("40%", limit("50%", "macs"))
    landscape = Landscape.random(space, 1)
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}")
    study = Study.open(storage, "s", space, {"steps": 3}, 11, "circuit", landscape.knowledge(0.6))
    study.run(landscape.measure, 6)
    phase = study.phase("full", {"steps": 9})
    phase.run(landscape.measure, 1, [(Plan.parse(landscape.calls[0][0]), "scores")])
    trained = landscape.calls[:6]
    found = Found.read(study, [phase])
    assert [one.plan for one in found.promoted] == [landscape.calls[6][0]]
    assert Found.read(study).promoted == ()
    close_storage(storage)
    assert [one.plan for one in found.measurements] == [plan for plan, _ in trained]
    assert [one.maximum for one in found.limits] == [one.maximum for one in space.budget.limits]
    assert (found.seed, found.sampler, found.heads, found.failed) == (11, "circuit", False, 0)
    assert found.decoder == space.shape.decoder
    assert found.trust is not None
    assert SubLayer.parse("C3") in selection([Plan.full(4)], found.decoder)
