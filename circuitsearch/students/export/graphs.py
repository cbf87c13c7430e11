"""A student as two graphs without a cache object: what is remembered goes in and comes out by name.

    encoder   pixel_values [B, 3, height, width] -> states [B, N, E], C2.keys, C2.values, ...
    decoder   ids [B, T], positions [T], S1.keys, S1.values, ..., C2.keys, C2.values, ...
              -> logits [B, V] of the last token, S1.keys.new, S1.values.new, ...

Keys and values of a cross-attention depend on the page alone, so the encoder's graph computes them,
once per page. Those of a self-attention grow with the text: a step gives the decoder all P earlier
tokens' as `S1.keys` [B, H, P, hd] and gets back [B, H, P + T, hd]. With P = 0 and the whole prompt
the same graph is the prefill. H is what the plan keeps of that sub-layer; an absent sub-layer has
no input and no output. `positions` says where the T tokens stand, so that plans without any
self-attention know it too.

The modules read mBART's names (a student's or the stock class's), see `teacher.decoders.mbart`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from circuitsearch.core.components import Kind, SubLayer

__all__ = ["DecoderGraph", "EncoderGraph", "remembering"]

_OFFSET = 2  # mBART's position table starts two rows late
_ATTENTION = {Kind.SELF: "self_attn", Kind.CROSS: "encoder_attn"}


def remembering(decoder: Any, kind: Kind) -> dict[SubLayer, tuple[int, int]]:
    """Return the attentions of a kind that a decoder has, with their heads and head width.

    Args:
        decoder: a Hugging Face decoder with mBART's module names.
        kind: self- or cross-attention.
    """
    found = {}
    for layer, modules in enumerate(decoder.model.decoder.layers):
        attention = getattr(modules, _ATTENTION[kind])
        if attention is not None:
            width = attention.head_dim
            found[SubLayer.at(layer, kind)] = (attention.k_proj.out_features // width, width)
    return found


class EncoderGraph(nn.Module):
    """The page's side of a student: encoder, projection, and the keys and values read from it.

    Args:
        model: `VisionEncoderDecoderModel` in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        """Take the model's modules; nothing is copied."""
        super().__init__()
        self.encoder = model.encoder
        self.projection = getattr(model, "enc_to_dec_proj", None)
        layers = model.decoder.model.decoder.layers
        self.attentions = nn.ModuleList(
            layers[sublayer.layer].encoder_attn
            for sublayer in remembering(model.decoder, Kind.CROSS)
        )

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Return states [B, N, E], then keys and values [B, H, N, hd] of each cross-attention."""
        states = self.encoder(pixel_values=pixel_values).last_hidden_state
        if self.projection is not None:
            states = self.projection(states)
        attentions: Any = self.attentions
        read = (
            _by_head(project(states), attention.head_dim)
            for attention in attentions
            for project in (attention.k_proj, attention.v_proj)
        )
        return (states, *read)


class DecoderGraph(nn.Module):
    """The text's side of a student: some tokens in, logits and grown keys and values out.

    Args:
        decoder: a Hugging Face decoder with mBART's module names, in evaluation mode.
    """

    def __init__(self, decoder: Any) -> None:
        """Take the decoder's modules; nothing is copied."""
        super().__init__()
        self.stack = decoder.model.decoder
        self.readout = decoder.lm_head

    def forward(
        self, ids: Tensor, positions: Tensor, own: Sequence[Tensor], page: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Run T tokens.

        Args:
            ids: [B, T] token ids.
            positions: [T] where they stand, counted from 0.
            own: keys and values [B, H, P, hd] of each self-attention in turn, of all P tokens
                before these.
            page: keys and values [B, H, N, hd] of each cross-attention in turn.

        Returns:
            Logits [B, V] of the last token, then keys and values [B, H, P + T, hd] of each
            self-attention.
        """
        stack: Any = self.stack
        if getattr(stack, "token_map", None) is not None:
            ids = stack.token_map[ids]
        x = stack.embed_tokens(ids) + stack.embed_positions.weight[positions + _OFFSET]
        x = stack.layernorm_embedding(x)
        grown: list[Tensor] = []
        remembered, read = list(own), list(page)
        for layer in stack.layers:
            if layer.self_attn is not None:
                x, kept = _self_attention(layer, x, positions, remembered[:2])
                grown, remembered = grown + kept, remembered[2:]
            x = _replaced(layer, x, "self_attn")
            if layer.encoder_attn is not None:
                written = _attended(
                    layer.encoder_attn, layer.encoder_attn_layer_norm(x), read[0], read[1]
                )
                read = read[2:]
                x = written if getattr(layer, "cross_alone", False) else x + written
            x = _replaced(layer, x, "encoder_attn")
            if layer.fc1 is not None:
                x = x + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))
            x = _replaced(layer, x, "ffn")
        return (self.readout(stack.layer_norm(x[:, -1])), *grown)


def _self_attention(
    layer: Any, x: Tensor, positions: Tensor, remembered: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return the stream behind a self-attention and its keys and values, these tokens' included."""
    attention = layer.self_attn
    normed = layer.self_attn_layer_norm(x)
    kept = [
        torch.cat([before, _by_head(project(normed), attention.head_dim)], dim=2)
        for before, project in zip(remembered, (attention.k_proj, attention.v_proj), strict=True)
    ]
    places = torch.arange(kept[0].shape[2], device=x.device)
    seen = places[None, :] <= positions[:, None]
    return x + _attended(attention, normed, kept[0], kept[1], seen), kept


def _attended(
    attention: Any, normed: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None = None
) -> Tensor:
    """Return what an attention writes [B, T, d]; `seen` [T, P + T] says who may look at whom."""
    queries = _by_head(attention.q_proj(normed), attention.head_dim) * attention.scaling
    scores = queries @ keys.transpose(2, 3)
    if seen is not None:
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    carried = (scores.softmax(dim=-1) @ values).transpose(1, 2).flatten(2)
    written: Tensor = attention.out_proj(carried)
    return written


def _by_head(projected: Tensor, width: int) -> Tensor:
    """Return [B, H, T, hd] of [B, T, H * hd]."""
    batch, tokens, _ = projected.shape
    return projected.view(batch, tokens, -1, width).transpose(1, 2)


def _replaced(layer: Any, x: Tensor, part: str) -> Tensor:
    """Return the stream behind what stands in for a sub-layer, if anything does."""
    replacement = getattr(layer, f"{part}_replacement", None)
    if replacement is None:
        return x
    norm = getattr(layer, "final_layer_norm" if part == "ffn" else f"{part}_layer_norm")
    written: Tensor = replacement(x if norm is None else norm(x))
    return x + written
