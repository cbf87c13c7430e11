"""Students are sliced teachers: the ablated teacher's function, one text with or without cache."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    EncoderDecoderCache,
    VisionEncoderDecoderModel,
)

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import ConfigError, PlanError
from circuitsearch.core.keep import REPLACEMENTS
from circuitsearch.core.plan import Plan
from circuitsearch.discovery.patching.components import effects
from circuitsearch.discovery.sample import make_sample
from circuitsearch.students import (
    CircuitMBartConfig,
    CircuitMBartForCausalLM,
    build_student,
    kept_units,
    modeling,
    plan_of,
    rank_neurons,
)
from circuitsearch.students.replacements import Replacements
from circuitsearch.teacher.decoders import (
    MBartResidualDecoder,
    continue_from,
    residual_decoder,
    stream_loss,
)
from circuitsearch.teacher.loading import Teacher
from tests.student_fixtures import ablated_teacher, any_replacements
from tests.tiny import TASK_TOKENS, tiny_pages

# Kept sub-layers, heads and widths in all kinds of company.
PLANS = [
    "S0 C0 M0 S1 C1 M1 S2 C2 M2 S3 C3 M3",
    "M0 C2 S3[0-1] C3[1,3] M1:17",
    "C0 M0 S1 C1 M1 S2 C2 M2 S3 C3 M3",  # S0 removed: positions come from the cache of S1
    "C0 M0 C1 C3 M3",  # no self-attention left
    "C2",  # one cross-attention only
    "S2[3] C1[0]",  # one head left of each
    "S0 M3:1",  # nothing reads the page
    "S0=linear C0 M0=mean S1 C1=mean M1 C2[0-1] M2=linear S3[2] C3=alone",  # replacements
    "S0=mean C0=alone M1=linear S2=linear",  # no self-attention left, the stream begins at C0
    "C1=linear M3=mean",  # nothing of the page, nothing of the teacher's but a LayerNorm
    "C0=token M0:9 C2 S3[0-1] C3[1,3]",  # the beginning is a table of tokens
    "M1=token C2 M2=mean C3=alone",  # and no self-attention left behind it
    "S0=token C0 S1=linear S2",
    "",
]


@pytest.fixture(scope="module")
def states(tiny_teacher: Teacher) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(2, 3, 32, 48, generator=generator) * 2 - 1
    return tiny_teacher.encode(pixels)


def _logits(model: nn.Module, ids: Tensor, states: Tensor) -> Tensor:
    with torch.no_grad():
        return model.decoder(input_ids=ids, encoder_hidden_states=states, use_cache=False).logits


@pytest.mark.parametrize("text", PLANS)
def test_equals_the_ablated_teacher_in_every_forward(
    tiny_teacher: Teacher, states: Tensor, text: str
) -> None:
    plan = Plan.parse(text)
    fitted = any_replacements(tiny_teacher.shape.decoder)
    student = build_student(tiny_teacher, plan, replacements=fitted)
    ids = torch.randint(4, 100, (2, 9), generator=torch.Generator().manual_seed(1))
    view = tiny_teacher.decoder
    units = kept_units(tiny_teacher.model.decoder, plan, view.shape)
    with torch.no_grad():
        expected = ablated_teacher(view, plan, units, ids, view.memory(states), fitted)
        own = residual_decoder(student)
        viewed = own.readout(_stream(own, ids, states))
    # float32, 12 sub-layers, sums in another order
    torch.testing.assert_close(_logits(student, ids, states), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(viewed, expected, atol=1e-5, rtol=1e-5)
    assert own.sublayers == tuple(one for one, keep in plan.kept if keep.replacement != "token")


def _stream(view, ids: Tensor, states: Tensor) -> Tensor:
    memory = view.memory(states)
    x = view.embed(ids)
    for sublayer in view.sublayers:
        written = view.project(sublayer, view.units(sublayer, x, memory))
        x = written if sublayer in view.alone else x + written
    return x


@pytest.mark.parametrize("text", PLANS)
@pytest.mark.parametrize("beams", [1, 3])
def test_generates_the_same_with_and_without_cache(
    tiny_teacher: Teacher, text: str, beams: int
) -> None:
    fitted = any_replacements(tiny_teacher.shape.decoder)
    student = build_student(tiny_teacher, Plan.parse(text), replacements=fitted)
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(5)) * 2 - 1
    prompts = torch.tensor([tiny_teacher.tokens.prompt_ids("What?")] * 2)
    written = [
        student.generate(
            pixels,
            decoder_input_ids=prompts,
            use_cache=cached,
            num_beams=beams,
            max_new_tokens=30,
            min_new_tokens=20,  # long enough for wrong positions to show
        )
        for cached in (True, False)
    ]
    assert torch.equal(*written)


@pytest.mark.parametrize("text", PLANS)
def test_one_cached_step_sees_the_right_positions(
    tiny_teacher: Teacher, states: Tensor, text: str
) -> None:
    fitted = any_replacements(tiny_teacher.shape.decoder)
    decoder = build_student(tiny_teacher, Plan.parse(text), replacements=fitted).decoder
    ids = torch.randint(4, 100, (2, 11), generator=torch.Generator().manual_seed(2))
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    rows = []
    with torch.no_grad():
        whole = decoder(input_ids=ids, encoder_hidden_states=states, use_cache=False).logits
        for first, last in itertools.pairwise((0, 5, 6, 9, 11)):
            step = decoder(
                input_ids=ids[:, first:last],
                encoder_hidden_states=states,
                past_key_values=cache,
                use_cache=True,
            )
            rows.append(step.logits)
            assert cache.get_seq_length() == last
    # the cache only reorders sums; wrong positions differ by more than 1e-2
    torch.testing.assert_close(torch.cat(rows, dim=1), whole, atol=2e-5, rtol=1e-5)


def test_cropping_the_cache_moves_the_clock_back(tiny_teacher: Teacher, states: Tensor) -> None:
    decoder = build_student(tiny_teacher, Plan.parse("C0 M0")).decoder
    ids = torch.randint(4, 100, (2, 8), generator=torch.Generator().manual_seed(2))
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    arguments = {"encoder_hidden_states": states, "past_key_values": cache, "use_cache": True}
    with torch.no_grad():
        whole = decoder(input_ids=ids, **arguments).logits
        cache.crop(-3)
        again = decoder(input_ids=ids[:, 5:], **arguments).logits
    torch.testing.assert_close(again, whole[:, 5:], atol=2e-5, rtol=1e-5)


def test_config_and_plan_know_the_same_replacements() -> None:
    for part, kind in zip(modeling.PARTS, Kind, strict=True):
        names = tuple(name for name, one in REPLACEMENTS.items() if kind in one.kinds)
        assert modeling.REPLACEMENTS[part] == names


def test_a_plan_without_its_numbers_is_refused(tiny_teacher: Teacher) -> None:
    plan = Plan.parse("S0=linear C2 C3=alone M3=mean")
    with pytest.raises(ConfigError, match=r"S0=linear.*M3=mean.*fit_replacements") as caught:
        build_student(tiny_teacher, plan)
    assert "for C3" not in str(caught.value)  # the sub-layer's own weights are all it needs
    fitted = any_replacements(replace(tiny_teacher.shape.decoder, d_model=24))
    with pytest.raises(ConfigError, match=r"S0=linear was .* width 24, this decoder's is 32; M3="):
        build_student(tiny_teacher, plan, replacements=fitted)


def test_students_own_their_replacements(tiny_teacher: Teacher) -> None:
    fitted = any_replacements(tiny_teacher.shape.decoder)
    before = fitted.fingerprint
    student = build_student(tiny_teacher, Plan.parse("C0 M0=mean M1=linear"), replacements=fitted)
    with torch.no_grad():
        for parameter in student.decoder.parameters():
            parameter.add_(1.0)
    table = build_student(tiny_teacher, Plan.parse("C0=token C1"), replacements=fitted)
    table.decoder.model.decoder.token_map.zero_()
    assert Replacements(fitted.means, fitted.maps, fitted.tokens).fingerprint == before


def test_a_table_of_tokens_is_no_parameter_and_is_there_only_when_planned(
    tiny_teacher: Teacher, states: Tensor
) -> None:
    fitted = any_replacements(tiny_teacher.shape.decoder)
    plain = build_student(tiny_teacher, Plan.parse("M1 C3")).decoder
    tabled = build_student(tiny_teacher, Plan.parse("C0=token M1 C3"), replacements=fitted).decoder
    assert plain.model.decoder.token_map is None
    assert set(tabled.state_dict()) - set(plain.state_dict()) == {"model.decoder.token_map"}
    assert [n for n, _ in tabled.named_parameters()] == [n for n, _ in plain.named_parameters()]
    # the student without a table, given the tokens that the table gives
    ids = torch.randint(4, 100, (2, 9), generator=torch.Generator().manual_seed(1))
    table = fitted.tokens[SubLayer.parse("C0")]
    with torch.no_grad():
        got = tabled(input_ids=ids, encoder_hidden_states=states).logits
        assert torch.equal(got, plain(input_ids=table[ids], encoder_hidden_states=states).logits)
        assert not torch.equal(got, plain(input_ids=ids, encoder_hidden_states=states).logits)
    half = copy.deepcopy(tabled).to(torch.bfloat16)
    assert half.model.decoder.token_map.dtype == torch.int64
    with pytest.raises(ConfigError, match="its tokens go through a table"):
        build_student(tiny_teacher, Plan.parse("M1"), source=tabled)
    fewer = replace(tiny_teacher.shape.decoder, vocabulary=50)
    with pytest.raises(ConfigError, match="C0=token was fitted to a vocabulary of size 50, this"):
        build_student(
            tiny_teacher, Plan.parse("C0=token M1 C3"), replacements=any_replacements(fewer)
        )


def test_a_student_with_a_table_is_still_a_sum_of_writes(tiny_teacher: Teacher) -> None:
    """Discovery takes it: the table belongs to its embedding, and effects are those of plans."""
    fitted = any_replacements(tiny_teacher.shape.decoder)

    def view(text: str) -> MBartResidualDecoder:
        return residual_decoder(build_student(tiny_teacher, Plan.parse(text), replacements=fitted))

    whole, without = view("C0=token M0 C1 C3"), view("C0=token M0 C3")
    sample = make_sample(tiny_teacher, tiny_pages(2))
    effect = effects(whole, sample, ["C1"], "zero")["C1"]
    found = []
    for batch, states in sample.batches:
        losses = []
        for one in (without, whole):
            memory = one.memory(states, batch.pages)
            with torch.no_grad():
                x = continue_from(one, one.embed(batch.ids), memory)
                losses.append(stream_loss(one, x, batch.labels))
        found += (losses[0] - losses[1]).tolist()
    assert effect.tolist() == pytest.approx(found, abs=1e-5)  # float32 losses
    # the embedding's pieces are those of the tokens that the table gives
    ids = torch.tensor([[4, 99, 7]])
    with torch.no_grad():
        rows = whole.embedding.table[ids] * whole.embedding.scale
        norm = whole.model.model.decoder.layernorm_embedding
        pieced = norm(rows + whole.embedding.positions[:3])
        torch.testing.assert_close(pieced, whole.embed(ids), atol=1e-6, rtol=1e-5)


def test_a_config_refuses_what_stands_in_front_of_a_table() -> None:
    entry = {"self_heads": 0, "cross_heads": "token", "ffn": 0}
    sizes = {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
    CircuitMBartConfig(**sizes, plan=[entry, {**entry, "cross_heads": 3}])
    for first in ({**entry, "self_heads": 1}, {**entry, "self_heads": "mean"}):
        with pytest.raises(ValueError, match="in front of 'token'"):
            CircuitMBartConfig(**sizes, plan=[first, {**entry, "cross_heads": 3}])
    with pytest.raises(ValueError, match="in front of 'token'"):
        CircuitMBartConfig(**sizes, plan=[entry, entry])


def test_a_replaced_sublayer_has_no_parts(tiny_teacher: Teacher) -> None:
    fitted = any_replacements(tiny_teacher.shape.decoder)
    student = build_student(tiny_teacher, Plan.parse("C0=mean S1=linear"), replacements=fitted)
    view = residual_decoder(student)
    for sublayer in view.sublayers:
        with pytest.raises(ConfigError, match=f"{sublayer}: this student has a replacement there"):
            view.parts(sublayer)


def test_absent_sublayers_have_no_module_and_no_norm(tiny_teacher: Teacher) -> None:
    layers = build_student(tiny_teacher, Plan.parse("S1 C2 M3")).decoder.model.decoder.layers
    assert [name for name, _ in layers[0].named_parameters()] == []
    assert layers[1].self_attn is not None
    assert layers[1].self_attn_layer_norm is not None
    for absent in ("encoder_attn", "encoder_attn_layer_norm", "fc1", "fc2", "final_layer_norm"):
        assert getattr(layers[1], absent) is None
    # numbered from 0 in the cache although S0 is gone
    assert layers[1].self_attn.layer_idx == 0
    assert layers[2].encoder_attn.layer_idx == 2


def test_encoder_is_the_teachers_own_and_nothing_of_the_teacher_moves(tiny_folder: Path) -> None:
    from circuitsearch.teacher.loading import load_teacher

    teacher = load_teacher(str(tiny_folder))
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    config = teacher.model.encoder.config
    noise = torch.random.get_rng_state()
    student = build_student(teacher, Plan.parse("M0 C2 S3[0] M1:4"))
    assert torch.equal(noise, torch.random.get_rng_state())
    assert student.encoder is teacher.model.encoder
    assert teacher.model.encoder.config is config
    assert not any(p.requires_grad for p in student.encoder.parameters())
    assert all(p.requires_grad for p in student.decoder.parameters())
    with torch.no_grad():
        for parameter in student.decoder.parameters():
            parameter.add_(1.0)
    for name, tensor in teacher.model.state_dict().items():
        assert torch.equal(before[name], tensor), name


def test_output_projection_stays_tied(tiny_teacher: Teacher) -> None:
    decoder = build_student(tiny_teacher, Plan.parse("C0")).decoder
    assert decoder.lm_head.weight is decoder.model.decoder.embed_tokens.weight


def test_loss_is_the_hand_written_cross_entropy(tiny_teacher: Teacher, states: Tensor) -> None:
    """transformers 4.50-4.56 shifted labels twice; the model must not."""
    student = build_student(tiny_teacher, Plan.parse("M0 C2 S3 C3"))
    ids = torch.randint(4, 100, (2, 9), generator=torch.Generator().manual_seed(4))
    labels = ids[:, 1:].clone()
    labels[:, :3] = -100
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.no_grad():
        out = student(pixel_values=pixels, decoder_input_ids=ids[:, :-1], labels=labels)
        rows = [
            out.logits[b, t].log_softmax(-1)[labels[b, t]]
            for b in range(2)
            for t in range(8)
            if labels[b, t] != -100
        ]
        by_hand = -torch.stack(rows).mean()
    # one log-softmax at a time against one fused call
    torch.testing.assert_close(out.loss, by_hand, atol=1e-6, rtol=1e-6)


def test_neurons_rank_by_the_norms_of_row_and_column(tiny_teacher: Teacher) -> None:
    layer = tiny_teacher.model.decoder.model.decoder.layers[1]
    weight = [float(layer.fc1.weight[j].norm() * layer.fc2.weight[:, j].norm()) for j in range(64)]
    order = rank_neurons(tiny_teacher.model.decoder, SubLayer.at(1, Kind.FEED))
    assert sorted(order) == list(range(64))
    ranked = [weight[j] for j in order]
    assert all(a >= b - 1e-6 for a, b in itertools.pairwise(ranked))


def test_equal_neurons_go_to_the_lower_index(tiny_folder: Path) -> None:
    from circuitsearch.teacher.loading import load_teacher

    decoder = load_teacher(str(tiny_folder)).model.decoder
    layer = decoder.model.decoder.layers[0]
    with torch.no_grad():
        layer.fc1.weight.fill_(1.0)
        layer.fc2.weight.fill_(1.0)
    assert rank_neurons(decoder, SubLayer.parse("M0")) == list(range(64))


def test_a_given_ranking_decides_the_width(tiny_teacher: Teacher) -> None:
    m1 = SubLayer.parse("M1")
    order = list(range(63, -1, -1))
    student = build_student(tiny_teacher, Plan.parse("M1:3"), neurons={m1: order})
    rows = tiny_teacher.model.decoder.model.decoder.layers[1].fc1.weight[61:64]
    assert torch.equal(student.decoder.model.decoder.layers[1].fc1.weight, rows)


@pytest.mark.parametrize("order", [[5, 5, 6], [1, 2], [1, 2, 64], [-1, 2, 3]])
def test_a_ranking_that_names_no_neurons_is_refused(
    tiny_teacher: Teacher, order: list[int]
) -> None:
    ranking = {SubLayer.parse("M1"): order}
    with pytest.raises(ConfigError, match=r"Ranking of M1: the plan keeps 3 neurons"):
        build_student(tiny_teacher, Plan.parse("M1:3"), neurons=ranking)


def test_slices_another_whole_decoder(tiny_teacher: Teacher, states: Tensor) -> None:
    elastic = build_student(tiny_teacher, Plan.full(4))
    with torch.no_grad():
        elastic.decoder.model.decoder.layers[0].fc2.bias.add_(0.5)
    plan = Plan.parse("M0 C2")
    ids = torch.tensor([[99, 7, 8]])
    student = build_student(tiny_teacher, plan, source=elastic.decoder)
    view = residual_decoder(elastic)
    units = kept_units(elastic.decoder, plan, view.shape)
    with torch.no_grad():
        expected = ablated_teacher(view, plan, units, ids, view.memory(states[:1]))
    torch.testing.assert_close(_logits(student, ids, states[:1]), expected, atol=1e-5, rtol=1e-5)


def test_refuses_to_slice_a_student(tiny_teacher: Teacher) -> None:
    narrow = build_student(tiny_teacher, Plan.parse("C2[0] M0"))
    with pytest.raises(ConfigError, match=r"C2 has 8 of 32 rows"):
        build_student(tiny_teacher, Plan.parse("C2 M0"), source=narrow.decoder)


def test_a_plan_for_another_decoder_is_refused(tiny_teacher: Teacher) -> None:
    with pytest.raises(PlanError, match="does not fit the decoder"):
        build_student(tiny_teacher, Plan.parse("M4 C0[9]"))


def test_plan_travels_with_the_config(tiny_teacher: Teacher) -> None:
    plan = Plan.parse("C2 M0:5 S3[1] S1=linear C1=alone M1=mean")
    fitted = any_replacements(tiny_teacher.shape.decoder)
    student = build_student(tiny_teacher, plan, replacements=fitted)
    assert plan_of(student) == plan_of(student.decoder) == plan
    config = AutoConfig.for_model(**student.decoder.config.to_diff_dict())
    assert isinstance(config, CircuitMBartConfig)
    assert config.plan == [
        {"self_heads": 0, "cross_heads": 0, "ffn": 5},
        {"self_heads": "linear", "cross_heads": "alone", "ffn": "mean"},
        {"self_heads": 0, "cross_heads": 4, "ffn": 0},
        {"self_heads": 1, "cross_heads": 0, "ffn": 0},
    ]
    rebuilt = AutoModelForCausalLM.from_config(config)
    assert isinstance(rebuilt, CircuitMBartForCausalLM)
    assert {n: p.shape for n, p in rebuilt.named_parameters()} == {
        n: p.shape for n, p in student.decoder.named_parameters()
    }
    with pytest.raises(ConfigError, match="carries no plan"):
        plan_of(tiny_teacher.model)


def test_config_names_every_fault_of_its_plan() -> None:
    plan = [{"self_heads": "alone", "cross_heads": 5, "ffn": 3}, {"heads": 1}]
    faults = r"got 2 layers.*self_heads: got 'alone'.*cross_heads: got 5, .*alone.*layer 1 has"
    with pytest.raises(ValueError, match=faults):
        CircuitMBartConfig(
            decoder_layers=3, decoder_attention_heads=4, d_model=32, decoder_ffn_dim=8, plan=plan
        )


def test_without_a_plan_the_class_is_the_stock_decoder(tiny_teacher: Teacher) -> None:
    stock = tiny_teacher.model.decoder
    carried = {k: v for k, v in stock.config.to_dict().items() if k != "model_type"}
    whole = CircuitMBartForCausalLM(CircuitMBartConfig(**carried))
    assert whole.load_state_dict(stock.state_dict(), strict=True)


def test_attention_implementation_reaches_every_layer(
    tiny_teacher: Teacher, states: Tensor
) -> None:
    student = build_student(tiny_teacher, Plan.parse("S1[0,2] C1 M1"))
    ids = torch.tensor([[99, 7, 8], [99, 9, 10]])
    usual = _logits(student, ids, states)
    student.decoder.set_attn_implementation("eager")
    with torch.no_grad():
        out = student.decoder(
            input_ids=ids, encoder_hidden_states=states, use_cache=False, output_attentions=True
        )
    torch.testing.assert_close(out.logits, usual, atol=1e-5, rtol=1e-5)
    assert [one.shape[1] for one in out.attentions] == [2]
    assert [one.shape[1] for one in out.cross_attentions] == [4]


def test_modeling_can_travel_with_a_checkpoint() -> None:
    """The file must not need circuitsearch, so that it can serve as remote code."""
    source = Path(modeling.__file__).read_text(encoding="utf-8")
    assert "import circuitsearch" not in source
    assert "from circuitsearch" not in source
    assert "from ." not in source


def test_is_a_plain_encoder_decoder(tiny_teacher: Teacher) -> None:
    student = build_student(tiny_teacher, Plan.parse("C0"))
    assert type(student) is VisionEncoderDecoderModel
    assert not student.training
    assert student.generation_config.to_dict() == tiny_teacher.model.generation_config.to_dict()
    assert student.config.decoder_start_token_id == tiny_teacher.tokens.prompt_ids("")[0]
    assert TASK_TOKENS[0] == "<s_docvqa>"
