"""The walk over many plans against students that are built and run alone through Hugging Face."""

from __future__ import annotations

import itertools
import random
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import ConfigError, PlanError
from circuitsearch.core.plan import Plan
from circuitsearch.search.elastic import drawn
from circuitsearch.search.exhaustive import sweep
from circuitsearch.search.space import Space
from circuitsearch.search.units import Choices
from circuitsearch.students import build_student, fit_replacements
from circuitsearch.students.features import Features
from circuitsearch.students.plan_view import neuron_order
from circuitsearch.students.walk import Walk
from circuitsearch.teacher.decoders import continue_from, residual_decoder
from circuitsearch.teacher.loading import Teacher
from tests.student_fixtures import any_replacements


def limited(teacher: Teacher, choices: Choices | None, *limits: str) -> Space:
    specs = [
        LimitSpec(quantity, value) for quantity, value in zip(QUANTITIES, limits, strict=False)
    ]
    return Space(teacher.shape, Budget.resolve(specs, teacher.shape), choices)


QUANTITIES = ("parameters", "macs")


def alone(
    teacher: Teacher, features: Features, plan: Plan, questions: Sequence[int], **options: Any
) -> Tensor:
    """The oracle: the student, one question at a time, logits at all positions."""
    student = build_student(teacher, plan, **options)
    losses = []
    for index in questions:
        example = features.examples[index]
        ids = torch.tensor([example.ids])
        labels = ids[:, 1:].clone()
        labels[:, : example.prompt - 1] = -100
        with torch.no_grad():
            logits = student.decoder(
                input_ids=ids[:, :-1],
                encoder_hidden_states=features.states([example.page]),
                use_cache=False,
            ).logits
        losses.append(cross_entropy(logits[0], labels[0]).double())
    return torch.stack(losses)


def walked(walk: Walk, plans: Space | Sequence[Plan]) -> dict[Plan, Tensor]:
    """Values [questions] of each plan, in the order of the features."""
    listed = list(plans.enumerate()) if isinstance(plans, Space) else list(plans)
    found = {
        plan: torch.full((len(walk.features.examples),), torch.nan).double() for plan in listed
    }
    for questions in walk.chunks(listed):
        chunk = walk.chunk(questions, listed)
        met = [plan for plan, _ in sweep(plans, chunk.root, chunk.expand, chunk.leaf)]
        for plan, values in zip(met, chunk.values(), strict=True):
            found[plan][list(questions)] = values
    return found


SPACES: dict[str, tuple[Choices | None, tuple[str, ...]]] = {
    "whole": (None, ("30%", "60%")),
    "heads": (Choices(attention="heads"), ("5%",)),
    "widths": (Choices(widths=(8, 24)), ("14%",)),
    "counts and widths": (Choices(attention="counts", widths=(16,)), ("8%",)),
    "tokens": (Choices(replacements=("token",)), ("25%", "50%")),
}


@pytest.mark.parametrize(
    ("name", "megabytes"),
    [(name, 100) for name in SPACES] + [("whole", 0.4), ("heads", 1.0), ("tokens", 0.4)],
)
def test_losses_are_those_of_the_built_students(
    tiny_teacher: Teacher, tiny_features: Features, name: str, megabytes: float
) -> None:
    choices, limits = SPACES[name]
    space = limited(tiny_teacher, choices, *limits)
    assert 30 <= space.count() <= 20_000
    fitted = any_replacements(tiny_teacher.shape.decoder)
    walk = Walk(
        tiny_teacher.decoder, tiny_features, memory_bytes=megabytes * 1e6, replacements=fitted
    )
    found = walked(walk, space)
    assert list(found) == list(space.enumerate())
    everything = range(len(tiny_features.examples))
    chosen = random.Random(0).sample(list(found), 6)
    for plan in chosen:
        expected = alone(tiny_teacher, tiny_features, plan, everything, replacements=fitted)
        torch.testing.assert_close(found[plan], expected, atol=1e-4, rtol=0, msg=str(plan))
    assert len({float(found[plan].mean()) for plan in chosen}) == len(chosen)


def test_plans_from_anywhere_share_a_walk(tiny_teacher: Teacher, tiny_features: Features) -> None:
    """Not a space: parts of heads that overlap, widths of any size, skipped last self-attention."""
    texts = (
        "C0",
        "S0 C0[1] M0:7",
        "S0 C0[1] M0:9 S3",
        "S0 C0[1,3] M0:9 S3[2] C3 M3",
        "S0[0] S2 C2 M2",
        "S0[0] S2 C2 M2 S3[1-3]",
        "S1 S3",
        "C3[0,2] M3:1",
        "S0 C0 M0 S1 C1 M1 S2 C2 M2 S3 C3 M3",
        "",
    )
    plans = [Plan.parse(text) for text in texts]
    found = walked(Walk(tiny_teacher.decoder, tiny_features), plans)
    for plan in plans:
        expected = alone(tiny_teacher, tiny_features, plan, range(len(tiny_features.examples)))
        torch.testing.assert_close(found[plan], expected, atol=1e-4, rtol=0, msg=str(plan))


