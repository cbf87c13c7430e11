"""From a teacher and a plan to a student: the teacher's weights, sliced.

A head is 64 (head width) rows of q, k and v with their biases and as many columns of out_proj; a
neuron is a row of fc1 with its bias and a column of fc2. The biases of out_proj and fc2 belong to
the sub-layer and stay whole. So before any training

    student(x) = teacher(x) with the units that the plan drops set to zero
                 and the sub-layers that it skips left out,

which `tests/properties/test_student_properties.py` checks on random plans. Where the plan replaces
a sub-layer, the teacher's write is replaced in the same way (`replacements.replaced`).

Embeddings, the two outer LayerNorms and the tied output projection are copied; the encoder is the
teacher's own module, shared, frozen and never copied in memory.

A width in a plan (`M1:512`) means the best-ranked neurons. Unless the caller brings an order, a
neuron's rank is |its row of fc1| * |its column of fc2|, the largest write per unit of input that it
can make (gelu has slope about 1); equal ranks go to the lower index.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import VisionEncoderDecoderConfig, VisionEncoderDecoderModel
from transformers.initialization import no_init_weights

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import ConfigError, raise_together
from circuitsearch.core.plan import Plan
from circuitsearch.core.shapes import DecoderShape
from circuitsearch.students.compensation import EMBEDDING_BIAS, fold_means
from circuitsearch.students.modeling import PARTS, CircuitMBartConfig, CircuitMBartForCausalLM
from circuitsearch.students.replacements import FITTED, Replacements, token_map
from circuitsearch.teacher.decoders import residual_decoder

if TYPE_CHECKING:
    from circuitsearch.discovery.ablation import Means
    from circuitsearch.teacher.loading import Teacher

__all__ = [
    "NeuronOrder",
    "build_student",
    "kept_units",
    "plan_of",
    "rank_neurons",
]

NeuronOrder = Mapping[SubLayer, Sequence[int]]
"""Neurons of feed-forwards, best first."""

_ROWS = {
    Kind.SELF: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    Kind.CROSS: ("encoder_attn.q_proj", "encoder_attn.k_proj", "encoder_attn.v_proj"),
    Kind.FEED: ("fc1",),
}
_COLUMN = {Kind.SELF: "self_attn.out_proj", Kind.CROSS: "encoder_attn.out_proj", Kind.FEED: "fc2"}
_NORM = {
    Kind.SELF: "self_attn_layer_norm",
    Kind.CROSS: "encoder_attn_layer_norm",
    Kind.FEED: "final_layer_norm",
}
_TOKEN_MAP = "model.decoder.token_map"
_REPLACEMENT = {
    Kind.SELF: "self_attn_replacement",
    Kind.CROSS: "encoder_attn_replacement",
    Kind.FEED: "ffn_replacement",
}


def build_student(
    teacher: Teacher,
    plan: Plan,
    *,
    neurons: NeuronOrder | None = None,
    source: nn.Module | None = None,
    replacements: Replacements | None = None,
    compensate: Means | None = None,
) -> VisionEncoderDecoderModel:
    """Slice a student out of its teacher.

    Args:
        teacher: gives the encoder (shared), the configuration and, by default, the weights.
        plan: what to keep.
        neurons: neurons of a feed-forward, best first, for the widths of the plan; sub-layers that
            it does not name are ranked by `rank_neurons`.
        source: whole decoder to slice instead of the teacher's, e.g. an elastic teacher's.
        replacements: numbers for the sub-layers that the plan replaces, but for `alone`,
            fitted by `fit_replacements` to the teacher.
        compensate: averages of the sliced decoder's units (`discovery.ablation.unit_means`); the
            means of removed parts are then folded into kept biases (`compensation`).

    Returns:
        The student in evaluation mode. Decoder parameters are copies that can be trained, the
        encoder's are the teacher's and stay frozen.

    Raises:
        PlanError: if the plan does not fit the teacher.
        ConfigError: if `neurons` are none of the decoder's, `source` is not whole,
            `replacements` lacks what the plan needs, or `compensate` is by position.
    """
    shape = teacher.shape.decoder
    plan = plan.fitted(shape)
    fitted = replacements or Replacements()
    fitted.check(plan, shape)
    whole: Any = teacher.model.decoder if source is None else source
    units = kept_units(whole, plan, shape, neurons)
    _check_whole(whole, plan, shape)
    weights = _sliced(whole.state_dict(), units, shape)
    weights.update(_stand_ins(whole.state_dict(), plan, fitted))
    if compensate is not None:
        fold_means(weights, residual_decoder(whole), plan, units, compensate, _biases(plan))
    config = _student_config(teacher.model.config, plan, shape)
    with torch.device("meta"):
        decoder = CircuitMBartForCausalLM(config.decoder)
    decoder.load_state_dict(weights, strict=True, assign=True)
    decoder.tie_weights()
    decoder.requires_grad_(True)
    return _assembled(teacher.model, config, decoder)


def rank_neurons(decoder: Any, sublayer: SubLayer) -> list[int]:
    """Return all neurons of a feed-forward, best first, by |fc1 row| * |fc2 column|.

    Args:
        decoder: a Hugging Face decoder with mBART's module names.
        sublayer: a feed-forward that it has.
    """
    layer = decoder.model.decoder.layers[sublayer.layer]
    with torch.no_grad():
        norms = layer.fc1.weight.double().norm(dim=1) * layer.fc2.weight.double().norm(dim=0)
    order: list[int] = torch.argsort(norms, descending=True, stable=True).tolist()
    return order


def kept_units(
    decoder: Any, plan: Plan, shape: DecoderShape, neurons: NeuronOrder | None = None
) -> dict[SubLayer, tuple[int, ...]]:
    """Return the heads (S, C) or neurons (M) of each kept sub-layer, ascending.

    Sub-layers replaced by what is fitted keep none and are left out.

    Args:
        decoder: the whole decoder that the plan is about.
        plan: a plan that fits `shape`.
        shape: sizes of the whole decoder.
        neurons: see `build_student`.
    """
    kept: dict[SubLayer, tuple[int, ...]] = {}
    for sublayer, keep in plan.fitted(shape).kept:
        if keep.replacement in FITTED:
            continue
        if sublayer.kind is not Kind.FEED:
            kept[sublayer] = tuple(range(shape.heads)) if keep.heads is None else keep.heads
        elif keep.width is None:
            kept[sublayer] = tuple(range(shape.ffn))
        else:
            order = (neurons or {}).get(sublayer)
            if order is None:
                order = rank_neurons(decoder, sublayer)
            kept[sublayer] = _best(order, keep.width, shape.ffn, sublayer)
    return kept


def _best(order: Sequence[int], width: int, ffn: int, sublayer: SubLayer) -> tuple[int, ...]:
    """Return the first `width` neurons of an order, ascending."""
    best = [int(neuron) for neuron in order[:width]]
    if len(set(best)) < width or not all(0 <= neuron < ffn for neuron in best):
        raise ConfigError(
            f"Ranking of {sublayer}: the plan keeps {width} neurons, got {len(set(best))} "
            f"different ones between {min(best, default=0)} and {max(best, default=0)}; "
            f"name at least {width} different neurons from 0 to {ffn - 1}, best first"
        )
    return tuple(sorted(best))


def _student_config(teacher: Any, plan: Plan, shape: DecoderShape) -> VisionEncoderDecoderConfig:
    """Return the teacher's config with the plan's sizes per decoder layer."""
    sizes = [
        {
            part: _size(plan, SubLayer.at(layer, kind), shape)
            for part, kind in zip(PARTS, Kind, strict=True)
        }
        for layer in range(shape.layers)
    ]
    left_out = ("model_type", "architectures", "plan", "plan_text", "transformers_version")
    carried = {k: v for k, v in teacher.decoder.to_dict().items() if k not in left_out}
    decoder = CircuitMBartConfig(**carried, plan=sizes, plan_text=str(plan))
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(teacher.encoder, decoder)
    for name in ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id"):
        if getattr(teacher, name, None) is not None:
            setattr(config, name, getattr(teacher, name))
    return config


def _size(plan: Plan, sublayer: SubLayer, shape: DecoderShape) -> int | str:
    """Return a sub-layer's entry in the config's plan: heads or neurons, or a replacement."""
    keep = plan.keep(sublayer)
    if keep is not None and keep.replacement is not None:
        return keep.replacement
    return plan.units(sublayer, shape)


def _check_whole(decoder: Any, plan: Plan, shape: DecoderShape) -> None:
    """Refuse a source that has already lost parts: its heads and neurons have other numbers."""
    weights = decoder.state_dict()
    full = {Kind.FEED: shape.ffn}
    problems = []
    for sublayer, keep in plan.kept:
        if keep.replacement in ("mean", "token"):
            continue  # needs nothing of the sub-layer
        key = f"{_prefix(sublayer)}{_ROWS[sublayer.kind][0]}.weight"
        wanted = full.get(sublayer.kind, shape.heads * shape.head_dim)
        there = weights[key].shape[0] if key in weights else 0
        if there != wanted:
            problems.append(f"{sublayer} has {there} of {wanted} rows")
    if _TOKEN_MAP in weights:
        problems.append("its tokens go through a table (`token`) before they are embedded")
    raise_together(problems, ConfigError, "Weights to slice: give a whole decoder, not a student's")


def _sliced(
    weights: Mapping[str, Tensor], units: Mapping[SubLayer, tuple[int, ...]], shape: DecoderShape
) -> dict[str, Tensor]:
    """Return the student's state dict: copies of what is kept, under the teacher's names."""
    sliced = {name: w.clone() for name, w in weights.items() if ".layers." not in name}
    for sublayer, kept in units.items():
        prefix = _prefix(sublayer)
        index = torch.tensor(kept, device=next(iter(sliced.values())).device)
        if sublayer.kind is not Kind.FEED:
            width = torch.arange(shape.head_dim, device=index.device)
            index = (index[:, None] * shape.head_dim + width).flatten()
        rows, column, norm = _ROWS[sublayer.kind], _COLUMN[sublayer.kind], _NORM[sublayer.kind]
        for name in (f"{row}.{part}" for row in rows for part in ("weight", "bias")):
            sliced[prefix + name] = weights[prefix + name].index_select(0, index)
        name = f"{prefix}{column}.weight"
        sliced[name] = weights[name].index_select(1, index)
        for name in (f"{column}.bias", f"{norm}.weight", f"{norm}.bias"):
            sliced[prefix + name] = weights[prefix + name].clone()
    return sliced


def _stand_ins(
    weights: Mapping[str, Tensor], plan: Plan, fitted: Replacements
) -> dict[str, Tensor]:
    """Return what is fitted, by name; `linear` brings the sub-layer's LayerNorm."""
    like = next(iter(weights.values()))
    made: dict[str, Tensor] = {}
    for sublayer, keep in plan.kept:
        prefix = _prefix(sublayer)
        name, norm = prefix + _REPLACEMENT[sublayer.kind], prefix + _NORM[sublayer.kind]
        if keep.replacement == "mean":
            made[f"{name}.bias"] = fitted.means[sublayer]
        elif keep.replacement == "linear":
            for part, fit in vars(fitted.maps[sublayer]).items():
                made[f"{name}.{part}"] = fit
                made[f"{norm}.{part}"] = weights[f"{norm}.{part}"]
    stand_ins = {name: tensor.to(like, copy=True) for name, tensor in made.items()}
    table = token_map(plan, fitted)
    if table is not None:
        stand_ins[_TOKEN_MAP] = table.to(like.device, copy=True)
    return stand_ins


