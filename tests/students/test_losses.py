"""Losses: parity with torch.distributions, zero at equality, golden numbers, bounds, scaling."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.students.features.targets import TeacherRows
from circuitsearch.students.losses import (
    LOSSES,
    Reads,
    Targets,
    answer_rows,
    attention_kl,
    cross_entropy,
    forward_kl,
    hidden_cosine,
    hidden_mse,
    jensen_shannon,
    reverse_kl,
)

TEACHER_LOSSES = sorted(name for name, row in LOSSES.items() if row.reads is Reads.LOGITS)
OF_LOGITS = ["cross_entropy", *TEACHER_LOSSES]


def _draw(seed: int, rows: int = 7, vocabulary: int = 11, scale: float = 3.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    student = scale * torch.randn(rows, vocabulary, generator=generator)
    teacher = scale * torch.randn(rows, vocabulary, generator=generator)
    labels = torch.randint(0, vocabulary, (rows,), generator=generator)
    return student, teacher, labels


def _targets(teacher: Tensor, temperature: float = 1.0, top: int | None = None) -> Targets:
    labels = torch.zeros(len(teacher), dtype=torch.long)
    return Targets(labels, TeacherRows.of(teacher, top, (temperature,)), temperature)


@given(seed=st.integers(0, 999), temperature=st.sampled_from([0.5, 1.0, 2.0, 7.0]))
@settings(max_examples=25, deadline=None)
def test_parity_with_torch_distributions(seed: int, temperature: float) -> None:
    student, teacher, labels = (x.double() if x.is_floating_point() else x for x in _draw(seed))
    p = Categorical(logits=teacher / temperature)
    q = Categorical(logits=student / temperature)
    m = Categorical(probs=(p.probs + q.probs) / 2)
    square = temperature**2
    targets = _targets(teacher, temperature)
    # the losses compute in float32, the reference in float64
    close = {"atol": 2e-4 * square, "rtol": 1e-4, "check_dtype": False}
    torch.testing.assert_close(
        forward_kl(student, targets), square * kl_divergence(p, q).mean(), **close
    )
    torch.testing.assert_close(
        reverse_kl(student, targets), square * kl_divergence(q, p).mean(), **close
    )
    js = 0.5 * (kl_divergence(p, m) + kl_divergence(q, m)).mean()
    torch.testing.assert_close(jensen_shannon(student, targets), square * js, **close)
    nll = -Categorical(logits=student).log_prob(labels).mean()
    torch.testing.assert_close(cross_entropy(student, Targets(labels)), nll, **close)


@pytest.mark.parametrize("name", TEACHER_LOSSES)
@pytest.mark.parametrize("top", [None, 4])
def test_zero_at_equality_and_positive_elsewhere(name: str, top: int | None) -> None:
    student, teacher, _ = _draw(1)
    targets = _targets(teacher, 2.0, top)
    # shifting logits changes no distribution; float32 leaves 1e-6 of rounding
    assert abs(float(LOSSES[name](teacher + 5.0, targets))) < 1e-5
    assert float(LOSSES[name](student, targets)) > 1e-2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # p = (3/4, 1/4), q = (1/2, 1/2), m = (5/8, 3/8), T = 1
        ("cross_entropy", math.log(2)),
        ("forward_kl", 0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
        ("reverse_kl", 0.5 * math.log(2 / 3) + 0.5 * math.log(2)),
        (
            "jensen_shannon",
            0.5 * (0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3))
            + 0.5 * (0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)),
        ),
    ],
)
def test_golden_numbers_by_hand(name: str, expected: float) -> None:
    teacher = torch.tensor([[math.log(3.0), 0.0]]).expand(5, 2)
    student = torch.zeros(5, 2)
    labels = torch.zeros(5, dtype=torch.long)
    got = LOSSES[name](student, Targets(labels, TeacherRows(teacher), 1.0))
    assert float(got) == pytest.approx(expected, rel=1e-6)  # float32


def test_a_row_counts_once_however_many_there_are() -> None:
    """Token mean: repeating every row changes nothing, and neither does the vocabulary's size."""
    student, teacher, labels = _draw(3)
    for name in OF_LOGITS:
        loss = LOSSES[name]
        once = loss(student, Targets(labels, TeacherRows(teacher), 2.0))
        twice = loss(
            student.repeat(2, 1), Targets(labels.repeat(2), TeacherRows(teacher.repeat(2, 1)), 2.0)
        )
        torch.testing.assert_close(once, twice, msg=name)
        impossible = torch.full((7, 50), -1e4)
        wide = loss(
            torch.cat([student, impossible], dim=1),
            Targets(labels, TeacherRows(torch.cat([teacher, impossible], dim=1)), 2.0),
        )
        torch.testing.assert_close(once, wide, msg=name)


