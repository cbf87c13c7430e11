"""mBART's decoder as a residual stream (Donut's decoder, and circuitsearch's students of it).

Module names are those of transformers 5 (`MBartForCausalLM`): `model.decoder` holds `embed_tokens`
(scaled by sqrt(d) when `config.scale_embedding`), `embed_positions` (learned, offset 2),
`layernorm_embedding`, `layers[i]` and the final `layer_norm`; `lm_head` has no bias. Embedding
LayerNorm belongs to `embed`, the final one to `readout`.

A student's layer may miss parts. The agreed form is: an absent sub-layer has its module *and* its
LayerNorm set to None (`self_attn` with `self_attn_layer_norm`; `encoder_attn` with
`encoder_attn_layer_norm`; `fc1` and `fc2` with `final_layer_norm`), and a narrower attention has
sliced q/k/v rows and out_proj columns, its head count being rows // head_dim. A replaced sub-layer
is absent but for its replacement (`self_attn_replacement`, `encoder_attn_replacement` or
`ffn_replacement`), a module that maps the LN'd stream to the write, or is a constant where the
LayerNorm is None too; in a layer with `cross_alone` the write of the cross-attention is the stream
behind it. Where everything up to a sub-layer is replaced by a table of tokens (`C0=token`), the
stack has that table (`token_map`), through which `embed` reads its tokens, and none of these
sub-layers. Nothing else changes, so one adapter serves teacher and student.

Where encoder and decoder widths differ, VisionEncoderDecoderModel projects the encoder's output
once (`enc_to_dec_proj`). That projection is the teacher's business (`loading.Teacher.encode`): the
states handed to `memory` are already d wide, as mBART's cross-attention expects them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.core.shapes import DecoderShape

from .parts import Affine, Embedding, Norm, Parts
from .protocol import Memory
from .stream import StreamDecoder

__all__ = ["MBartResidualDecoder"]

_OFFSET = 2
"""mBART's position table starts two rows late (a relic of fairseq's padding index)."""

_ATTENTION = {Kind.SELF: "self_attn", Kind.CROSS: "encoder_attn"}
_NORM = {
    Kind.SELF: "self_attn_layer_norm",
    Kind.CROSS: "encoder_attn_layer_norm",
    Kind.FEED: "final_layer_norm",
}
_REPLACEMENT = {
    Kind.SELF: "self_attn_replacement",
    Kind.CROSS: "encoder_attn_replacement",
    Kind.FEED: "ffn_replacement",
}


class MBartResidualDecoder(StreamDecoder):
    """`ResidualDecoder` of an `MBartForCausalLM` or of a class that keeps its module names.

    Attributes:
        alone: cross-attentions of a student whose write is the stream behind them (see `step`).
    """

    def __init__(self, model: nn.Module) -> None:
        """Wrap a decoder.

        Args:
            model: a decoder with mBART's module names.

        Raises:
            ConfigError: the stack is not pre-LayerNorm mBART.
        """
        stack: Any = _stack(model)
        self.model: Any = model
        self._stack: Any = stack
        self.shape = _shape(self.model.config, stack, self.model.lm_head)
        self.sublayers = tuple(
            SubLayer.at(i, kind)
            for i, layer in enumerate(stack.layers)
            for kind in Kind
            if _present(layer, kind)
        )
        self.alone = frozenset(
            SubLayer.at(i, Kind.CROSS)
            for i, layer in enumerate(stack.layers)
            if getattr(layer, "cross_alone", False)
        )

    def embed(self, ids: Tensor) -> Tensor:
        """Return [B, T, d] = LN(sqrt(d) * E[ids] + P[positions + 2]), for ids [B, T].

        A student with a table of tokens puts these through it first.
        """
        stack = self._stack
        longest = self.shape.positions - _OFFSET
        if ids.shape[1] > longest:
            raise DataError(
                f"Decoder input: got {ids.shape[1]} tokens, the position table allows {longest}; "
                "shorten the question or the answer"
            )
        if self._token_map is not None:
            ids = self._token_map[ids]
        x: Tensor = stack.layernorm_embedding(stack.embed_tokens(ids) + stack.embed_positions(ids))
        return x

    @property
    def embedding(self) -> Embedding:
        """Scaled token rows and position rows; their LayerNorm is part of `embed`.

        Behind a student's table of tokens, the row of a token is that of the token it becomes.
        """
        tokens, positions = self._stack.embed_tokens, self._stack.embed_positions
        table = tokens.weight if self._token_map is None else tokens.weight[self._token_map]
        return Embedding(table, tokens.embed_scale, positions.weight[_OFFSET:])

    @property
    def _token_map(self) -> Tensor | None:
        """The student's table of tokens [V], if it has one."""
        table: Tensor | None = getattr(self._stack, "token_map", None)
        return table

    @property
    def final_norm(self) -> Norm:
        """The stack's last LayerNorm."""
        return _norm(self._stack.layer_norm)

    def memory(
        self,
        states: Tensor,
        rows: Tensor | None = None,
        sublayers: Collection[SubLayer] | None = None,
    ) -> Memory:
        """Return keys and values [P, H, N, hd]; a replaced cross-attention reads no page."""
        wanted = self.sublayers if sublayers is None else sublayers
        reading = [sublayer for sublayer in wanted if self._replacement(sublayer) is None]
        return super().memory(states, rows, reading)

    def units(self, sublayer: SubLayer, x: Tensor, memory: Memory) -> Tensor:
        """Return head outputs or neurons; of a replacement the LN'd stream [B, T, d] or [B, T, 0].

        A linear replacement carries what it reads, a constant carries nothing.
        """
        if self._replacement(sublayer) is None:
            return super().units(sublayer, x, memory)
        norm = getattr(self._stack.layers[sublayer.layer], _NORM[sublayer.kind])
        return x[..., :0] if norm is None else _norm(norm)(x)

    def project(self, sublayer: SubLayer, units: Tensor) -> Tensor:
        """Return the write [B, T, d]: by the output projection, or by the replacement."""
        replacement = self._replacement(sublayer)
        if replacement is None:
            return super().project(sublayer, units)
        written: Tensor = replacement(units)
        return written

    def _replacement(self, sublayer: SubLayer) -> Any:
        """Return the module that stands in for a sub-layer, or None."""
        return getattr(self._stack.layers[sublayer.layer], _REPLACEMENT[sublayer.kind], None)

    def parts(self, sublayer: SubLayer) -> Parts:
        """Return the sub-layer's LayerNorm, projections and activation.

        Raises:
            ConfigError: the sub-layer is replaced, so nothing of this is there.
        """
        if self._replacement(sublayer) is not None:
            raise ConfigError(
                f"{sublayer}: this student has a replacement there, without heads or neurons to "
                "look into; choose a decoder whose sub-layers are its own, such as the teacher's"
            )
        layer = self._stack.layers[sublayer.layer]
        norm = _norm(getattr(layer, _NORM[sublayer.kind]))
        if sublayer.kind is Kind.FEED:
            return Parts(
                norm, _affine(layer.fc2), up=_affine(layer.fc1), activation=layer.activation_fn
            )
        attention = getattr(layer, _ATTENTION[sublayer.kind])
        heads = attention.q_proj.out_features // self.shape.head_dim
        return Parts(
            norm,
            _affine(attention.out_proj),
            query=_affine(attention.q_proj),
            key=_affine(attention.k_proj),
            value=_affine(attention.v_proj),
            heads=heads,
            groups=heads,
            score_scale=attention.scaling,
        )


