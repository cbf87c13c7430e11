"""The linear model of a clean run against the Hugging Face modules, and chains over its steps."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.discovery.paths.bounds import norm_bounds
from circuitsearch.discovery.paths.chains import beginnings, chain_scores, endings
from circuitsearch.discovery.paths.linear import LinearSelf
from circuitsearch.teacher.decoders import Affine, Norm, Parts, write
from circuitsearch.teacher.decoders.attention import causal_attention
from tests.discovery.literal import Exact
from tests.discovery.path_literal import CLOSE, GATED, Literal, first_run


@pytest.mark.parametrize("feed", ["gate", "jacobian"])
def test_all_paths_add_up_to_the_clean_run(exact: Exact, feed: str) -> None:
    """256 from the embedding, 170 from the encoder, 425 from constants: the clean stream."""
    batch, states = exact.sample.batches[0]
    run = first_run(exact, feed)
    sources = [(None, run.embedding)]
    sources += [(entry.sublayer, entry.enter(states[batch.pages])) for entry in run.entries]
    with torch.no_grad():
        by_source = [[end for _, end in beginnings(x, run.chain(at))] for at, x in sources]
        constants = [
            [end for _, end in beginnings(x, run.chain(at))] for at, x in run.constants().items()
        ]
        stream = sum((sum(ends) for ends in by_source + constants), torch.zeros(()))
        logits = exact.decoder.unembed(
            exact.decoder.final_norm(stream, exact.decoder.final_norm.scale(run.final))
        )
        clean = exact.model(
            input_ids=batch.ids, encoder_hidden_states=states[batch.pages], use_cache=False
        ).logits
    assert [len(ends) for ends in by_source] == [256, 128, 32, 8, 2]
    assert sum(len(ends) for ends in constants) == 425
    close = GATED if feed == "gate" else CLOSE
    torch.testing.assert_close(stream, run.final, **close)
    # padded rows of the batch are as good as any: causal attention lets no answer see them
    torch.testing.assert_close(logits, clean, **close)


def test_the_identity_needs_the_clean_slopes(exact: Exact) -> None:
    """Without the activation the linear model is another one; the check above can fail."""
    run = first_run(exact, "linear")
    step = run.steps[1]
    with torch.no_grad():
        wrong = step.through(step.clean) + step.constant()
        _, states = exact.sample.batches[0]
        right = write(exact.decoder, step.sublayer, step.clean, exact.decoder.memory(states))
    assert float((wrong - right).abs().max()) > 0.1


@pytest.mark.parametrize("feed", ["gate", "jacobian"])
def test_steps_equal_the_modules(exact: Exact, feed: str) -> None:
    batch, states = exact.sample.batches[0]
    run = first_run(exact, feed)
    row = 1
    literal = Literal(exact, row, feed)
    length = literal.ids.shape[1]
    torch.manual_seed(0)
    x = torch.randn(3, *run.embedding.shape, dtype=torch.float64)
    pages = torch.randn(len(batch.ids), *states.shape[1:], dtype=torch.float64)
    with torch.no_grad():
        for step in run.steps:
            name = step.sublayer.name
            for stacked in range(3):
                expected = literal.through(name, x[stacked, row, :length])
                found = step.through(x)[stacked, row, :length]
                torch.testing.assert_close(found, expected, **CLOSE)
            bias = write(exact.decoder, step.sublayer, step.clean, exact.decoder.memory(states))
            rest = bias - step.through(step.clean)
            torch.testing.assert_close(step.constant(), rest, **GATED)
        for entry in run.entries:
            expected = literal.through(entry.sublayer.name, pages[row])
            torch.testing.assert_close(entry.enter(pages)[row, :length], expected, **CLOSE)


@pytest.mark.parametrize("feed", ["linear", "gate", "jacobian"])
def test_pulling_back_is_the_transpose(exact: Exact, feed: str) -> None:
    torch.manual_seed(1)
    run = first_run(exact, feed)
    x, g = torch.randn(2, 3, *run.embedding.shape, dtype=torch.float64)
    with torch.no_grad():
        for step in run.steps:
            # <T x, g> = <x, T' g> for each stacked stream alone
            left = (step.through(x) * g).flatten(1).sum(dim=1)
            right = (x * step.pull_back(g)).flatten(1).sum(dim=1)
            torch.testing.assert_close(left, right, **CLOSE)


def test_grouped_turned_and_uncentred_attention() -> None:
    """What mBART does not have: shared key-value heads, rotation, RMSNorm, no biases."""
    torch.manual_seed(2)
    draw = partial(torch.randn, dtype=torch.float64)
    norm = Norm(draw(12), None, 1e-5, centred=False)
    angles = torch.arange(5, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.1, 0.01])

    def rotate(x: Tensor) -> Tensor:
        half = x.roll(3, dims=-1) * torch.tensor([-1.0, -1, -1, 1, 1, 1], dtype=torch.float64)
        return x * angles.cos().repeat(1, 2) + half * angles.sin().repeat(1, 2)

    query, key, value = Affine(draw(24, 12)), Affine(draw(12, 12)), Affine(draw(12, 12))
    parts = Parts(norm, Affine(draw(12, 24)), query, key, value, rotate, 4, 2, 0.4)
    clean, x, g = draw(2, 5, 12), draw(2, 5, 12), draw(2, 5, 12)

    def attend(read: Tensor) -> Tensor:
        """The sub-layer's write of another value stream; queries and keys stay clean."""
        turned = [rotate(parts.split(p(norm(clean)))) for p in (query, key)]
        heads = causal_attention(*turned, parts.split(value(read)), 0.4)
        return parts.project(heads.transpose(1, 2).flatten(-2))

    step = LinearSelf(SubLayer.parse("S0"), parts, clean, parts.causal_weights(norm(clean)))
    torch.testing.assert_close(step.through(clean), attend(norm(clean)), **CLOSE)
    scaled = x / (clean.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    torch.testing.assert_close(step.through(x), attend(scaled), **CLOSE)
    torch.testing.assert_close((step.through(x) * g).sum(), (x * step.pull_back(g)).sum(), **CLOSE)
    torch.testing.assert_close(step.constant(), torch.zeros_like(clean))
    assert bool((step.pull_back(g).norm(dim=-1) <= norm_bounds(step, g.norm(dim=-1))).all())


def test_the_total_is_the_slope_of_the_frozen_run(exact: Exact) -> None:
    """A small change of the encoder states: scores, finite difference with A, LN and a(.) fixed."""
    run = first_run(exact, "jacobian")
    torch.manual_seed(3)
    change = torch.randn(len(run.embedding), *exact.sample.states.shape[1:], dtype=torch.float64)
    direction = torch.randn_like(run.embedding)
    with torch.no_grad():
        x = torch.zeros_like(run.embedding)
        for part in sorted([*run.steps, *run.entries], key=lambda part: part.sublayer):
            cross = part.sublayer.kind is Kind.CROSS
            x = x + (part.enter(change) if cross else part.through(x))  # type: ignore[union-attr]
        ends = endings(direction, run.steps[-3:])
        total = sum(
            chain_scores(entry.enter(change), run.chain(entry.sublayer), ends)[0].sum(dim=0)
            for entry in run.entries
        )
    torch.testing.assert_close(total, (x * direction).flatten(1).sum(dim=1), **CLOSE)


class Counting:
    """A step on numbers that counts its applications and the tensors alive at once."""

    def __init__(self, factor: float, log: list[str]) -> None:
        self.factor, self.log = factor, log

    def through(self, x: Tensor) -> Tensor:
        self.log.append("through")
        return self.factor * x

    def pull_back(self, x: Tensor) -> Tensor:
        self.log.extend(["pull back"] * len(x))
        return self.factor * x


@pytest.mark.parametrize("tabulated", range(7))
def test_shared_beginnings_and_endings(tabulated: int) -> None:
    """Scores by bits, and 2^(k-h) - 1 + 2^h - 1 applications instead of k * 2^(k-1)."""
    log: list[str] = []
    factors = [2.0, 3.0, 5.0, 7.0, 11.0]
    steps: Any = [Counting(factor, log) for factor in factors]
    ends = endings(torch.ones(1, 1, 1), steps[max(0, 5 - tabulated) :])
    scores, applications = chain_scores(torch.ones(1, 1, 1), steps, ends)
    expected = [math.prod(f for i, f in enumerate(factors) if n >> i & 1) for n in range(32)]
    assert scores.flatten().tolist() == expected  # products of small integers are exact
    used = min(tabulated, 5)
    assert log.count("through") == applications == 2 ** (5 - used) - 1
    assert log.count("pull back") == 2**used - 1
    # the same table serves chains that begin later
    for begin in range(5):
        later, _ = chain_scores(torch.ones(1, 1, 1), steps[begin:], ends)
        expected = [
            math.prod(f for i, f in enumerate(factors[begin:]) if n >> i & 1)
            for n in range(1 << (5 - begin))
        ]
        assert later.flatten().tolist() == expected


def test_beginnings_hold_one_tensor_per_step() -> None:
    alive = most = 0

    class Held:
        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    class Step:
        def through(self, x: Held) -> Held:
            return Held()

    steps: Any = [Step() for _ in range(8)]
    seen = 0
    source: Any = Held()
    for _index, _end in beginnings(source, steps):
        seen += 1
    assert seen == 256
    assert most <= 8 + 2  # source, one per step, and the one just handed out
