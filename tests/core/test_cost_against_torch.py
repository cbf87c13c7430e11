"""The analytic costs against a real decoder: torch's flop counter and sum(numel)."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import MBartConfig, MBartForCausalLM

from circuitsearch.core.components import DecoderShape, EncoderShape, TeacherShape
from circuitsearch.core.cost import Generation, cost, unembedding_macs
from circuitsearch.core.plan import Plan
from circuitsearch.students.modeling import CircuitMBartConfig, CircuitMBartForCausalLM

SHAPE = TeacherShape(
    name="tiny",
    decoder=DecoderShape(
        layers=2,
        d_model=24,
        heads=3,
        head_dim=8,
        ffn=40,
        vocabulary=31,
        encoder_width=24,
        positions=18,
    ),
    encoder=EncoderShape(parameters=0, macs=0, tokens=11, width=24),
)


@pytest.fixture
def decoder() -> MBartForCausalLM:
    """A tiny eager mBART decoder of SHAPE; eager, because fused CPU attention counts as 0."""
    config = MBartConfig(
        vocab_size=31,
        d_model=24,
        decoder_layers=2,
        decoder_attention_heads=3,
        decoder_ffn_dim=40,
        max_position_embeddings=16,  # mBART adds its offset of 2: 18 rows
        is_decoder=True,
        add_cross_attention=True,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    return MBartForCausalLM(config).eval()


def slice_heads(attention: nn.Module, heads: list[int]) -> None:
    """Keep some heads of an mBART attention by slicing its four projections."""
    rows = torch.cat([torch.arange(8 * head, 8 * head + 8) for head in heads])
    for name in ("q_proj", "k_proj", "v_proj"):
        old = getattr(attention, name)
        new = nn.Linear(old.in_features, len(rows))
        new.weight.data, new.bias.data = old.weight.data[rows], old.bias.data[rows]
        setattr(attention, name, new)
    new = nn.Linear(len(rows), 24)
    new.weight.data, new.bias.data = (
        attention.out_proj.weight.data[:, rows],
        attention.out_proj.bias.data,
    )
    attention.out_proj = new


@pytest.fixture
def narrow(decoder: MBartForCausalLM) -> MBartForCausalLM:
    """The same decoder under the plan NARROW."""
    first, second = decoder.model.decoder.layers
    slice_heads(first.self_attn, [0, 2])
    slice_heads(second.encoder_attn, [1])
    first.fc1, first.fc2 = nn.Linear(24, 7), nn.Linear(7, 24)
    return decoder


NARROW = Plan.parse("S0[0,2] C0 M0:7 S1 C1[1] M1")


def flops(run: object) -> int:
    """FLOPs that torch counts while `run` is called."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()  # type: ignore[operator]
    return counter.get_total_flops()


def pages() -> torch.Tensor:
    """Encoder states of one page."""
    return torch.zeros(1, 11, 24)


def test_one_teacher_forced_pass_costs_two_flops_per_mac(decoder: MBartForCausalLM) -> None:
    ids = torch.zeros(1, 9, dtype=torch.long)
    counted = flops(lambda: decoder(ids, encoder_hidden_states=pages(), use_cache=False))
    spent = cost(Plan.full(2), SHAPE, "paper", Generation(prompt=9, passes=1))
    assert counted == 2 * spent.scopes["decoder+embeddings"].macs


def test_narrow_decoder_pass(narrow: MBartForCausalLM) -> None:
    ids = torch.zeros(1, 9, dtype=torch.long)
    counted = flops(lambda: narrow(ids, encoder_hidden_states=pages(), use_cache=False))
    spent = cost(NARROW, SHAPE, "paper", Generation(prompt=9, passes=1))
    assert counted == 2 * spent.scopes["decoder+embeddings"].macs


def test_paper_accounting_is_generation_without_a_cache(narrow: MBartForCausalLM) -> None:
    def generate() -> None:
        for length in range(5, 5 + 4):
            ids = torch.zeros(1, length, dtype=torch.long)
            narrow(ids, encoder_hidden_states=pages(), use_cache=False)

    spent = cost(NARROW, SHAPE, "paper", Generation(prompt=5, passes=4))
    assert flops(generate) == 2 * spent.scopes["decoder+embeddings"].macs


