"""Means of what is removed, folded into biases that are kept. It costs no parameter.

Let E be an average over pages, x_R what the removed heads or neurons R of a kept sub-layer carry
and W its output projection. Removing R and setting

    b_out <- b_out + W[:, R] E[x_R]

is the same as giving R their means (FLAP, arXiv 2312.11983). A sub-layer that is removed whole and
wrote c = E[f(x)] leaves the stream c short from its place on. c goes into the output bias of the
nearest kept sub-layer before it: nothing kept reads the stream between the two, so no reader sees c
too early, and every later one sees it. Where nothing kept stands before it, c goes into the bias of
the embedding's LayerNorm, which is the stream's beginning. Both are exact for every plan as long as
the means are constants; means by position are not, and are refused. What stands in for a sub-layer
(`M1=mean`, `S0=linear`, `C3=alone`) is kept in this sense, and has an output bias like any other.
Behind `M0=token` the stream is an embedding that already holds what stood in front: nothing from in
front is folded, and its beginning is the embedding's.
A beginning that is replaced by a table of tokens (`C0=token`) lacks no means, and the embedding's
LayerNorm is its output bias.

The means are the teacher's own. Behind a removed part the student's differ; distillation starts
from here all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from circuitsearch.core.components import SubLayer
from circuitsearch.core.errors import ConfigError, raise_together
from circuitsearch.core.plan import Plan
from circuitsearch.discovery.ablation import Means
from circuitsearch.teacher.decoders import ResidualDecoder

__all__ = ["EMBEDDING_BIAS", "fold_means"]

EMBEDDING_BIAS = "model.decoder.layernorm_embedding.bias"


def fold_means(
    weights: dict[str, Tensor],
    view: ResidualDecoder,
    plan: Plan,
    units: Mapping[SubLayer, Sequence[int]],
    means: Means,
    bias_of: Mapping[SubLayer, str],
) -> None:
    """Add the means of removed parts to the biases of a student's weights, in place.

    Args:
        weights: the student's state dict; its tensors are its own.
        view: the whole decoder that the student is sliced from.
        plan: what the student keeps.
        units: kept heads or neurons of each kept sub-layer that has any.
        means: averages of the whole decoder's units.
        bias_of: name of the output bias of each sub-layer that the plan keeps or replaces,
            `EMBEDDING_BIAS` where the stream begins anew behind it.

    Raises:
        ConfigError: the means are by position, or lack a sub-layer.
    """
    if means.by_position:
        raise ConfigError(
            "Compensating removed parts: got means by position, and a bias is the same at every "
            "position; give unit_means(decoder, sample) without by_position"
        )
    missing = [f"no mean of {one}" for one in view.sublayers if one not in means.units]
    raise_together(missing, ConfigError, "Compensating removed parts")
    place = EMBEDDING_BIAS
    replaced = [sublayer for sublayer, keep in plan.kept if keep.prefix]
    with torch.no_grad():
        for sublayer in view.sublayers:
            if replaced and sublayer < replaced[0]:
                continue
            if sublayer not in plan:
                mean = means.units[sublayer]
                # units [H, hd] or [F] as those of one position
                weights[place] += view.project(sublayer, mean[None, None])[0, 0]
                continue
            place = bias_of[sublayer]
            if sublayer in units:
                weights[place] += _dropped(view, sublayer, units[sublayer], means.units[sublayer])


def _dropped(
    view: ResidualDecoder, sublayer: SubLayer, kept: Sequence[int], mean: Tensor
) -> Tensor:
    """Return [d], what the dropped heads or neurons of a sub-layer write on average."""
    dropped = mean.clone()
    dropped[list(kept)] = 0.0
    weight = view.parts(sublayer).project.weight
    return weight @ dropped.flatten()
