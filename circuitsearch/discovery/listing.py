"""What a decoder has: its components in order, and its wiring; and joined per-batch results."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import torch
from torch import Tensor

from circuitsearch.core.components import Head, Kind, SubLayer
from circuitsearch.core.errors import ConfigError
from circuitsearch.teacher.decoders import ResidualDecoder

from .wiring import Wiring

__all__ = ["components_of", "joined", "wiring_of"]


def components_of(decoder: ResidualDecoder) -> list[SubLayer | Head]:
    """Return every sub-layer and head that is present, each sub-layer followed by its heads.

    Raises:
        ConfigError: the decoder's stream is not a sum of writes.
    """
    _check_sum(decoder)
    found: list[SubLayer | Head] = []
    for sublayer in decoder.sublayers:
        found.append(sublayer)
        if sublayer.kind is not Kind.FEED:
            found += [Head(sublayer, i) for i in range(decoder.parts(sublayer).heads)]
    return found


def wiring_of(decoder: ResidualDecoder, level: str = "sublayers", *, split: bool = False) -> Wiring:
    """Return the wiring of a decoder.

    Raises:
        ConfigError: the level is unknown, or the decoder's stream is not a sum of writes.
    """
    _check_sum(decoder)
    attentions = {s: decoder.parts(s) for s in decoder.sublayers if s.kind is not Kind.FEED}
    return Wiring.of(
        decoder.sublayers,
        {s: parts.heads for s, parts in attentions.items()},
        {s: parts.groups for s, parts in attentions.items()},
        level,
        split,
    )


def _check_sum(decoder: ResidualDecoder) -> None:
    """Refuse a student whose plan replaces the stream (`C3=alone`): nothing adds up behind it."""
    alone = sorted(getattr(decoder, "alone", ()))
    if alone:
        raise ConfigError(
            f"Discovery: in this student {', '.join(map(str, alone))} replaces the stream instead "
            "of adding to it, so components and edges have no additive effects; analyse its "
            "teacher, or a student whose plan has no '=alone'"
        )


def joined(parts: Collection[Tensor] | Iterator[Tensor]) -> np.ndarray:
    """Join per-batch values into one float64 array."""
    parts = list(parts)
    if not parts:
        return np.zeros(0)
    joined: np.ndarray = torch.cat(parts).detach().double().cpu().numpy()
    return joined
