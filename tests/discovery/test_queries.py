"""Exchanged queries and cut attention against hooks on, and loops over, the Hugging Face model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from circuitsearch.core.components import SubLayer
from circuitsearch.core.errors import ConfigError
from circuitsearch.discovery.patching.cuts import cut_write
from circuitsearch.discovery.patching.queries import behind_query, placed, queries, stream_before
from circuitsearch.discovery.sample import Sample
from circuitsearch.teacher.decoders import continue_from, residual_decoder
from circuitsearch.teacher.loading import Teacher
from tests.discovery.small_decoders import small_llama

# float32 along two routes
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.mark.parametrize("name", ["C1", "C3"])
def test_exchanged_queries_equal_hooks(tiny_teacher: Teacher, sample: Sample, name: str) -> None:
    view, target = tiny_teacher.decoder, SubLayer.parse(name)
    model = tiny_teacher.model.decoder
    batch, states = sample.batches[0]
    answers = torch.tensor([example.prompt - 1 for example in batch.examples])
    rows = torch.arange(len(answers))
    project = model.model.decoder.layers[target.layer].encoder_attn.q_proj
    made: list[Tensor] = []
    with torch.no_grad():
        memory = view.memory(states, batch.pages)
        other = sample.swapped[0]
        elsewhere = view.memory(other, batch.pages)
        given = queries(view, target, stream_before(view, batch.ids, elsewhere, target))
        x = stream_before(view, batch.ids, memory, target)
        query = placed(queries(view, target, x), answers, given[rows, :, answers])
        end = continue_from(
            view, behind_query(view, target, x, memory, query), memory, after=target
        )
        found = view.readout(end)

        hook = project.register_forward_hook(lambda _m, _i, output: made.append(output))
        model(input_ids=batch.ids, encoder_hidden_states=other[batch.pages], use_cache=False)
        hook.remove()

        def exchange(_m: object, _i: object, output: Tensor) -> Tensor:
            changed = output.clone()
            changed[rows, answers] = made[0][rows, answers]
            return changed

        hook = project.register_forward_hook(exchange)
        wanted = model(
            input_ids=batch.ids, encoder_hidden_states=states[batch.pages], use_cache=False
        ).logits
        hook.remove()
        clean = view.readout(continue_from(view, view.embed(batch.ids), memory))
    torch.testing.assert_close(found, wanted, **CLOSE)
    # far more than rounding
    assert (found - clean).abs().max() > 0.01


def test_only_cross_attentions_ask_the_page(tiny_teacher: Teacher, sample: Sample) -> None:
    view = tiny_teacher.decoder
    batch, states = sample.batches[0]
    memory, x = view.memory(states, batch.pages), view.embed(batch.ids)
    for name in ("S1", "M2"):
        with pytest.raises(ConfigError, match="C0, C1, C2, C3"):
            queries(view, SubLayer.parse(name), x)
        with pytest.raises(ConfigError, match="C0, C1, C2, C3"):
            behind_query(view, SubLayer.parse(name), x, memory, torch.zeros(1))


def test_cut_attention_equals_a_loop(tiny_teacher: Teacher, sample: Sample) -> None:
    view, sublayer = tiny_teacher.decoder, SubLayer.parse("S2")
    layer = tiny_teacher.model.decoder.model.decoder.layers[2]
    batch, _ = sample.batches[0]
    unseen = torch.rand(*batch.ids.shape, batch.ids.shape[1], generator=_generator()) < 0.4
    with torch.no_grad():
        x = view.embed(batch.ids)
        found = cut_write(view, sublayer, x, unseen)
        read = layer.self_attn_layer_norm(x)
        q, k, v = (
            projection(read).unflatten(-1, (4, 8))
            for projection in (
                layer.self_attn.q_proj,
                layer.self_attn.k_proj,
                layer.self_attn.v_proj,
            )
        )
        for row, t in ((0, 5), (1, 0), (3, 17)):
            seen = [j for j in range(t + 1) if j == t or not unseen[row, t, j]]
            heads = []
            for h in range(4):
                scores = torch.stack([q[row, t, h] @ k[row, j, h] for j in seen]) / math.sqrt(8)
                heads.append((scores.softmax(0)[:, None] * v[row, seen, h]).sum(0))
            torch.testing.assert_close(
                found[row, t], layer.self_attn.out_proj(torch.cat(heads)), **CLOSE
            )


def test_cuts_handle_grouped_heads() -> None:
    view = residual_decoder(small_llama())
    with torch.no_grad():
        x = view.embed(torch.arange(12).view(2, 6))
        sublayer = SubLayer.parse("S1")
        whole = view.project(sublayer, view.units(sublayer, x, view.memory(torch.zeros(1, 0, 1))))
        nothing = torch.zeros(2, 6, 6, dtype=torch.bool)
        torch.testing.assert_close(cut_write(view, sublayer, x, nothing), whole, **CLOSE)
        # a position that sees itself alone writes its own value, turned or not
        alone = cut_write(view, sublayer, x, ~nothing)
        parts = view.parts(sublayer)
        assert parts.value is not None
        value = parts.split(parts.value(parts.norm(x))).repeat_interleave(2, dim=1)
        expected = view.project(sublayer, value.transpose(1, 2))
        torch.testing.assert_close(alone, expected, **CLOSE)


@pytest.mark.parametrize("name", ["C1", "M1"])
def test_only_self_attentions_are_cut(tiny_teacher: Teacher, sample: Sample, name: str) -> None:
    x = tiny_teacher.decoder.embed(sample.batches[0][0].ids)
    with pytest.raises(ConfigError, match="self-attentions only"):
        cut_write(tiny_teacher.decoder, SubLayer.parse(name), x, torch.zeros(1, dtype=torch.bool))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)
