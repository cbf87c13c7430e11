"""GPT-2's decoder as a residual stream: decoder-only, with learned positions and LayerNorm.

Module names are those of transformers 5 (`GPT2LMHeadModel`): `transformer` holds `wte` (tokens),
`wpe` (learned positions, no offset), the layers `h[i]` and the final `ln_f`; `lm_head` has no bias.
A layer is `ln_1` with `attn` and `ln_2` with `mlp`; there is no cross-attention, so layer i has the
sub-layers S_i and M_i alone.

Two things are stored unlike elsewhere. Projections are `Conv1D`, whose weight is [in, out]: parts
hold its transpose, a view. Query, key and value are one projection, `c_attn`, whose output has the
three behind one another: parts hold three views of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.core.shapes import DecoderShape

from .decoder_only import DecoderOnly, stack_of
from .parts import Affine, Embedding, Norm, Parts

__all__ = ["GPT2ResidualDecoder"]


class GPT2ResidualDecoder(DecoderOnly):
    """`ResidualDecoder` of a `GPT2LMHeadModel` or of a class that keeps its module names.

    The options that change the scale of the scores (`scale_attn_weights`,
    `scale_attn_by_inverse_layer_idx`) are followed; `reorder_and_upcast_attn` changes the rounding
    of half precision alone and is not.
    """

    def __init__(self, model: nn.Module) -> None:
        """Wrap a decoder.

        Args:
            model: a decoder with GPT-2's module names.

        Raises:
            ConfigError: the model has no output projection, or was given cross-attention.
        """
        self._stack = _stack(model)
        super().__init__(model, _shape(model, self._stack), self._stack.h)

    def embed(self, ids: Tensor) -> Tensor:
        """Return [B, T, d] = E[ids] + P[positions], for ids [B, T]."""
        tokens, longest = ids.shape[1], self.shape.positions
        if tokens > longest:
            raise DataError(
                f"Decoder input: got {tokens} tokens, the position table allows {longest}; "
                "shorten the text"
            )
        positions = torch.arange(tokens, device=ids.device)
        x: Tensor = self._stack.wte(ids) + self._stack.wpe(positions)
        return x

    @property
    def embedding(self) -> Embedding:
        """The tables of the token embedding."""
        return Embedding(self._stack.wte.weight, 1.0, self._stack.wpe.weight)

    @property
    def final_norm(self) -> Norm:
        """The stack's last LayerNorm."""
        return _norm(self._stack.ln_f)

    def _feed(self, layer: Any) -> Parts:
        mlp = layer.mlp
        return Parts(
            _norm(layer.ln_2), _affine(mlp.c_proj), up=_affine(mlp.c_fc), activation=mlp.act
        )

    def _attention(self, layer: Any) -> Parts:
        attention = layer.attn
        project = _affine(attention.c_proj)
        heads = project.weight.shape[1] // self.shape.head_dim
        query, key, value = _thirds(attention.c_attn)
        return Parts(
            _norm(layer.ln_1),
            project,
            query=query,
            key=key,
            value=value,
            heads=heads,
            groups=heads,
            score_scale=attention.scaling,
        )


def _affine(conv: Any) -> Affine:
    return Affine(conv.weight.T, conv.bias)


def _thirds(conv: Any) -> tuple[Affine, Affine, Affine]:
    """Return the three projections that one holds behind one another, as views."""
    weights, biases = conv.weight.T.chunk(3), conv.bias.chunk(3)
    query, key, value = (Affine(w, b) for w, b in zip(weights, biases, strict=True))
    return query, key, value


def _norm(norm: Any) -> Norm:
    return Norm(norm.weight, norm.bias, norm.eps)


def _stack(model: nn.Module) -> Any:
    """Return the decoder stack, or say why the model has no residual view."""
    needed = ("wte", "wpe", "h", "ln_f")
    stack = stack_of(model, "transformer", needed, "GPT-2", "GPT2LMHeadModel")
    if getattr(model.config, "add_cross_attention", False):
        raise ConfigError(
            f"Decoder {type(model).__name__}: got add_cross_attention True, allowed is False: the "
            "view of GPT-2 is that of a decoder that reads no encoder; choose a checkpoint without "
            "cross-attention, or an mbart decoder where a page is to be read"
        )
    return stack


def _shape(model: Any, stack: Any) -> DecoderShape:
    """Read the sizes; head width and tables come from the weights."""
    config = model.config
    return DecoderShape(
        layers=len(stack.h),
        d_model=config.hidden_size,
        heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        ffn=4 * config.hidden_size if config.n_inner is None else config.n_inner,
        vocabulary=stack.wte.num_embeddings,
        encoder_width=0,
        positions=stack.wpe.num_embeddings,
        tied=model.lm_head.weight is stack.wte.weight,
    )