def test_replacements_are_those_of_the_built_students(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    view = tiny_teacher.decoder
    fitted = fit_replacements(view, tiny_features, view.sublayers)
    texts = (
        "S0=linear C0 M0=mean S1",
        "S0=linear C0 M0=mean",
        "S0=linear C0 M0=linear S3=mean C3=alone",
        "S0=linear C0 M0 S3=linear C3=alone M3",
        "C0=mean S1 C1=alone M1 S2",
        "S0 C0 M0 S1 C1",
        "C0=token M0 S1 C1",
        "C0=token C2 M2",
        "C0=token M0 S3 C3",
        "C0 M0 C1",
        "M0=token S1=mean C1",
        "M0=token S1 C1[0] C3=alone",
    )
    plans = [Plan.parse(text) for text in texts]
    found = walked(Walk(view, tiny_features, replacements=fitted), plans)
    for plan in plans:
        expected = alone(
            tiny_teacher,
            tiny_features,
            plan,
            range(len(tiny_features.examples)),
            replacements=fitted,
        )
        torch.testing.assert_close(found[plan], expected, atol=1e-4, rtol=0, msg=str(plan))
    with pytest.raises(ConfigError, match="nothing is fitted for S0=linear"):
        walked(Walk(view, tiny_features), plans)


def test_widths_follow_a_given_ranking(tiny_teacher: Teacher, tiny_features: Features) -> None:
    ffn = tiny_teacher.shape.decoder.ffn
    ranking = {SubLayer.parse("M1"): list(range(ffn))[::-1]}
    plans = [Plan.parse("C0 M1:5"), Plan.parse("C0 M1:20"), Plan.parse("C0 M1:20 M2:3")]
    found = walked(Walk(tiny_teacher.decoder, tiny_features, neurons=ranking), plans)
    everything = range(len(tiny_features.examples))
    for plan in plans:
        expected = alone(tiny_teacher, tiny_features, plan, everything, neurons=ranking)
        torch.testing.assert_close(found[plan], expected, atol=1e-4, rtol=0)
    unranked = alone(tiny_teacher, tiny_features, plans[0], everything)
    assert float((found[plans[0]] - unranked).abs().max()) > 1e-3
    assert neuron_order(tiny_teacher.decoder).keys() == {
        one for one in tiny_teacher.decoder.sublayers if one.kind is Kind.FEED
    }


def test_any_judge_of_tokens(tiny_teacher: Teacher, tiny_features: Features) -> None:
    def hits(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.argmax(dim=-1) == labels).float()

    plan = Plan.parse("S0 C0 M1 C3")
    found = walked(Walk(tiny_teacher.decoder, tiny_features, judge=hits), [plan])[plan]
    student = residual_decoder(build_student(tiny_teacher, plan))
    for index, value in enumerate(found.tolist()):
        read = tiny_features.read([index])
        memory = student.memory(read.states, read.rows)
        with torch.no_grad():
            x = continue_from(student, student.embed(read.batch.ids), memory)
            best = student.readout(x).argmax(dim=-1)
        scored = read.batch.labels != -100
        expected = (best[scored] == read.batch.labels[scored]).double().mean()
        assert value == pytest.approx(float(expected))


def test_chunks_hold_every_question_once_within_the_limit(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    plans = list(limited(tiny_teacher, None, "50%").enumerate())
    examples = tiny_features.examples
    sizes = []
    for megabytes in (0.001, 0.3, 1.0, 100.0):
        walk = Walk(tiny_teacher.decoder, tiny_features, memory_bytes=megabytes * 1e6)
        chunks = walk.chunks(plans)
        asked = sorted(question for chunk in chunks for question in chunk)
        assert asked == list(range(len(examples)))
        sizes.append(len(chunks))
        if megabytes >= 1.0:  # room for any page: none is cut
            pages = [{examples[question].page for question in chunk} for chunk in chunks]
            assert all(not one & other for one, other in itertools.combinations(pages, 2))
    assert sizes[0] == len(examples)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1


class Peak(TorchDispatchMode):
    """Most bytes of storages that operations made and that are alive at once."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._alive: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                place = storage.data_ptr()
                if place and place not in self._known and place not in self._alive:
                    self._alive[place] = storage.nbytes()
                    weakref.finalize(storage, self._alive.pop, place, None)
        self.most = max(self.most, sum(self._alive.values()))
        return made


@pytest.mark.parametrize(
    "choices",
    [
        None,
        Choices(attention="heads", widths=(8, 24)),
        Choices(attention="heads", replacements=("token",)),
    ],
)
def test_memory_of_a_walk_stays_within_its_formula(
    tiny_teacher: Teacher, tiny_features: Features, choices: Choices | None
) -> None:
    limit = 6e5
    space = limited(tiny_teacher, choices)
    plans = list(itertools.islice(space.enumerate(), 300))
    plans += [drawn(space, seed) for seed in range(100)]
    fitted = any_replacements(tiny_teacher.shape.decoder)
    walk = Walk(tiny_teacher.decoder, tiny_features, memory_bytes=limit, replacements=fitted)
    questions = max(walk.chunks(plans), key=len)
    assert 1 < len(questions) < len(tiny_features.examples)
    with Peak(tiny_teacher.model.parameters()) as peak:
        chunk = walk.chunk(questions, plans)
        assert len(list(sweep(plans, chunk.root, chunk.expand, chunk.leaf))) == len(set(plans))
        assert chunk.values().shape == (len(set(plans)), len(questions))
    assert 0.2 * limit < peak.most < limit


def test_a_plan_of_another_decoder_is_refused(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    walk = Walk(tiny_teacher.decoder, tiny_features)
    with pytest.raises(PlanError, match="the decoder has 4 layers"):
        walk.chunk([0], [Plan.parse("C9")])
