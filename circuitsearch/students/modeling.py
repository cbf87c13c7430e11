"""The student as a Hugging Face model: an mBART decoder whose layers hold only what a plan keeps.

`CircuitMBartConfig` is mBART's config plus two fields. `plan` needs no teacher to rebuild the
model; it lists, per decoder layer, how much of each sub-layer is there, and 0 says that the
sub-layer is absent:

    "plan": [{"self_heads": 0, "cross_heads": 9, "ffn": 512}, ...],   "plan_text": "C0[0-8] M0:512"

A name instead of a number says what stands in for the sub-layer: "mean" adds a constant vector,
"linear" adds an affine map of the LayerNormed stream, and the cross-attention "alone" is whole, but
its write becomes the stream instead of being added to it. "token" says that the stream behind this
sub-layer is the embedding of a token that depends on the input token alone: nothing in front of it
is there, and the decoder looks its input ids up in `token_map` [V] (a buffer of integers) before it
embeds them.

`plan_text` is the plan itself: which of the teacher's heads these are. Width of one head, stream
and vocabulary are the teacher's. An absent sub-layer is a None module with a None LayerNorm; a
narrower attention has fewer q, k, v rows and out_proj columns, for which mBART's attention needs no
other forward. Layers keep their numbers, empty ones too (they cost nothing and return their
input), so that `C3` of a student is `C3` of its teacher.

The key-value cache needs care. transformers reads the number of tokens seen so far, hence every
position, from entry 0 of the self-attention cache. Surviving self-attentions are therefore numbered
0, 1, ... in the cache, whatever layer they sit in. When none survives, layer 0 caches one zero per
token in their place: a clock that keeps the length right for generation with and without cache,
for beams and for cropping.

This module uses torch and transformers only and registers nothing: the file travels with every
checkpoint (see `remote`), also to where circuitsearch and its own classes are installed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Cache,
    EncoderDecoderCache,
    MBartConfig,
    MBartForCausalLM,
)
from transformers.activations import ACT2FN
from transformers.models.mbart.modeling_mbart import (
    MBartAttention,
    MBartDecoder,
    MBartDecoderLayer,
    MBartDecoderWrapper,
)

__all__ = ["PARTS", "REPLACEMENTS", "CircuitMBartConfig", "CircuitMBartForCausalLM"]

PARTS = ("self_heads", "cross_heads", "ffn")
"""Keys of one layer's entry in `CircuitMBartConfig.plan`, in execution order."""

REPLACEMENTS = {
    "self_heads": ("mean", "linear", "token"),
    "cross_heads": ("mean", "linear", "alone", "token"),
    "ffn": ("mean", "linear", "token"),
}
"""Names that may stand in such an entry instead of a number."""

Size = int | str
"""Heads or neurons kept, or the name of a replacement."""


class CircuitMBartConfig(MBartConfig):  # type: ignore[misc]
    """mBART's config and what each decoder layer keeps.

    Attributes:
        plan: one entry per decoder layer, `{"self_heads": int, "cross_heads": int, "ffn": int}`;
            0 means absent, a name of `REPLACEMENTS` replaced. None keeps everything.
        plan_text: canonical text of the plan, with the teacher's head numbers.
    """

    model_type = "circuit_mbart"
    # A decoder only: caches must be sized by its layers, not by those of mBART's unused encoder.
    attribute_map = {  # noqa: RUF012 - transformers' own declaration
        "num_attention_heads": "decoder_attention_heads",
        "hidden_size": "d_model",
        "num_hidden_layers": "decoder_layers",
    }

    plan: list[dict[str, Size]] | None = None
    plan_text: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse a plan that does not fit the sizes; all faults together."""
        super().__post_init__(**kwargs)
        problems = _plan_problems(self)
        if problems:
            raise ValueError("plan of a circuit_mbart config: " + "; ".join(problems))

    def layer_plan(self, layer: int) -> dict[str, Size]:
        """Return the heads and neurons that `layer` keeps, or their replacements."""
        if self.plan is not None:
            return self.plan[layer]
        heads = self.decoder_attention_heads
        return dict(zip(PARTS, (heads, heads, self.decoder_ffn_dim), strict=True))


def _plan_problems(config: CircuitMBartConfig) -> list[str]:
    """Describe what is wrong with a config's plan."""
    if config.plan is None:
        return []
    heads = config.decoder_attention_heads
    most = dict(zip(PARTS, (heads, heads, config.decoder_ffn_dim), strict=True))
    problems = []
    if len(config.plan) != config.decoder_layers:
        problems.append(f"got {len(config.plan)} layers, allowed are {config.decoder_layers}")
    written: list[Any] = list(config.plan)  # by whoever wrote config.json
    for layer, entry in enumerate(written):
        if not isinstance(entry, dict):
            problems.append(f"layer {layer}: got {entry!r}, allowed is what it keeps by part")
            continue
        if set(entry) != set(PARTS):
            problems.append(f"layer {layer} has {sorted(entry)}, allowed are {sorted(PARTS)}")
            continue
        problems += [
            f"layer {layer} {part}: got {size!r}, allowed are 0 to {most[part]} and "
            f"{', '.join(REPLACEMENTS[part])}"
            for part, size in entry.items()
            if size not in REPLACEMENTS[part]
            and not (isinstance(size, int) and 0 <= size <= most[part])
        ]
    sizes = [] if problems else _sizes(config)
    if "token" in sizes and any(sizes[: len(sizes) - sizes[::-1].index("token") - 1]):
        problems.append("something is kept in front of 'token', allowed are zeros")
    return problems


