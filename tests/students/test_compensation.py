"""Folding means into biases equals giving removed parts their means, for every plan."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import ConfigError
from circuitsearch.core.plan import Plan
from circuitsearch.core.shapes import DecoderShape
from circuitsearch.discovery.ablation import Means, unit_means
from circuitsearch.discovery.sample import make_sample
from circuitsearch.students import build_student, kept_units
from circuitsearch.students.replacements import Replacements
from circuitsearch.teacher.loading import Teacher
from tests.student_fixtures import any_replacements, plans
from tests.tiny import tiny_pages

IDS = torch.randint(4, 100, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def states(tiny_teacher: Teacher) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return tiny_teacher.encode(torch.rand(2, 3, 32, 48, generator=generator) * 2 - 1)


@pytest.fixture(scope="module")
def means(tiny_teacher: Teacher) -> Means:
    """Averages of real pages' units."""
    return unit_means(tiny_teacher.decoder, make_sample(tiny_teacher, tiny_pages(4)))


def mean_ablated(
    teacher: Teacher, plan: Plan, means: Means, fitted: Replacements, states: Tensor
) -> Tensor:
    """The oracle: the teacher's logits with removed units and sub-layers at their means."""
    view = teacher.decoder
    memory = view.memory(states)
    units = kept_units(teacher.model.decoder, plan, view.shape)
    x = view.embed(IDS)
    for sublayer in view.sublayers:
        keep = plan.keep(sublayer)
        name = None if keep is None else keep.replacement
        if name == "token":
            x = view.embed(fitted.tokens[sublayer][IDS])
        elif name == "mean":
            x = x + fitted.means[sublayer]
        elif name == "linear":
            x = x + fitted.maps[sublayer](view.parts(sublayer).norm(x))
        elif sublayer in units:
            carried = means.units[sublayer].expand_as(view.units(sublayer, x, memory)).clone()
            kept = list(units[sublayer])
            carried[:, :, kept] = view.units(sublayer, x, memory)[:, :, kept]
            written = view.project(sublayer, carried)
            x = written if name == "alone" else x + written
        else:
            x = x + view.project(
                sublayer, means.units[sublayer].expand(2, 7, *_units(view, sublayer))
            )
    return view.readout(x)


def _units(view: object, sublayer: SubLayer) -> tuple[int, ...]:
    shape: DecoderShape = view.shape
    if sublayer.kind is Kind.FEED:
        return (shape.ffn,)
    return (shape.heads, shape.head_dim)


def _compare(teacher: Teacher, plan: Plan, means: Means, states: Tensor) -> None:
    fitted = any_replacements(teacher.shape.decoder)
    student = build_student(teacher, plan, replacements=fitted, compensate=means)
    plain = build_student(teacher, plan, replacements=fitted)
    with torch.no_grad():
        expected = mean_ablated(teacher, plan, means, fitted, states)
        logits = student.decoder(
            input_ids=IDS, encoder_hidden_states=states, use_cache=False
        ).logits
    # float32, sums in another order; an unfolded mean is off by more than 1e-2
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=2e-5)
    assert {n: p.shape for n, p in student.decoder.named_parameters()} == {
        n: p.shape for n, p in plain.decoder.named_parameters()
    }


@pytest.mark.parametrize(
    "text",
    [
        "S0 C0 M0 S1 C1 M1 S2 C2 M2 S3 C3 M3",
        "M0 C2 S3 C3",  # removed in front of everything, between, behind everything
        "S0[1] C0[0,2] M0:9 C3[3]",
        "S1=linear M1=mean C2[1] C3=alone",  # stand-ins take what was removed behind them
        "C1=token C3",  # what stood in front of the table is in the table
        "",
    ],
)
def test_equals_mean_ablation(
    tiny_teacher: Teacher, means: Means, states: Tensor, text: str
) -> None:
    _compare(tiny_teacher, Plan.parse(text), means, states)


def test_equals_mean_ablation_for_any_plan(
    tiny_teacher: Teacher, means: Means, states: Tensor
) -> None:
    @settings(max_examples=20)
    @given(plan=plans(tiny_teacher.shape.decoder))
    def holds(plan: Plan) -> None:
        _compare(tiny_teacher, plan, means, states)

    holds()


def test_it_changes_the_student_and_leaves_the_teacher(
    tiny_teacher: Teacher, means: Means, states: Tensor
) -> None:
    before = {name: t.clone() for name, t in tiny_teacher.model.state_dict().items()}
    plan = Plan.parse("S0 C3[1]")
    made = [build_student(tiny_teacher, plan, compensate=one) for one in (None, means)]
    with torch.no_grad():
        plain, folded = (
            model.decoder(input_ids=IDS, encoder_hidden_states=states, use_cache=False).logits
            for model in made
        )
    assert float((plain - folded).abs().max()) > 1e-2
    for name, tensor in tiny_teacher.model.state_dict().items():
        assert torch.equal(before[name], tensor), name


def test_means_that_are_no_constants_are_refused(tiny_teacher: Teacher, means: Means) -> None:
    sample = make_sample(tiny_teacher, tiny_pages(2))
    by_position = unit_means(tiny_teacher.decoder, sample, by_position=True)
    with pytest.raises(ConfigError, match="by position"):
        build_student(tiny_teacher, Plan.parse("C2"), compensate=by_position)
    lacking = Means({}, means.embedding, means.states)
    with pytest.raises(ConfigError, match=r"12 problems"):
        build_student(tiny_teacher, Plan.parse("C2"), compensate=lacking)
