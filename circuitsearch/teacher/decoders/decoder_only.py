"""What the adapters of decoder-only models share: sub-layers S and M alone, no pages to read.

An adapter finds its stack with `stack_of` and says where the pieces of a layer's self-attention and
feed-forward are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import nn

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import ConfigError, PlanError
from circuitsearch.core.shapes import DecoderShape

from .parts import Parts
from .stream import StreamDecoder

__all__ = ["DecoderOnly", "stack_of"]


class DecoderOnly(StreamDecoder):
    """A `StreamDecoder` whose layer i has the sub-layers S_i and M_i."""

    def __init__(self, model: nn.Module, shape: DecoderShape, layers: Sequence[Any]) -> None:
        """Wrap a decoder.

        Args:
            model: a decoder with an output projection `lm_head`.
            shape: its sizes.
            layers: its layers, in execution order.
        """
        self.model = model
        self.shape = shape
        self.sublayers = tuple(
            SubLayer.at(i, kind) for i in range(shape.layers) for kind in (Kind.SELF, Kind.FEED)
        )
        self._layers = layers

    def parts(self, sublayer: SubLayer) -> Parts:
        """Return the sub-layer's norm, projections and activation.

        Raises:
            PlanError: a cross-attention is asked for.
        """
        if sublayer.kind is Kind.CROSS:
            raise PlanError(
                f"{sublayer}: this decoder has no cross-attention; allowed are its S and M"
            )
        layer = self._layers[sublayer.layer]
        return self._feed(layer) if sublayer.kind is Kind.FEED else self._attention(layer)

    @abstractmethod
    def _attention(self, layer: Any) -> Parts:
        """Return the pieces of a layer's self-attention."""

    @abstractmethod
    def _feed(self, layer: Any) -> Parts:
        """Return the pieces of a layer's feed-forward."""


def stack_of(model: nn.Module, name: str, needed: Sequence[str], kind: str, remedy: str) -> Any:
    """Return the decoder stack of a model that also has an output projection.

    Args:
        model: the model to look into.
        name: attribute that holds the stack.
        needed: attributes that the stack must have.
        kind: what such a stack is called.
        remedy: how the checkpoint is to be loaded.

    Raises:
        ConfigError: something is missing; all of it is named.
    """
    stack: Any = getattr(model, name, None)
    missing = [f"{name}.{part}" for part in needed if not hasattr(stack, part)]
    if not hasattr(model, "lm_head"):
        missing.append("lm_head")
    if missing:
        raise ConfigError(
            f"Decoder {type(model).__name__}: it lacks {', '.join(missing)}, so it is not {kind} "
            f"with an output projection; load the checkpoint as {remedy}"
        )
    return stack
