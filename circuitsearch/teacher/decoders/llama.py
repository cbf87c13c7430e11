"""Llama's decoder as a residual stream: decoder-only, with rotary embedding and RMSNorm.

Module names are those of transformers 5 (`LlamaForCausalLM`): `model` holds `embed_tokens`, the
`layers[i]`, the final `norm` and `rotary_emb`; `lm_head` has no bias. A layer is `input_layernorm`
with `self_attn` and `post_attention_layernorm` with `mlp`; despite its name the second norm stands
*before* the feed-forward, so the stack is pre-LN. There is no cross-attention: layer i has the
sub-layers S_i and M_i alone. Mistral and Qwen2 keep these names and this arithmetic, but for their
sliding windows, which are refused.

Positions enter inside attention: queries and keys are turned by angles that grow with the position
(rotary embedding, Su et al., arXiv 2104.09864). The model's own `rotary_emb` gives cosines and
sines, so frequency scalings are those of the checkpoint. With grouped queries (Ainslie et al.,
arXiv 2305.13245) several heads share keys and values; units stay those of single heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from circuitsearch.core.errors import ConfigError, raise_together
from circuitsearch.core.shapes import DecoderShape

from .decoder_only import DecoderOnly, stack_of
from .parts import Affine, Embedding, Norm, Parts

__all__ = ["LlamaResidualDecoder"]

_ROPE_TYPES = ("default", "linear", "llama3", "proportional", "yarn")
"""Rotary embeddings whose angles follow from the position alone."""


class LlamaResidualDecoder(DecoderOnly):
    """`ResidualDecoder` of a `LlamaForCausalLM` or of a class that keeps its module names."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap a decoder.

        Args:
            model: a decoder with Llama's module names.

        Raises:
            ConfigError: the model has no output projection, attends through a sliding window, or
                turns queries and keys by angles that depend on more than the position.
        """
        self._stack = _stack(model)
        super().__init__(model, _shape(model, self._stack), self._stack.layers)

    def embed(self, ids: Tensor) -> Tensor:
        """Return [B, T, d] = E[ids], for ids [B, T]; positions enter in attention."""
        x: Tensor = self._stack.embed_tokens(ids)
        return x

    @property
    def embedding(self) -> Embedding:
        """The tables of the token embedding."""
        return Embedding(self._stack.embed_tokens.weight)

    @property
    def final_norm(self) -> Norm:
        """The stack's last RMSNorm."""
        return _norm(self._stack.norm)

    def _feed(self, layer: Any) -> Parts:
        mlp = layer.mlp
        return Parts(
            _norm(layer.post_attention_layernorm),
            _affine(mlp.down_proj),
            up=_affine(mlp.up_proj),
            gate=_affine(mlp.gate_proj),
            activation=mlp.act_fn,
        )

    def _attention(self, layer: Any) -> Parts:
        attention, width = layer.self_attn, self.shape.head_dim
        return Parts(
            _norm(layer.input_layernorm),
            _affine(attention.o_proj),
            query=_affine(attention.q_proj),
            key=_affine(attention.k_proj),
            value=_affine(attention.v_proj),
            rotate=self._rotate,
            heads=attention.q_proj.out_features // width,
            groups=attention.k_proj.out_features // width,
            score_scale=attention.scaling,
        )

    def _rotate(self, x: Tensor) -> Tensor:
        """Turn queries or keys x [..., T, hd] by positions 0 to T-1, rounded as the model does."""
        positions = torch.arange(x.shape[-2], device=x.device).unsqueeze(0)
        cosines, sines = (table[0] for table in self._stack.rotary_emb(x, positions))
        first, second = x.chunk(2, dim=-1)
        turned: Tensor = x * cosines + torch.cat([-second, first], dim=-1) * sines
        return turned


def _affine(linear: Any) -> Affine:
    return Affine(linear.weight, linear.bias)


def _norm(norm: Any) -> Norm:
    return Norm(norm.weight, None, norm.variance_epsilon, centred=False)


def _stack(model: nn.Module) -> Any:
    """Return the decoder stack, or say why the model has no residual view."""
    needed = ("embed_tokens", "layers", "norm", "rotary_emb")
    remedy = "a causal language model (LlamaForCausalLM)"
    stack = stack_of(model, "model", needed, "a Llama stack", remedy)
    heading = f"Decoder {type(model).__name__}"
    raise_together(_problems(model.config, stack.rotary_emb), ConfigError, heading)
    return stack


def _problems(config: Any, rotary: Any) -> list[str]:
    """Describe what of a Llama-like decoder the view cannot give."""
    problems = []
    windows = {kind for kind in getattr(config, "layer_types", None) or () if "full" not in kind}
    window = getattr(config, "sliding_window", None)
    if window is not None or windows:
        problems.append(
            f"it attends through a sliding window (sliding_window {window}, layer_types "
            f"{', '.join(sorted(windows)) or 'not given'}), allowed is full causal attention; "
            "choose a checkpoint without one"
        )
    if rotary.rope_type not in _ROPE_TYPES:
        problems.append(
            f"rope_type: got {rotary.rope_type!r}, allowed are {', '.join(_ROPE_TYPES)}: other "
            "types choose their angles by the length of the batch, so that padding would change "
            "an example's loss; choose a checkpoint with one of these"
        )
    return problems


def _shape(model: Any, stack: Any) -> DecoderShape:
    """Read the sizes; a head may be wider or narrower than d / heads."""
    config = model.config
    heads = config.num_attention_heads
    return DecoderShape(
        layers=len(stack.layers),
        d_model=config.hidden_size,
        heads=heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        ffn=config.intermediate_size,
        vocabulary=stack.embed_tokens.num_embeddings,
        encoder_width=0,
        groups=config.num_key_value_heads,
        gated=True,
        tied=model.lm_head.weight is stack.embed_tokens.weight,
    )