@given(seed=st.integers(0, 999), scale=st.sampled_from([0.1, 3.0, 40.0]))
@settings(max_examples=25, deadline=None)
def test_jensen_shannon_is_bounded_and_symmetric(seed: int, scale: float) -> None:
    student, teacher, _ = _draw(seed, scale=scale)
    value = float(jensen_shannon(student, _targets(teacher)))
    mirrored = float(jensen_shannon(teacher, _targets(student)))
    assert -1e-6 <= value <= math.log(2) + 1e-6
    assert value == pytest.approx(mirrored, abs=1e-5)


def test_disjoint_distributions_reach_the_bound() -> None:
    """A swapped KL inside Jensen-Shannon gives 2.76 here instead of at most 0.69."""
    student = torch.tensor([[math.log(0.999), math.log(0.001)]])
    value = float(jensen_shannon(student, _targets(student.flip(1))))
    assert value <= math.log(2)
    assert value > 0.68


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradient_of_forward_kl_is_t_times_q_minus_p(temperature: float) -> None:
    student, teacher, _ = _draw(5)
    student.requires_grad_(True)
    forward_kl(student, _targets(teacher, temperature)).backward()
    p = (teacher / temperature).softmax(-1)
    q = (student.detach() / temperature).softmax(-1)
    # d(T^2 KL)/ds = T (q - p), averaged over rows
    torch.testing.assert_close(student.grad, temperature * (q - p) / 7, atol=1e-6, rtol=1e-4)


@given(seed=st.integers(0, 999), top=st.integers(1, 10), name=st.sampled_from(TEACHER_LOSSES))
@settings(max_examples=40, deadline=None)
def test_best_tokens_and_tail_bound_the_full_loss(seed: int, top: int, name: str) -> None:
    student, teacher, _ = _draw(seed)
    full = float(LOSSES[name](student, _targets(teacher, 2.0)))
    grouped = float(LOSSES[name](student, _targets(teacher, 2.0, top)))
    assert grouped <= full + 1e-4  # float32
    if top == 10:  # a tail of one token hides nothing
        assert grouped == pytest.approx(full, abs=1e-4)


def test_tail_holds_the_probability_of_all_other_tokens() -> None:
    student, teacher, _ = _draw(6)
    rows = TeacherRows.of(teacher, 3, (1.0, 2.0))
    for temperature in (1.0, 2.0):
        p = (teacher / temperature).softmax(-1)
        best = p.gather(1, rows.ids)
        grouped = rows.log_probabilities(temperature).exp()
        torch.testing.assert_close(grouped[:, :3], best)
        torch.testing.assert_close(grouped[:, 3], 1 - best.sum(1), atol=1e-6, rtol=1e-4)
        q = (student / temperature).softmax(-1).gather(1, rows.ids)
        ours = rows.log_probabilities_of(student, temperature).exp()
        torch.testing.assert_close(ours[:, 3], 1 - q.sum(1), atol=1e-6, rtol=1e-4)


def test_a_temperature_without_tail_is_refused() -> None:
    _, teacher, _ = _draw(6)
    rows = TeacherRows.of(teacher, 3, (1.0, 2.0))
    with pytest.raises(ConfigError, match=r"temperature: got 4, .* allow 1, 2"):
        rows.log_probabilities(4.0)
    TeacherRows.of(teacher).log_probabilities(4.0)  # the whole vocabulary allows every one


def test_losses_that_compare_need_the_teacher() -> None:
    student, _, labels = _draw(0)
    with pytest.raises(DataError, match="labels only"):
        forward_kl(student, Targets(labels))


