"""Students that need no class of their own: stock `MBartForCausalLM`s.

The stock class knows one number of layers, one width and all heads. It expresses a student when
every layer is there whole, but for the feed-forward's width, which must be the same in all, or not
there at all; empty layers are left out and the others close up.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from transformers import (
    MBartConfig,
    MBartForCausalLM,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)
from transformers.initialization import no_init_weights

from circuitsearch.core.errors import PlanError, raise_together
from circuitsearch.core.plan import Plan
from circuitsearch.students.modeling import CircuitMBartConfig

__all__ = ["numbered_by_plan", "stock_problems", "stock_student"]

_LAYER = re.compile(r"(?<=\.layers\.)\d+(?=\.)")
_OWN = ("plan", "model_type", "architectures", "transformers_version")


def stock_problems(config: CircuitMBartConfig) -> list[str]:
    """Say what of a student's decoder the stock class cannot express; empty when it can.

    Args:
        config: the decoder's config.
    """
    heads = config.decoder_attention_heads
    whole = {"self_heads": heads, "cross_heads": heads}
    problems, widths = [], {}
    for layer in _filled(config):
        entry = config.layer_plan(layer)
        problems += [
            f"layer {layer} {part} is {entry[part]}, the stock class has {most}"
            for part, most in whole.items()
            if entry[part] != most
        ]
        if isinstance(entry["ffn"], str) or entry["ffn"] == 0:
            problems.append(f"layer {layer} ffn is {entry['ffn']}, the stock class has one")
        else:
            widths[layer] = entry["ffn"]
    if len(set(widths.values())) > 1:
        named = ", ".join(f"{width} in layer {layer}" for layer, width in widths.items())
        problems.append(f"feed-forward widths differ ({named}), the stock class has one width")
    if not _filled(config):
        problems.append("no layer is left, and the stock class counts tokens in one")
    return problems


def stock_student(model: VisionEncoderDecoderModel) -> VisionEncoderDecoderModel:
    """Return a student as a stock model with the same numbers; encoder and tensors are shared.

    Args:
        model: the student.

    Raises:
        PlanError: the stock class cannot express it; every reason is named.
    """
    config = model.decoder.config
    heading = f"Plan {config.plan_text!r} as a stock model"
    raise_together(stock_problems(config), PlanError, heading)
    filled = _filled(config)
    carried = {name: value for name, value in config.to_dict().items() if name not in _OWN}
    carried["decoder_layers"] = len(filled)
    carried["decoder_ffn_dim"] = config.layer_plan(filled[0])["ffn"]
    stock = MBartConfig(**carried)
    joined = VisionEncoderDecoderConfig.from_encoder_decoder_configs(model.config.encoder, stock)
    for name in ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id"):
        if getattr(model.config, name, None) is not None:
            setattr(joined, name, getattr(model.config, name))
    with torch.device("meta"):
        decoder = MBartForCausalLM(joined.decoder)
    decoder.load_state_dict(_renumbered(model.decoder, filled), strict=True, assign=True)
    decoder.tie_weights()
    encoder_config = model.encoder.config
    with no_init_weights():
        made = VisionEncoderDecoderModel(joined, encoder=model.encoder, decoder=decoder)
    model.encoder.config = encoder_config  # the constructor points it at the new one
    if hasattr(model, "enc_to_dec_proj"):
        made.enc_to_dec_proj = model.enc_to_dec_proj
    made.generation_config = copy.deepcopy(model.generation_config)
    return made.eval()


def numbered_by_plan(decoder: Any) -> dict[str, torch.Tensor]:
    """Return a decoder's tensors, those of a stock student under the layer numbers of its plan.

    A student and its stock form have the same ones, and so the same names.

    Args:
        decoder: of a student or of a teacher.
    """
    config = decoder.config
    tensors: dict[str, torch.Tensor] = decoder.state_dict()
    text = getattr(config, "plan_text", None)
    if text is None or isinstance(config, CircuitMBartConfig):
        return tensors
    layers = sorted({sublayer.layer for sublayer in Plan.parse(text).sublayers})
    return {
        _LAYER.sub(lambda found: str(layers[int(found[0])]), name): tensor
        for name, tensor in tensors.items()
    }


def _filled(config: CircuitMBartConfig) -> list[int]:
    """Return the layers that hold anything."""
    layers = range(config.decoder_layers)
    return [layer for layer in layers if any(config.layer_plan(layer).values())]


def _renumbered(decoder: Any, filled: list[int]) -> dict[str, torch.Tensor]:
    """Return the decoder's tensors with its filled layers numbered from 0."""
    place = {str(layer): str(index) for index, layer in enumerate(filled)}
    return {
        _LAYER.sub(lambda found: place[found[0]], name): tensor
        for name, tensor in decoder.state_dict().items()
    }
