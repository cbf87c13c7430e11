"""Properties of every student: it is the ablated teacher and costs what is accounted."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitsearch.core.cost import cost
from circuitsearch.core.shapes import DecoderShape
from circuitsearch.students import build_student, kept_units, plan_of
from circuitsearch.teacher.decoders import residual_decoder, run
from circuitsearch.teacher.loading import Teacher
from tests.student_fixtures import ablated_teacher, any_replacements, plans

# The decoder of tests/tiny.py; strategies are built before any fixture exists.
SHAPE = DecoderShape(
    layers=4,
    d_model=32,
    heads=4,
    head_dim=8,
    ffn=64,
    vocabulary=106,
    encoder_width=32,
    positions=98,
)
FITTED = any_replacements(SHAPE)


def test_the_strategy_draws_for_the_tiny_teacher(tiny_teacher: Teacher) -> None:
    assert tiny_teacher.shape.decoder == SHAPE


@given(plan=plans(SHAPE), seed=st.integers(0, 99), tokens=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_student_is_the_ablated_teacher(tiny_teacher: Teacher, plan, seed, tokens) -> None:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, 24, 32, generator=generator)
    ids = torch.randint(0, 106, (2, tokens), generator=generator)
    student = build_student(tiny_teacher, plan, replacements=FITTED)
    view, own = tiny_teacher.decoder, residual_decoder(student)
    units = kept_units(tiny_teacher.model.decoder, plan, SHAPE)
    with torch.no_grad():
        expected = ablated_teacher(view, plan, units, ids, view.memory(states), FITTED)
        got = student.decoder(input_ids=ids, encoder_hidden_states=states, use_cache=False).logits
        viewed = run(own, ids, own.memory(states))
    # float32: narrower matrices sum in another order than matrices padded with zeros
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(viewed, got, atol=1e-5, rtol=1e-5)
    # a replaced beginning is part of the student's embedding
    assert own.sublayers == tuple(one for one, keep in plan.kept if keep.replacement != "token")


@given(plan=plans(SHAPE))
@settings(max_examples=40, deadline=None)
def test_parameters_are_exactly_the_cached_accounting(tiny_teacher: Teacher, plan) -> None:
    student = build_student(tiny_teacher, plan, replacements=FITTED)
    accounted = cost(plan, tiny_teacher.shape, "cached")
    layers = student.decoder.model.decoder.layers
    assert sum(p.numel() for p in layers.parameters()) == accounted.scopes["decoder"].parameters
    # `parameters` names the tied matrix once
    decoder = sum(p.numel() for p in student.decoder.parameters())
    assert decoder == accounted.scopes["decoder+embeddings"].parameters
    total = sum(p.numel() for p in student.parameters())
    assert total == accounted.scopes["total"].parameters
    assert plan_of(student) == plan


@given(plan=plans(SHAPE), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_greedy_text_does_not_depend_on_the_cache(tiny_teacher: Teacher, plan, seed) -> None:
    student = build_student(tiny_teacher, plan, replacements=FITTED)
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(1, 3, 32, 48, generator=generator) * 2 - 1
    prompt = torch.tensor([tiny_teacher.tokens.prompt_ids(f"Q{seed}?")])
    with_cache, without = (
        student.generate(
            pixels, decoder_input_ids=prompt, use_cache=cached, max_new_tokens=12, do_sample=False
        )
        for cached in (True, False)
    )
    assert torch.equal(with_cache, without)
