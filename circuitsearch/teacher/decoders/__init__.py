"""Adapters: one file per decoder architecture, each giving the view of `protocol.ResidualDecoder`.

To add an architecture, write a class that satisfies the protocol, enter it in `REGISTRY` under the
`model_type` of its config, and let `tests/conformance/test_residual_decoder.py` run over it. Only
pre-LayerNorm stacks qualify: where LayerNorm is applied *after* adding, the stream is not a sum of
writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from circuitsearch.core.errors import ConfigError

from .gpt2 import GPT2ResidualDecoder
from .llama import LlamaResidualDecoder
from .mbart import MBartResidualDecoder
from .parts import Affine, Embedding, Norm, Parts
from .protocol import (
    Memory,
    ResidualDecoder,
    answer_loss,
    continue_from,
    nearest_tokens,
    run,
    stream_loss,
    token_loss,
    write,
)

__all__ = [
    "REGISTRY",
    "Affine",
    "Embedding",
    "GPT2ResidualDecoder",
    "LlamaResidualDecoder",
    "MBartResidualDecoder",
    "Memory",
    "Norm",
    "Parts",
    "ResidualDecoder",
    "answer_loss",
    "continue_from",
    "nearest_tokens",
    "residual_decoder",
    "run",
    "stream_loss",
    "token_loss",
    "write",
]

REGISTRY: dict[str, Callable[[Any], ResidualDecoder]] = {
    "mbart": MBartResidualDecoder,
    "circuit_mbart": MBartResidualDecoder,
    "gpt2": GPT2ResidualDecoder,
    "llama": LlamaResidualDecoder,
    "mistral": LlamaResidualDecoder,
    "qwen2": LlamaResidualDecoder,
}
"""Adapter by the decoder config's `model_type`."""

_POST_LAYERNORM = frozenset(
    {"bart", "bert", "blenderbot-small", "camembert", "florence2", "marian", "roberta", "trocr"}
    | {"xlm-roberta"}
)
"""Common decoders that normalise after adding, named so that the refusal can give the reason."""


def residual_decoder(model: Any) -> ResidualDecoder:
    """Return the residual-stream view of a decoder.

    Args:
        model: a `VisionEncoderDecoderModel`, or the decoder itself.

    Raises:
        ConfigError: no adapter fits the decoder's architecture.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind == "vision-encoder-decoder":
        model, kind = model.decoder, model.decoder.config.model_type
    adapter = REGISTRY.get(str(kind))
    if adapter is not None:
        return adapter(model)
    reason = (
        "it normalises after adding (post-LN), so its stream is not a sum of what sub-layers write"
        if kind in _POST_LAYERNORM
        else "no adapter is registered for it"
    )
    raise ConfigError(
        f"Decoder {type(model).__name__} (model_type {kind!r}) cannot be searched: {reason}. "
        f"Allowed are {', '.join(sorted(REGISTRY))}; choose such a checkpoint, or add an adapter "
        "in circuitsearch/teacher/decoders"
    )
