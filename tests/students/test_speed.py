"""Speed: peak memory against sums made by hand, the generation that is timed, its refusals."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from circuitsearch.core.cost import Generation, cost
from circuitsearch.core.errors import ConfigError
from circuitsearch.core.plan import Plan
from circuitsearch.students import speed
from circuitsearch.students.live_bytes import peak_bytes
from circuitsearch.students.speed import Encoding, measure_encoder, speed_of
from circuitsearch.students.student import build_student
from circuitsearch.teacher.loading import Teacher

SHORT = Generation(prompt=5, passes=4)
NONE = Encoding(0, 0, 0)


def test_peak_memory_is_the_highest_sum_of_live_tensors() -> None:
    module = nn.Linear(10, 20)  # 220 weights
    given = torch.ones(50, 10)  # 500 numbers

    def run() -> None:
        a = module(given)  # 1,000
        b = a * 2  # 2,000 alive
        del a
        c = b.view(20, 50)[3:]  # a view is nothing new
        d = torch.cat([b, b])  # 1,000 + 2,000: the peak
        del b, c
        e = d[0] + 1  # 2,000 + 20
        d.add_(1)  # nor is what is written in place
        del d, e
        torch.zeros(2_500)  # alone, below the peak

    assert peak_bytes(run, module, [given]) == 4 * (220 + 500 + 3_000)


def test_peak_memory_counts_all_results_and_forgets_what_is_freed() -> None:
    module = nn.Linear(1, 1, bias=False)

    def run() -> None:
        for _ in range(5):  # would add up if what is freed stayed in the sum
            values, places = torch.zeros(100).sort()  # 400 + 400 + 800 bytes at once
            del values, places

    assert peak_bytes(run, module) == 4 + 1_600


def test_a_students_peak_holds_weights_states_and_its_cache(tiny_teacher: Teacher) -> None:
    shape = tiny_teacher.shape
    plan = Plan.parse("S1 C3")
    student = build_student(tiny_teacher, plan)
    made = speed_of(tiny_teacher, plan, SHORT, encoding=NONE, repetitions=1)
    weights = 4 * sum(p.numel() for p in student.decoder.parameters())
    counted = cost(plan, shape, "cached").scopes["decoder+embeddings"].parameters
    assert weights == 4 * counted
    d, tokens = shape.decoder.d_model, shape.encoder.tokens
    states = 4 * tokens * shape.decoder.encoder_width
    last = SHORT.prompt + SHORT.passes - 1
    cache = 4 * 2 * d * (tokens + last)  # keys and values: of the page, of all tokens
    least = weights + states + cache
    # Beyond it only one step's own tensors: the prompt's stream, neurons and logits of a few rows.
    step = 4 * SHORT.prompt * (12 * d + tokens + shape.decoder.vocabulary)
    assert least < made.decoder_memory < least + step
    again = speed_of(tiny_teacher, plan, SHORT, encoding=NONE, repetitions=1)
    assert again.decoder_memory == made.decoder_memory
    one, other = (
        speed_of(tiny_teacher, plan, Generation(1, passes), encoding=NONE, repetitions=1)
        for passes in (48, 88)
    )
    # 40 more tokens in the cache, and once more while it grows: a grown cache is a new tensor
    extra = other.decoder_memory - one.decoder_memory
    assert 4 * 2 * d * 40 <= extra <= 2 * 4 * 2 * d * 40


def test_total_memory_adds_the_encoder(tiny_teacher: Teacher) -> None:
    encoding = measure_encoder(tiny_teacher, repetitions=1)
    model: Any = tiny_teacher.model
    modules = [model.encoder, *filter(None, [getattr(model, "enc_to_dec_proj", None)])]
    held = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes()
        for module in modules
        for t in (*module.parameters(), *module.buffers())
    }
    assert encoding.weights == sum(held.values())
    assert encoding.memory > encoding.weights
    assert encoding.time > 0
    made = speed_of(tiny_teacher, Plan.parse("C3"), SHORT, encoding=encoding, repetitions=1)
    assert made.total_memory >= made.decoder_memory + encoding.weights
    assert made.encoding == encoding.time
    assert made.amounts()["total latency (measured)"] == made.decoding + encoding.time


def test_every_pass_counts_with_its_fastest_time(
    tiny_teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = iter([[9, 9, 9], [5, 2, 7], [4, 8, 6], [6, 3, 1], [0, 0, 0]])  # first: the warm-up
    monkeypatch.setattr(speed, "_generate", lambda *_: next(runs))
    made = speed_of(tiny_teacher, Plan.parse("C3"), SHORT, encoding=NONE, repetitions=3)
    assert (made.first_token, made.per_token, made.decoding) == (4, (2 + 1) // 2, 7)


def test_it_takes_exactly_the_passes_that_are_asked_for(
    tiny_teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    student = build_student(tiny_teacher, Plan.parse("S0 C3 M3"))
    forward = student.decoder.forward

    def noted(*args: Any, **options: Any) -> Any:
        seen.append(tuple(options["input_ids"].shape))
        time.sleep(0.001)
        return forward(*args, **options)

    monkeypatch.setattr(student.decoder, "forward", noted)
    made = speed.measure_speed(
        student, tiny_teacher, Plan.parse("S0 C3 M3"), SHORT, encoding=NONE, repetitions=2
    )
    once = [(1, 5), (1, 1), (1, 1), (1, 1)]
    assert seen == once * 4  # warm-up, two that are timed, memory
    assert made.first_token >= 10**6
    assert made.decoding >= 4 * 10**6
    assert made.per_token >= 10**6


def test_replacements_need_no_numbers(tiny_teacher: Teacher) -> None:
    for text in ("M0=mean S1=linear C3=alone", "C0=token C3"):
        made = speed_of(tiny_teacher, Plan.parse(text), SHORT, encoding=NONE, repetitions=1)
        assert made.plan == text
        assert made.decoding > 0


def test_more_is_slower_and_larger(tiny_teacher: Teacher) -> None:
    large = speed_of(tiny_teacher, Plan.full(4), SHORT, encoding=NONE)
    small = speed_of(tiny_teacher, Plan.parse("C3"), SHORT, encoding=NONE)
    assert large.decoder_memory > small.decoder_memory
    # 12 sub-layers against one: several times as long, far beyond what a busy machine adds
    assert large.decoding > small.decoding


def test_a_generation_beyond_the_positions_is_refused(tiny_teacher: Teacher) -> None:
    with pytest.raises(ConfigError, match="take 97 positions, the decoder has 96; shorten it"):
        speed_of(tiny_teacher, Plan.parse("C3"), Generation(50, 48), encoding=NONE)
