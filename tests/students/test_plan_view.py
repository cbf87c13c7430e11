"""A plan inside a whole decoder computes what its student computes; gradients reach the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import ConfigError
from circuitsearch.core.plan import Plan
from circuitsearch.core.shapes import DecoderShape
from circuitsearch.students import build_student
from circuitsearch.students.plan_view import PlanView, sliced
from circuitsearch.teacher.decoders import Memory, residual_decoder, run, write
from circuitsearch.teacher.loading import Teacher
from tests.discovery.small_decoders import small_llama
from tests.student_fixtures import any_replacements, plans

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


@given(plan=plans(SHAPE), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_equals_the_built_student(tiny_teacher: Teacher, plan: Plan, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, 24, 32, generator=generator)
    ids = torch.randint(0, 106, (3, 7), generator=generator)
    rows = torch.tensor([1, 0, 1])
    view = PlanView(tiny_teacher.decoder, plan, replacements=FITTED)
    student = build_student(tiny_teacher, plan, replacements=FITTED)
    with torch.no_grad():
        got = run(view, ids, view.memory(states, rows))
        expected = student.decoder(
            input_ids=ids, encoder_hidden_states=states[rows], use_cache=False
        ).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    own = residual_decoder(student)
    assert (view.sublayers, view.alone) == (own.sublayers, own.alone)
    assert view.memory(states).keys_values.keys() == own.memory(states).keys_values.keys()


def test_gradients_reach_what_is_kept_and_nothing_else(tiny_teacher: Teacher) -> None:
    whole = build_student(tiny_teacher, Plan.full(4)).decoder
    plan = Plan.parse("S1[1,3] C2 M2:5")
    view = PlanView(residual_decoder(whole), plan)
    states = torch.randn(1, 24, 32, generator=torch.Generator().manual_seed(0))
    run(view, torch.tensor([[99, 7, 8, 9]]), view.memory(states)).square().sum().backward()
    touched = {name for name, p in whole.named_parameters() if p.grad is not None}
    layers = {name.split(".")[3] for name in touched if ".layers." in name}
    assert layers == {"1", "2"}
    heads = whole.model.decoder.layers[1].self_attn.v_proj.weight.grad
    rows = heads.abs().sum(dim=1).view(4, 8).amax(dim=1) > 0
    assert rows.tolist() == [False, True, False, True]
    neurons = whole.model.decoder.layers[2].fc1.weight.grad.abs().sum(dim=1) > 0
    assert int(neurons.sum()) == 5


def test_sliced_heads_with_grouped_queries_are_those_heads() -> None:
    """Each kept head brings its group's keys and values: the write is that of the other zeroed."""
    view = residual_decoder(small_llama())
    sublayer = next(one for one in view.sublayers if one.kind is Kind.SELF)
    parts = view.parts(sublayer)
    assert parts.groups < parts.heads
    ids = torch.tensor([[3, 5, 7, 9]])
    memory = Memory(torch.empty(0), {}, None, None)
    kept = [0, parts.heads - 1]
    with torch.no_grad():
        units = view.units(sublayer, view.embed(ids), memory)
        dropped = [head for head in range(parts.heads) if head not in kept]
        units[:, :, dropped] = 0.0
        expected = view.project(sublayer, units)
        narrow = PlanView(view, Plan.of([f"{sublayer}[{','.join(map(str, kept))}]"]))
        got = write(narrow, sublayer, view.embed(ids), memory)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    assert sliced(parts, kept).heads == sliced(parts, kept).groups == 2


def test_a_student_is_no_whole_decoder(tiny_teacher: Teacher) -> None:
    student = residual_decoder(build_student(tiny_teacher, Plan.parse("S0 C0")))
    with pytest.raises(ConfigError, match="the decoder has no C1, M2"):
        PlanView(student, Plan.parse("C0 C1 M2"))
    with pytest.raises(ConfigError, match="nothing is fitted for M2=mean"):
        PlanView(tiny_teacher.decoder, Plan.parse("C0 M2=mean"))
    assert SubLayer.parse("C0") in PlanView(student, Plan.parse("C0")).sublayers