def _sizes(config: CircuitMBartConfig) -> list[Size]:
    """Return what the plan keeps of every sub-layer, in execution order; absent entries are 0."""
    return [entry.get(part, 0) for entry in config.plan or () for part in PARTS]


_PARTS_OF_LAYER = (
    "self_attn",
    "self_attn_layer_norm",
    "self_attn_replacement",
    "encoder_attn",
    "encoder_attn_layer_norm",
    "encoder_attn_replacement",
    "fc1",
    "fc2",
    "final_layer_norm",
    "ffn_replacement",
)


class CircuitMBartConstant(nn.Module):
    """A sub-layer's stand-in that writes the same vector at every position.

    Args:
        width: width of the stream.
    """

    def __init__(self, width: int) -> None:
        """Begin with zero."""
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., d] for x [..., any width], whose numbers are not read."""
        # a copy: torch's module trackers (the flop counter's) refuse a view of a parameter
        return self.bias.expand(*x.shape[:-1], -1).clone()


def _attention(config: MBartConfig, heads: int, slot: int, *, causal: bool) -> MBartAttention:
    """Build mBART's attention with fewer heads; `slot` is its entry in the key-value cache."""
    with torch.device("meta"):  # full-size projections, replaced at once
        attention = MBartAttention(
            embed_dim=config.d_model,
            num_heads=config.decoder_attention_heads,
            dropout=config.attention_dropout,
            is_decoder=True,
            is_causal=causal,
            config=config,
            layer_idx=slot,
        )
    width = heads * attention.head_dim
    attention.num_heads = heads
    for name in ("q_proj", "k_proj", "v_proj"):
        setattr(attention, name, nn.Linear(config.d_model, width))
    attention.out_proj = nn.Linear(width, config.d_model)
    return attention


