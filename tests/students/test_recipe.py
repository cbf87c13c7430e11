"""A recipe: every fault at once, the shorthand of a weight, the schedule of the rate."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from circuitsearch.core.errors import ConfigError
from circuitsearch.students.training.distill import DistillRecipe

RECIPE = DistillRecipe(
    steps=8, batch=4, learning_rate=3e-3, warmup=0.05, kd_weight="balanced", temperature=2.0
)


def test_recipe_names_every_fault() -> None:
    with pytest.raises(ConfigError) as caught:
        replace(
            RECIPE,
            steps=0,
            learning_rate=float("nan"),
            warmup=2.0,
            kd_weight=0.5,
            losses={"forward_kld": 1, "cross_entropy": "balance"},  # type: ignore[dict-item]
            hidden_map=(("end", "X3"),),
        )
    text = str(caught.value)
    assert "7 problems" in text
    assert "did you mean 'forward_kl'" in text
    assert "kd_weight: it weighs forward_kl, which is not among the losses" in text
    assert "weight of cross_entropy: got 'balance'" in text
    assert "place 'X3': write 'end', or a sub-layer" in text
    for losses in ({}, {"forward_kl": 0}, (("forward_kl", 1), ("forward_kl", 2))):
        with pytest.raises(ConfigError, match=r"one or more different ones|every weight is 0"):
            replace(RECIPE, losses=losses)


def test_kd_weight_is_a_shorthand() -> None:
    short = replace(RECIPE, kd_weight=0.7)
    assert short == replace(RECIPE, losses={"cross_entropy": 1.0, "forward_kl": 0.7})
    assert "kd_weight" not in short.to_json()
    assert short.to_json()["losses"] == [["cross_entropy", 1.0], ["forward_kl", 0.7]]


def test_rate_warms_up_and_falls_to_zero() -> None:
    recipe = replace(RECIPE, steps=100, learning_rate=1.0, warmup=0.1)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 1e-3
    assert replace(RECIPE, steps=1, learning_rate=1.0).rate(0) == 1.0
    assert replace(RECIPE, steps=1, learning_rate=1.0, warmup=0.0).rate(0) == 1.0
