"""The data order: a pure function of seed and step that meets every example and spares padding."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from circuitsearch.core.errors import DataError
from circuitsearch.students.training.order import DataOrder


def _lengths(count: int) -> list[int]:
    rng = random.Random(0)
    return [rng.randint(5, 60) for _ in range(count)]


def _single(lengths: list[int], batch: int, seed: int) -> DataOrder:
    return DataOrder(lengths, range(len(lengths)), batch, seed)


@pytest.mark.parametrize("groups", [range(96), [i // 3 for i in range(96)], [0] * 96])
def test_an_epoch_meets_every_example_once(groups: Sequence[int]) -> None:
    order = DataOrder(_lengths(96), groups, batch=8, seed=1)
    assert order.steps_per_epoch == 12
    for epoch in range(2):
        met = [i for step in range(12) for i in order.indices(12 * epoch + step)]
        assert sorted(met) == list(range(96))


def test_what_fills_no_batch_changes_from_epoch_to_epoch() -> None:
    order = _single(_lengths(10), batch=4, seed=1)
    left_out = set()
    for epoch in range(20):
        met = [i for step in range(2) for i in order.indices(2 * epoch + step)]
        assert len(set(met)) == 8
        left_out |= set(range(10)) - set(met)
    assert left_out == set(range(10))


def test_any_step_can_be_asked_first() -> None:
    lengths = _lengths(50)
    one = _single(lengths, batch=8, seed=3)
    in_turn = [one.indices(step) for step in range(20)]
    for step in (17, 2, 9):
        assert _single(lengths, batch=8, seed=3).indices(step) == in_turn[step]
    assert [_single(lengths, batch=8, seed=4).indices(step) for step in range(20)] != in_turn


def test_buckets_spare_most_of_the_padding() -> None:
    lengths = _lengths(512)

    def padding(batches: list[list[int]]) -> int:
        return sum(
            max(lengths[i] for i in batch) * len(batch) - sum(lengths[i] for i in batch)
            for batch in batches
        )

    order = _single(lengths, batch=8, seed=0)
    ours = [order.indices(step) for step in range(64)]
    shuffled = list(range(512))
    random.Random(1).shuffle(shuffled)
    plain = [shuffled[i : i + 8] for i in range(0, 512, 8)]
    assert padding(ours) < 0.3 * padding(plain)
    # and length does not follow time
    means = [sum(lengths[i] for i in batch) / 8 for batch in ours]
    early, late = sum(means[:32]) / 32, sum(means[32:]) / 32
    assert abs(early - late) < 10


def test_a_group_is_cut_only_where_a_batch_is_full() -> None:
    rng = random.Random(2)
    groups = [page for page in range(100) for _ in range(rng.randint(1, 5))]
    order = DataOrder(_lengths(len(groups)), groups, batch=16, seed=0)
    batches = [order.indices(step) for step in range(order.steps_per_epoch)]
    for batch in batches:
        in_turn = [groups[i] for i in batch]
        changes = sum(a != b for a, b in itertools.pairwise(in_turn))
        assert changes == len(set(in_turn)) - 1  # the questions of a page stand together
    met = [{groups[i] for i in batch} for batch in batches]
    often = [sum(page in pages for pages in met) for page in set(groups)]
    # at most one page per border between two batches is in both
    assert sum(times - 1 for times in often if times > 1) <= len(batches) - 1


def test_fewer_examples_than_a_batch_make_one_batch() -> None:
    order = _single([5, 9, 7], batch=32, seed=0)
    assert sorted(order.indices(0)) == sorted(order.indices(41)) == [0, 1, 2]


def test_no_examples() -> None:
    with pytest.raises(DataError, match="no examples"):
        _single([], batch=4, seed=0)