class CircuitMBartDecoderLayer(MBartDecoderLayer):  # type: ignore[misc]
    """mBART's decoder layer with optional sub-layers.

    Args:
        config: the student's config.
        layer: number of the layer.
        slot: entry of its self-attention in the key-value cache.
        keeps_time: whether the layer counts tokens in the cache, because no self-attention does.
    """

    def __init__(self, config: CircuitMBartConfig, layer: int, slot: int, keeps_time: bool) -> None:
        """Build the sub-layers that the plan keeps."""
        super(MBartDecoderLayer, self).__init__()  # not mBART's: it would build everything
        sizes = config.layer_plan(layer)
        self.embed_dim = config.d_model
        self.dropout = config.dropout
        self.activation_dropout = config.activation_dropout
        self.activation_fn = ACT2FN[config.activation_function]
        self.keeps_time = keeps_time
        for name in _PARTS_OF_LAYER:
            setattr(self, name, None)
        self.cross_alone = sizes["cross_heads"] == "alone"
        self_heads, ffn = sizes["self_heads"], sizes["ffn"]
        cross_heads = config.decoder_attention_heads if self.cross_alone else sizes["cross_heads"]
        if isinstance(self_heads, str):
            self._replace("self_attn", "self_attn_layer_norm", self_heads)
        elif self_heads:
            self.self_attn = _attention(config, self_heads, slot, causal=True)
            self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        if isinstance(cross_heads, str):
            self._replace("encoder_attn", "encoder_attn_layer_norm", cross_heads)
        elif cross_heads:
            self.encoder_attn = _attention(config, cross_heads, layer, causal=False)
            self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)
        if isinstance(ffn, str):
            self._replace("ffn", "final_layer_norm", ffn)
        elif ffn:
            self.fc1 = nn.Linear(config.d_model, ffn)
            self.fc2 = nn.Linear(ffn, config.d_model)
            self.final_layer_norm = nn.LayerNorm(config.d_model)

    def _replace(self, part: str, norm: str, name: str) -> None:
        """Build what stands in for a sub-layer; a constant reads nothing and has no LayerNorm."""
        if name == "token":
            return  # the decoder's business: it embeds other tokens
        width = self.embed_dim
        if name == "linear":
            setattr(self, norm, nn.LayerNorm(width))
        stand_in = nn.Linear(width, width) if name == "linear" else CircuitMBartConstant(width)
        setattr(self, f"{part}_replacement", stand_in)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = True,
        **kwargs: Any,
    ) -> Tensor:
        """Return the stream [B, T, d] after the sub-layers that are there."""
        x = hidden_states
        if self.self_attn is not None:
            written, _ = self.self_attn(
                hidden_states=self.self_attn_layer_norm(x),
                past_key_values=past_key_values,
                attention_mask=attention_mask,
                **kwargs,
            )
            x = x + self._dropped(written, self.dropout)
        elif self.keeps_time and past_key_values is not None:
            _count_tokens(past_key_values, x)
        x = self._replaced(x, self.self_attn_layer_norm, self.self_attn_replacement)
        if self.encoder_attn is not None and encoder_hidden_states is not None:
            written, _ = self.encoder_attn(
                hidden_states=self.encoder_attn_layer_norm(x),
                key_value_states=encoder_hidden_states,
                attention_mask=encoder_attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
            written = self._dropped(written, self.dropout)
            x = written if self.cross_alone else x + written
        x = self._replaced(x, self.encoder_attn_layer_norm, self.encoder_attn_replacement)
        if self.fc1 is not None:
            neurons = self.activation_fn(self.fc1(self.final_layer_norm(x)))
            written = self.fc2(self._dropped(neurons, self.activation_dropout))
            x = x + self._dropped(written, self.dropout)
        return self._replaced(x, self.final_layer_norm, self.ffn_replacement)

    def _replaced(self, x: Tensor, norm: nn.Module | None, replacement: nn.Module | None) -> Tensor:
        """Add what a replacement writes to the stream x [B, T, d]; nothing where there is none."""
        if replacement is None:
            return x
        written: Tensor = replacement(x if norm is None else norm(x))
        return x + self._dropped(written, self.dropout)

    def _dropped(self, tensor: Tensor, share: float) -> Tensor:
        return nn.functional.dropout(tensor, p=share, training=self.training)


def _count_tokens(cache: Cache, x: Tensor) -> None:
    """Append one zero per token of x [B, T, d] to entry 0 of the self-attention cache."""
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    tick = x.new_zeros(x.shape[0], 1, x.shape[1], 1)  # [B, heads, T, head width]
    own.update(tick, tick, 0)


class CircuitMBartDecoder(MBartDecoder):  # type: ignore[misc]
    """mBART's decoder stack made of `CircuitMBartDecoderLayer`."""

    def __init__(self, config: CircuitMBartConfig) -> None:
        """Build the stack by the config's plan."""
        bare = type(config)(**{**config.to_dict(), "decoder_layers": 0, "plan": None})
        super().__init__(bare)  # embeddings and norms; the layers follow
        self.config = config
        sizes = [config.layer_plan(layer)["self_heads"] for layer in range(config.decoder_layers)]
        heads = [0 if isinstance(size, str) else size for size in sizes]
        self.layers = nn.ModuleList(
            CircuitMBartDecoderLayer(
                config,
                layer,
                slot=sum(kept > 0 for kept in heads[:layer]),
                keeps_time=layer == 0 and not any(heads),
            )
            for layer in range(config.decoder_layers)
        )
        identity = torch.arange(config.vocab_size) if "token" in _sizes(config) else None
        self.register_buffer("token_map", identity)
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Run mBART's decoder; where there is a `token_map`, on the tokens that it gives.

        Embeddings that are passed instead of ids are taken as they are.
        """
        if self.token_map is not None and input_ids is not None:
            input_ids = self.token_map[input_ids]
        return super().forward(input_ids, *args, **kwargs)


class CircuitMBartDecoderWrapper(MBartDecoderWrapper):  # type: ignore[misc]
    """The level that mBART puts between model and stack; keeps its parameter names."""

    def __init__(self, config: CircuitMBartConfig) -> None:
        """Build the stack."""
        super(MBartDecoderWrapper, self).__init__(config)
        self.decoder = CircuitMBartDecoder(config)
        self.post_init()


class CircuitMBartForCausalLM(MBartForCausalLM):  # type: ignore[misc]
    """`MBartForCausalLM` with the sub-layers, heads and neurons that its config's plan keeps."""

    config_class = CircuitMBartConfig
    _no_split_modules = ["CircuitMBartDecoderLayer", "MBartAttention"]  # noqa: RUF012

    def __init__(self, config: CircuitMBartConfig) -> None:
        """Build the decoder and its output projection."""
        config.is_decoder = True
        config.is_encoder_decoder = False
        super(MBartForCausalLM, self).__init__(config)
        self.model = CircuitMBartDecoderWrapper(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()