def _biases(plan: Plan) -> dict[SubLayer, str]:
    """Return the name of the output bias of every sub-layer that is kept or replaced."""
    return {
        sublayer: EMBEDDING_BIAS
        if keep.prefix
        else _prefix(sublayer)
        + (_REPLACEMENT if keep.replacement in FITTED else _COLUMN)[sublayer.kind]
        + ".bias"
        for sublayer, keep in plan.kept
    }


def _prefix(sublayer: SubLayer) -> str:
    return f"model.decoder.layers.{sublayer.layer}."


def _assembled(
    teacher: Any, config: VisionEncoderDecoderConfig, decoder: CircuitMBartForCausalLM
) -> VisionEncoderDecoderModel:
    """Join the teacher's encoder, as it is, and a student's decoder."""
    # The constructor points the encoder at the student's config; it stays the teacher's.
    encoder_config = teacher.encoder.config
    with no_init_weights():
        student = VisionEncoderDecoderModel(config, encoder=teacher.encoder, decoder=decoder)
    teacher.encoder.config = encoder_config
    if hasattr(teacher, "enc_to_dec_proj"):
        student.enc_to_dec_proj = teacher.enc_to_dec_proj
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return student.eval()


def plan_of(model: Any) -> Plan:
    """Return the plan that a student (or its decoder) was built by, a stock one too.

    Raises:
        ConfigError: if the model is no student.
    """
    config = getattr(model, "decoder", model).config
    text = getattr(config, "plan_text", None)
    if text is None:
        raise ConfigError(
            f"{type(model).__name__}: it carries no plan; give a student made by build_student"
        )
    return Plan.parse(text)
