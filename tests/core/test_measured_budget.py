"""Budgets of what is measured: units, shares, slack; the record of a student's speed."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from circuitsearch.config import LimitConfig
from circuitsearch.core.amounts import parse_limit, shown
from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.cost import cost
from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.core.plan import Plan
from circuitsearch.core.shapes import known_shape
from circuitsearch.core.speed import Speed

DONUT = known_shape("donut-base")


MEASURED_TEXTS = {
    ("latency", "12ms"): 12_000_000,
    ("latency", "0.5s"): 500_000_000,
    ("latency", " 7.25 us "): 7_250,
    ("latency", "3ns"): 3,
    ("memory", "300MB"): 300_000_000,
    ("memory", "1.5GiB"): 3 * 2**29,
    ("memory", "12B"): 12,
    ("memory", "1kB"): 1_000,
    ("memory", "1KiB"): 1_024,
}


@pytest.mark.parametrize(("quantity", "text"), list(MEASURED_TEXTS))
def test_measured_limits_have_units_of_their_own(quantity: str, text: str) -> None:
    assert parse_limit(text, quantity) == (False, Fraction(MEASURED_TEXTS[quantity, text]))
    assert parse_limit("80%", quantity) == (True, Fraction(4, 5))


@pytest.mark.parametrize("text", ["12", 12, "20M", "5min", "-1ms", "1e3ms", "", "ms", True])
@pytest.mark.parametrize("quantity", ["latency", "memory"])
def test_measured_limits_without_their_unit_are_refused(quantity: str, text: Any) -> None:
    with pytest.raises(ConfigError, match=r"allowed are a share \(80%\), a number with unit"):
        parse_limit(text, quantity)


UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
SIZES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@given(
    st.integers(0, 10**9),
    st.integers(0, 999),
    st.sampled_from(
        [("latency", *unit) for unit in UNITS.items()]
        + [("memory", *size) for size in SIZES.items()]
    ),
)
def test_any_measured_amount_is_read_exactly(
    whole: int, thousandths: int, unit: tuple[str, str, int]
) -> None:
    quantity, name, size = unit
    expected = (whole + Fraction(thousandths, 1000)) * size
    assert parse_limit(f"{whole}.{thousandths:03}{name}", quantity) == (False, expected)
    limit = Budget.resolve(
        [LimitSpec(quantity, f"{whole}.{thousandths:03}{name}")],  # type: ignore[arg-type]
        DONUT,
    ).limits[0]
    assert limit.maximum <= expected < limit.maximum + 1


@given(st.integers(1, 10**13), st.integers(0, 10_000))
def test_any_share_of_a_measured_figure_is_rounded_down(figure: int, hundredths: int) -> None:
    text = f"{hundredths // 100}.{hundredths % 100:02}%"
    spec = LimitSpec("latency", text, "total")
    whole = {"total latency (measured)": figure}
    (limit,) = Budget.resolve([spec], DONUT, whole=whole).limits
    assert limit.maximum == figure * hundredths // 10_000
    assert limit.name == spec.name == "total latency (measured)"


def test_measured_limits_name_their_faults() -> None:
    with pytest.raises(ConfigError) as caught:
        Budget.resolve(
            [
                LimitSpec("latency", "80%"),
                LimitSpec("memory", "1GB", "decoder+embeddings"),
                LimitSpec("latency", "1s", "total", "cached"),
            ],
            DONUT,
        )
    for fault in (
        "decoder latency (measured): a share of what is measured needs the teacher's own figure",
        "scope: got 'decoder+embeddings', allowed are decoder, total",
        "accounting: got 'cached', a measured latency has none; leave it out",
    ):
        assert fault in str(caught.value)


def test_slack_of_measured_limits_comes_from_figures_handed_in() -> None:
    specs = [LimitSpec("parameters", "31.25%"), LimitSpec("latency", "20ms")]
    budget = Budget.resolve(specs, DONUT)
    mint, name = Plan.parse("M0 C2 S3 C3"), "decoder latency (measured)"
    assert budget.slack(mint, DONUT) == {"decoder parameters (paper)": 0}
    assert budget.slack(mint, DONUT, {name: 21_000_000})[name] == -1_000_000
    assert not budget.admits(mint, DONUT, {name: 21_000_000})
    assert budget.exceeded({name: 20_000_000}) == []
    assert budget.exceeded({name: 20_500_000}) == [
        f"{name}: the student was measured at 20.5 ms, the limit '20ms' allows 20 ms"
    ]
    with pytest.raises(ConfigError, match="was not measured"):
        budget.exceeded({})
    with pytest.raises(ConfigError, match="shapes do not tell it"):
        budget.limits[1].used(cost(mint, DONUT, "paper"))
    assert Budget.from_json(json.loads(json.dumps(budget.to_json()))) == budget


def test_a_search_file_says_what_is_measured_without_an_accounting() -> None:
    said = LimitConfig(quantity="latency", limit="12ms", scope="total")
    assert said.spec() == LimitSpec("latency", "12ms", "total", "measured")
    assert LimitConfig(**said.model_dump()) == said
    assert LimitConfig(quantity="macs", limit="50%").accounting == "paper"
    with pytest.raises(ValidationError, match="a measured memory has no accounting"):
        LimitConfig(quantity="memory", limit="1GB", accounting="paper")
    with pytest.raises(ValidationError, match="a measured memory has decoder and total"):
        LimitConfig(quantity="memory", limit="1GB", scope="decoder+embeddings")


def test_speeds_are_read_back_and_shown() -> None:
    numbers: dict[str, Any] = {"first_token": 1, "per_token": 2, "decoding": 3, "encoding": 4}
    sizes: dict[str, Any] = {"decoder_memory": 5, "total_memory": 6}
    speed = Speed(plan="C0", plan_hash="x", **numbers, **sizes, where="toy")
    assert Speed.from_json(json.loads(json.dumps(speed.to_json()))) == speed
    assert speed.amounts() == {
        "decoder latency (measured)": 3,
        "total latency (measured)": 7,
        "decoder memory (measured)": 5,
        "total memory (measured)": 6,
    }
    with pytest.raises(DataError, match="decoding: got -1"):
        replace(speed, decoding=-1)
    assert [shown("latency", n) for n in (0, 999, 1_500, 12 * 10**6, 5 * 10**8, 2 * 10**9)] == [
        "0 ns", "999 ns", "1.5 us", "12 ms", "500 ms", "2 s",
    ]  # fmt: skip
    assert [shown("memory", n) for n in (0, 1_500, 3 * 10**8)] == ["0 B", "1.5 kB", "300 MB"]
    assert shown("macs", 20_971_520) == "20,971,520"