def _affine(linear: Any) -> Affine:
    return Affine(linear.weight, linear.bias)


def _norm(norm: Any) -> Norm:
    return Norm(norm.weight, norm.bias, norm.eps)


def _stack(model: nn.Module) -> Any:
    """Return the decoder stack, or say why the model has no residual view."""
    wrapper: Any = getattr(model, "model", None)
    stack: Any = getattr(wrapper, "decoder", None)
    needed = ("embed_tokens", "embed_positions", "layernorm_embedding", "layers", "layer_norm")
    missing = [name for name in needed if getattr(stack, name, None) is None]
    if missing or getattr(model, "lm_head", None) is None:
        raise ConfigError(
            f"Decoder {type(model).__name__}: it lacks {', '.join(missing) or 'lm_head'} of a "
            "pre-LayerNorm mBART stack. A stack without a final layer_norm normalises after adding "
            "(post-LN), so its stream is not a sum of writes and cannot be searched; "
            "choose a checkpoint whose decoder is MBartForCausalLM"
        )
    return stack


def _shape(config: Any, stack: Any, head: Any) -> DecoderShape:
    """Read the sizes of the full decoder; head width and tables come from the weights."""
    return DecoderShape(
        layers=len(stack.layers),
        d_model=config.d_model,
        heads=config.decoder_attention_heads,
        head_dim=config.d_model // config.decoder_attention_heads,
        ffn=config.decoder_ffn_dim,
        vocabulary=stack.embed_tokens.num_embeddings,
        encoder_width=config.d_model,
        positions=stack.embed_positions.num_embeddings,
        tied=head.weight is stack.embed_tokens.weight,
    )


def _present(layer: Any, kind: Kind) -> bool:
    """Tell whether a layer has the sub-layer or a replacement; absent ones are None modules."""
    names = ("fc1" if kind is Kind.FEED else _ATTENTION[kind], _REPLACEMENT[kind])
    return any(getattr(layer, name, None) is not None for name in names)