def test_cached_accounting_is_generation_with_a_cache(narrow: MBartForCausalLM) -> None:
    def generate() -> None:
        ids, cache = torch.zeros(1, 5, dtype=torch.long), None
        for _ in range(4):
            result = narrow(
                ids, encoder_hidden_states=pages(), past_key_values=cache, use_cache=True
            )
            ids, cache = torch.zeros(1, 1, dtype=torch.long), result.past_key_values

    generation = Generation(prompt=5, passes=4)
    spent = cost(NARROW, SHAPE, "cached", generation)
    # A plain forward projects the prompt's four other rows too; the accounting leaves them out.
    other_rows = (
        unembedding_macs(SHAPE.decoder, "cached", generation, prompt_rows=True)
        - spent.fixed["unembedding"].macs
    )
    assert other_rows == 4 * 31 * 24
    assert flops(generate) == 2 * (spent.scopes["decoder+embeddings"].macs + other_rows)


REPLACED = Plan.parse("S0=linear C0=mean M0=linear S1 C1=alone M1=mean")


@pytest.fixture
def replaced() -> CircuitMBartForCausalLM:
    """A student of SHAPE under the plan REPLACED."""
    config = CircuitMBartConfig(
        vocab_size=31,
        d_model=24,
        decoder_layers=2,
        decoder_attention_heads=3,
        decoder_ffn_dim=40,
        max_position_embeddings=16,
        add_cross_attention=True,
        tie_word_embeddings=True,
        attn_implementation="eager",
        plan=[
            {"self_heads": "linear", "cross_heads": "mean", "ffn": "linear"},
            {"self_heads": 3, "cross_heads": "alone", "ffn": "mean"},
        ],
    )
    return CircuitMBartForCausalLM(config).eval()


def test_replaced_decoder_pass(replaced: CircuitMBartForCausalLM) -> None:
    ids = torch.zeros(1, 9, dtype=torch.long)
    counted = flops(lambda: replaced(ids, encoder_hidden_states=pages(), use_cache=False))
    spent = cost(REPLACED, SHAPE, "paper", Generation(prompt=9, passes=1))
    assert counted == 2 * spent.scopes["decoder+embeddings"].macs


def test_replaced_decoder_with_a_cache(replaced: CircuitMBartForCausalLM) -> None:
    def generate() -> None:
        ids, cache = torch.zeros(1, 5, dtype=torch.long), None
        for _ in range(4):
            result = replaced(
                ids, encoder_hidden_states=pages(), past_key_values=cache, use_cache=True
            )
            ids, cache = torch.zeros(1, 1, dtype=torch.long), result.past_key_values

    generation = Generation(prompt=5, passes=4)
    other_rows = unembedding_macs(SHAPE.decoder, "cached", generation, prompt_rows=True)
    layers = cost(REPLACED, SHAPE, "cached", generation).scopes["decoder"].macs
    assert flops(generate) == 2 * (layers + other_rows)


def test_parameters_of_a_replaced_decoder(replaced: CircuitMBartForCausalLM) -> None:
    layers = replaced.model.decoder.layers
    exact = cost(REPLACED, SHAPE, "cached").scopes["decoder"].parameters
    assert exact == sum(p.numel() for p in layers.parameters())
    # `paper`: matrices, and the constants of what is fitted in their place
    weights = sum(
        p.numel() for n, p in layers.named_parameters() if p.dim() == 2 or "_replacement." in n
    )
    assert cost(REPLACED, SHAPE, "paper").scopes["decoder"].parameters == weights


def test_cached_parameters_are_numel(decoder: MBartForCausalLM) -> None:
    spent = cost(Plan.full(2), SHAPE, "cached")
    layers = decoder.model.decoder.layers
    assert spent.scopes["decoder"].parameters == sum(p.numel() for p in layers.parameters())
    assert spent.scopes["total"].parameters == sum(p.numel() for p in decoder.parameters())


def test_cached_parameters_of_a_narrow_student_are_numel(narrow: MBartForCausalLM) -> None:
    layers = narrow.model.decoder.layers
    spent = cost(NARROW, SHAPE, "cached")
    assert spent.scopes["decoder"].parameters == sum(p.numel() for p in layers.parameters())


def test_paper_parameters_are_matrix_weights_alone(narrow: MBartForCausalLM) -> None:
    layers = narrow.model.decoder.layers
    weights = sum(p.numel() for p in layers.parameters() if p.dim() == 2)
    assert cost(NARROW, SHAPE, "paper").scopes["decoder"].parameters == weights
