"""How much of a cross-attention's attention falls on given places of the page, head by head."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch

from circuitsearch.core.components import SubLayer
from circuitsearch.teacher.decoders import ResidualDecoder, write

from ...lens.attention_maps import attention_map
from ...lens.positions import located_batches
from ...sample import Sample

__all__ = ["place_shares"]

Places = Sequence[Sequence[int]]
"""The encoder tokens of each example's place; may be empty."""


def place_shares(
    decoder: ResidualDecoder,
    sample: Sample,
    sublayers: Collection[SubLayer],
    places: Mapping[str, Places],
) -> dict[tuple[str, str], np.ndarray]:
    """Return the shares of attention at the last prompt token.

    Args:
        decoder: the view.
        sample: the questions.
        sublayers: cross-attentions.
        places: by name, where to look on the page of each of the n examples.

    Returns:
        [n, H] by (sub-layer, name of the place).
    """
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    with torch.no_grad():
        for at in located_batches(sample, "answer_start"):
            memory = decoder.memory(at.states, at.batch.pages)
            x = decoder.embed(at.batch.ids)
            for sublayer in decoder.sublayers:
                if sublayer in sublayers:
                    weights = attention_map(decoder, sublayer, x, memory, at.spots)
                    for name, place in places.items():
                        shares = [
                            weights[row][:, list(place[at.first + row])].sum(dim=-1)
                            for row in range(len(weights))
                        ]
                        column = torch.stack(shares).double().cpu().numpy()
                        found.setdefault((sublayer.name, name), []).append(column)
                x = x + write(decoder, sublayer, x, memory)
    return {key: np.concatenate(parts) for key, parts in found.items()}