def test_answer_rows_leave_out_prompt_and_padding() -> None:
    logits = torch.arange(24.0).view(2, 3, 4)
    labels = torch.tensor([[-100, 1, 2], [3, -100, -100]])
    rows, kept = answer_rows(logits, labels)
    assert kept.tolist() == [1, 2, 3]
    assert torch.equal(rows, torch.stack([logits[0, 1], logits[0, 2], logits[1, 0]]))


def test_hidden_losses_by_hand() -> None:
    student = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    teacher = torch.tensor([[4.0, 3.0], [-2.0, 0.0]])
    # squares 1 + 1 and 9 + 0, over two tokens of two numbers each
    assert float(hidden_mse(student, teacher)) == pytest.approx(11 / 4, rel=1e-6)
    # cosines 24 / 25 and -1
    assert float(hidden_cosine(student, teacher)) == pytest.approx(1 - (24 / 25 - 1) / 2, rel=1e-6)
    assert float(hidden_mse(teacher, teacher)) == 0.0
    assert abs(float(hidden_cosine(teacher, teacher))) < 1e-6  # float32
    assert float(hidden_cosine(student, torch.zeros(2, 2))) == 1.0


@given(seed=st.integers(0, 999), factor=st.sampled_from([1e-3, 0.5, 30.0]))
@settings(max_examples=25, deadline=None)
def test_cosine_is_bounded_and_blind_to_length(seed: int, factor: float) -> None:
    student, teacher, _ = _draw(seed)
    value = float(hidden_cosine(student, teacher))
    assert -1e-6 <= value <= 2 + 1e-6
    assert float(hidden_cosine(factor * student, teacher)) == pytest.approx(value, abs=1e-5)
    assert float(hidden_cosine(-teacher, teacher)) == pytest.approx(2.0, abs=1e-6)


def _weights(seed: int, visible: int = 5) -> tuple[Tensor, Tensor]:
    """Log-weights [3, 2, 5] of student and teacher; only the first keys are seen."""
    generator = torch.Generator().manual_seed(seed)
    scores = 3.0 * torch.randn(2, 3, 2, 5, generator=generator)
    scores[..., visible:] = -torch.inf
    student, teacher = scores.log_softmax(dim=-1)
    return student, teacher


@given(seed=st.integers(0, 999), visible=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_attention_kl_is_the_mean_of_torch_distributions(seed: int, visible: int) -> None:
    student, teacher = _weights(seed, visible)
    pairs = [
        (Categorical(probs=p), Categorical(probs=q))
        for p, q in zip(
            teacher.double().exp()[..., :visible].flatten(0, 1),
            student.double().exp()[..., :visible].flatten(0, 1),
            strict=True,
        )
    ]
    expected = torch.stack([kl_divergence(p, q) for p, q in pairs]).mean()
    # in float64, because torch.distributions clamps probabilities at the type's eps
    torch.testing.assert_close(
        attention_kl(student, teacher), expected.float(), atol=1e-5, rtol=1e-4
    )
    assert float(attention_kl(teacher, teacher)) == 0.0


def test_attention_kl_by_hand_and_with_keys_that_nobody_sees() -> None:
    teacher = torch.tensor([[[0.75, 0.25, 0.0]], [[1.0, 0.0, 0.0]]]).log()
    student = torch.tensor([[[0.5, 0.5, 0.0]], [[0.5, 0.5, 0.0]]]).log().requires_grad_(True)
    loss = attention_kl(student, teacher)
    first = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert loss.item() == pytest.approx((first + math.log(2)) / 2, rel=1e-6)
    loss.backward()
    # d KL / d log q = -p, and nothing that is not a number where a key is not seen
    torch.testing.assert_close(student.grad, -teacher.exp() / 2)


def test_every_loss_ignores_how_often_a_token_is_there() -> None:
    for name in sorted(set(LOSSES) - set(OF_LOGITS)):
        student, teacher = _weights(4) if "attention" in name else _draw(4)[:2]
        twice = [torch.cat([x, x]) for x in (student, teacher)]
        torch.testing.assert_close(LOSSES[name](*twice), LOSSES[name](student, teacher), msg=name)
