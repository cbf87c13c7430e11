"""Unstructured pruning: weights that are zero and stay zero while the student trains.

Inside `masked` the pruned weights are set to zero and their gradients are multiplied by zero before
the trainer sees them. AdamW then has moments of exactly zero for them, so that its step is
0 / (0 + eps) = 0, and weight decay of zero is zero: a trainer needs no change, and the zeros are
exact after any number of steps.

Zeros are kept in dense matrices. A masked student is as large on disk and in memory as its teacher
and needs 100 % of its multiply-adds; what a budget in parameters counts is its non-zero weights
(https://github.com/locuslab/wanda issues 14, 29 and 81 ask for the gain that is not there).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from circuitsearch.core.components import SubLayer
from circuitsearch.core.errors import ConfigError, DataError, raise_together
from circuitsearch.core.files import write_bytes
from circuitsearch.teacher.decoders import ResidualDecoder

__all__ = ["MAPS", "Masks", "masked", "matrices"]

MAPS = ("query", "key", "value", "up", "gate", "project")
"""Names of the matrices of a sub-layer (`teacher.decoders.Parts`)."""


@dataclass(frozen=True)
class Masks:
    """Which weights stay.

    Attributes:
        kept: [out, in] of bool by parameter name of the decoder; False is pruned.
    """

    kept: Mapping[str, Tensor]

    @property
    def weights(self) -> int:
        """Number of weights of the matrices, pruned ones included."""
        return sum(kept.numel() for kept in self.kept.values())

    @property
    def zeros(self) -> int:
        """Number of pruned weights."""
        return self.weights - sum(int(kept.sum()) for kept in self.kept.values())

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any bit."""
        return hashlib.sha256(save(self._tensors())).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write the masks as one safetensors file, atomically.

        Raises:
            StorageError: the file cannot be written.
        """
        write_bytes(path, save(self._tensors()))

    @classmethod
    def load(cls, path: str | Path) -> Masks:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing or damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                return cls({name: file.get_tensor(name) for name in sorted(file.keys())})
        except (OSError, SafetensorError) as error:
            raise DataError(f"{str(path)!r}: no masks can be read from it ({error})") from error

    def _tensors(self) -> dict[str, Tensor]:
        return {name: self.kept[name].cpu().contiguous() for name in sorted(self.kept)}


def matrices(view: ResidualDecoder) -> dict[tuple[SubLayer, str], tuple[str, nn.Parameter]]:
    """Return the weight matrices of all sub-layers: name and parameter, by sub-layer and map."""
    model: Any = view
    names = {id(parameter): name for name, parameter in model.model.named_parameters()}
    found = {}
    for sublayer in view.sublayers:
        parts = view.parts(sublayer)
        for one in MAPS:
            affine = getattr(parts, one)
            if affine is not None:
                found[sublayer, one] = (names[id(affine.weight)], affine.weight)
    return found


@contextmanager
def masked(view: ResidualDecoder, masks: Masks) -> Iterator[None]:
    """Zero the pruned weights, and keep them zero whatever trains inside the context.

    Args:
        view: a whole student's decoder whose layers may train.
        masks: which weights stay.

    Raises:
        ConfigError: the decoder has no such matrices, or they are frozen; all faults together.
    """
    model: Any = view
    parameters = dict(model.model.named_parameters())
    problems = []
    for name, kept in masks.kept.items():
        if name not in parameters:
            problems.append(f"{name}: the decoder has no such matrix")
        elif parameters[name].shape != kept.shape:
            shape = tuple(parameters[name].shape)
            problems.append(f"{name}: got {tuple(kept.shape)}, the decoder's is {shape}")
        elif not parameters[name].requires_grad:
            problems.append(f"{name} is frozen; give a student that build_student made")
    raise_together(problems, ConfigError, "Masks")
    hooks = []
    for name, kept in masks.kept.items():
        parameter = parameters[name]
        gone = ~kept.to(parameter.device)
        with torch.no_grad():
            parameter.masked_fill_(gone, 0.0)
        hooks.append(parameter.register_hook(_Zeroing(gone)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Zeroing:
    """Sets gradients of pruned weights to zero."""

    def __init__(self, gone: Tensor) -> None:
        self._gone = gone

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient.masked_fill(self._gone, 0.0)
