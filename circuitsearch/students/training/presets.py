"""Mixes of losses named after the papers that used them.

A row holds what the paper says about its loss and, in `source`, where this is read and what the
paper leaves open; no value is made up. Steps, learning rate and temperature are the recipe's own.
Where papers average over all positions, over layers or over the vocabulary, the losses here are
means over answer tokens: mixes are comparable, sizes are not those of the papers' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["PRESETS", "Preset", "Weight"]

Weight = float | Literal["balanced"]
"""Factor of a loss; `balanced` makes its term as large as the reference's on the first batches."""


@dataclass(frozen=True)
class Preset:
    """A mix of losses.

    Attributes:
        losses: names of `losses.LOSSES` with their weights, the reference of balanced ones first.
        source: the paper, and which part of the mix is not in it.
    """

    losses: tuple[tuple[str, Weight], ...]
    source: str


PRESETS: dict[str, Preset] = {
    "donut-mint": Preset(
        (("cross_entropy", 1.0), ("forward_kl", "balanced")),
        "Donut-MINT (arXiv 2509.26235, section 3.5, equation 1): CE + weight * KL of softened "
        "distributions, both terms of similar size. How and when the weight is measured, and the "
        "temperature, are not given.",
    ),
    "puzzle": Preset(
        (("forward_kl", 1.0), ("hidden_cosine", 1.0)),
        "Puzzle (arXiv 2411.19146): KL with cosine of hidden states; leaving the language-model "
        "loss out is reported as best. Weights and layers were not verified: both weights are 1, "
        "and the layer map decides the places.",
    ),
    "vlm-compression": Preset(
        (("cross_entropy", 0.5), ("hidden_mse", 0.5)),
        "VLMCompression (arXiv 2604.24380): (1 - a) * CE + a * L2 of the last hidden states, "
        "reported as best at every size; a = .5 in its InternVL script. There the L2 is a mean "
        "over all positions of the last hidden state, which Hugging Face takes behind the final "
        "norm; `end` is in front of it.",
    ),
    "minitron": Preset(
        (("forward_kl", 1.0), ("hidden_mse", "balanced"), ("cross_attention_kl", "balanced")),
        "Minitron (arXiv 2407.14679): KL of logits alone while depth is kept, with a loss of "
        "hidden states when much depth is cut; not verified, weights included, which are therefore "
        "balanced. The cross-attention term is ours: Minitron's models have no cross-attention.",
    ),
    "kl": Preset(
        (("forward_kl", 1.0),),
        "The reference: the mean over answer tokens of KL(teacher | student), times T^2 "
        "(Hinton et al., arXiv 1503.02531).",
    ),
}
"""Presets by name, as a search file names them (`distill.preset`)."""
