"""What stands in for a sub-layer: mean writes and affine maps, fitted to a decoder's activations.

With z = LN(x), what a sub-layer reads at a position, and w, what it writes there,

    mean     c = average of w over the positions that predict an answer token
    linear   A, b = argmin sum |w - A z - b|^2 + l |A|^2 over all positions, l = ridge * tr(S) / d

where S [d, d] is the sum of (z - mean z)(z - mean z)^T. In closed form A = W (S + l I)^-1, with
W the sum of (w - mean w)(z - mean z)^T, and b = mean w - A mean z. The mean is taken where the loss
is, since nothing else decides an answer; the map is fitted on the prompt too, because later
self-attentions read what it writes there. Both are fitted to the decoder as it is, one sub-layer at
a time: nothing is fitted again behind another replacement.

FLAP (arXiv 2312.11983) puts the mean of what it removes into a bias; ReplaceMe (arXiv 2505.02819)
puts a map fitted in closed form in the place of whole blocks.

Sums are kept in float64 and taken batch by batch, 2 d^2 + O(d) numbers per sub-layer. The order of
batches is fixed, so the same decoder and pages give the same numbers bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from circuitsearch.core.components import SubLayer
from circuitsearch.core.errors import (
    ConfigError,
    DataError,
    PlanError,
    choice_problem,
    number_problems,
    raise_together,
)
from circuitsearch.core.files import write_bytes
from circuitsearch.core.keep import REPLACEMENTS, Keep
from circuitsearch.core.plan import Plan
from circuitsearch.teacher.decoders import Affine, Memory, ResidualDecoder, write
from circuitsearch.teacher.documents.collate import IGNORED

from .feature_reader import Features

__all__ = ["FITTED", "Replacements", "fit_replacements", "replaced"]

FITTED: tuple[str, ...] = tuple(name for name, one in REPLACEMENTS.items() if one.fitted)
"""Names of the replacements that need numbers fitted to the teacher."""

_RIDGE = 1e-4
_FORMAT = "circuitsearch replacements 1"


@dataclass(frozen=True)
class Replacements:
    """Fitted numbers by sub-layer, float32.

    Attributes:
        means: [d] mean writes.
        maps: affine maps of the LN'd stream, weight [d, d] and bias [d].
    """

    means: Mapping[SubLayer, Tensor] = field(default_factory=dict)
    maps: Mapping[SubLayer, Affine] = field(default_factory=dict)

    def check(self, plan: Plan, width: int) -> None:
        """Refuse a plan that needs numbers which are not there, or are of another decoder.

        Args:
            plan: the plan.
            width: width of the decoder's stream, d.

        Raises:
            ConfigError: names every entry without numbers, and what to pass.
        """
        problems = []
        weights = {sublayer: one.weight for sublayer, one in self.maps.items()}
        for sublayer, keep in plan.kept:
            if keep.replacement not in FITTED:
                continue
            found = self.means if keep.replacement == "mean" else weights
            if sublayer not in found:
                problems.append(f"nothing is fitted for {sublayer}{keep}")
            elif found[sublayer].shape[-1] != width:
                problems.append(
                    f"{sublayer}{keep} was fitted to a stream of width "
                    f"{found[sublayer].shape[-1]}, this decoder's is {width}"
                )
        if problems:
            raise ConfigError(
                f"Plan {str(plan)!r}: {'; '.join(problems)}. Pass replacements="
                "fit_replacements(view, features, sublayers), fitted to this decoder for these "
                "sub-layers"
            )

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any number; part of every key of what is built on it."""
        return hashlib.sha256(save(self._tensors())).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write the numbers as one safetensors file, atomically.

        Raises:
            StorageError: the file cannot be written.
        """
        write_bytes(path, save(self._tensors(), metadata={"format": _FORMAT}))

    @classmethod
    def load(cls, path: str | Path) -> Replacements:
        """Read what `save` wrote; the numbers are on the CPU.

        Raises:
            DataError: the file is missing, damaged or something else.
        """
        where = f"Replacements {str(path)!r}"
        try:
            with safe_open(path, framework="pt") as file:
                known = (file.metadata() or {}).get("format") == _FORMAT
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(f"{where}: cannot be read ({error}); fit them again") from error
        if not known:
            raise DataError(f"{where}: it was not written by Replacements.save; fit them again")
        try:
            parsed = {SubLayer.parse(key.split(".")[0]) for key in tensors}
            means = {s: tensors.pop(f"{s}.mean") for s in sorted(parsed) if f"{s}.mean" in tensors}
            maps = {
                s: Affine(tensors.pop(f"{s}.weight"), tensors.pop(f"{s}.bias"))
                for s in sorted(parsed)
                if f"{s}.weight" in tensors
            }
        except (KeyError, PlanError) as error:
            raise DataError(f"{where}: it is damaged ({error}); fit them again") from error
        return cls(means, maps)

    def _tensors(self) -> dict[str, Tensor]:
        """Return all numbers by name, e.g. `S0.mean`, `M1.weight`, `M1.bias`."""
        tensors = {f"{sublayer}.mean": mean for sublayer, mean in sorted(self.means.items())}
        for sublayer, one in sorted(self.maps.items()):
            tensors[f"{sublayer}.weight"] = one.weight
            if one.bias is not None:
                tensors[f"{sublayer}.bias"] = one.bias
        return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}


def replaced(
    view: ResidualDecoder,
    sublayer: SubLayer,
    name: str,
    fitted: Replacements,
    x: Tensor,
    memory: Memory,
) -> Tensor:
    """Return [B, T, d], the stream behind a sub-layer that is replaced.

    Args:
        view: a whole decoder; gives the LayerNorm of `linear` and the write of `alone`.
        sublayer: what is replaced.
        name: by what, a name of `core.keep.REPLACEMENTS`.
        fitted: numbers for `mean` and `linear`, on the view's device.
        x: [B, T, d] the stream before it.
        memory: what cross-attention reads.

    Raises:
        PlanError: the sub-layer cannot be replaced so.
        ConfigError: nothing was fitted for it.
    """
    plan = Plan(((sublayer, Keep(replacement=name)),))
    fitted.check(plan, x.shape[-1])
    if name == "mean":
        return x + fitted.means[sublayer]
    if name == "linear":
        return x + fitted.maps[sublayer](view.parts(sublayer).norm(x))
    return write(view, sublayer, x, memory)


def fit_replacements(
    view: ResidualDecoder,
    features: Features,
    sublayers: Collection[SubLayer],
    *,
    names: Collection[str] = FITTED,
    examples: Sequence[int] | None = None,
    ridge: float = _RIDGE,
    batch_size: int = 64,
) -> Replacements:
    """Fit means and maps for sub-layers, in one pass over the pages.

    Args:
        view: the whole decoder whose activations count: the teacher's, or an elastic teacher's.
        features: cached states of the fitting pages (training pages, not those that judge).
        sublayers: what may be replaced.
        names: which of `FITTED` to fit.
        examples: indices of the examples to use; None uses all.
        ridge: penalty of a map, in units of the mean variance of what the sub-layer reads.
        batch_size: examples per pass.

    Returns:
        The numbers, on the view's device.

    Raises:
        ConfigError: unknown names, a ridge that is not positive, or sub-layers that the decoder
            lacks; all faults together.
        DataError: there are no examples.
    """
    _check_arguments(view, sublayers, names, ridge)
    chosen = list(range(len(features.examples))) if examples is None else list(examples)
    if not chosen:
        raise DataError("Fitting replacements: there are no examples; give pages with questions")
    sums = {sublayer: _Sums() for sublayer in sorted(sublayers)}
    with torch.no_grad():
        for first in range(0, len(chosen), batch_size):
            _add_batch(view, features, chosen[first : first + batch_size], sums, "linear" in names)
    return Replacements(
        means={s: one.mean() for s, one in sums.items()} if "mean" in names else {},
        maps={s: one.map(ridge) for s, one in sums.items()} if "linear" in names else {},
    )


@dataclass
class _Sums:
    """Running sums of one sub-layer in float64; `gram` and `cross` only where maps are fitted.

    Rows of reads and writes carry a 1 in the last place, so that means are sums like the others.
    """

    answers: Any = 0.0  # [d + 1] sum of writes over answer positions, and their number
    gram: Any = 0.0  # [d + 1, d + 1] sum of read read^T over all positions
    cross: Any = 0.0  # [d + 1, d] sum of read write^T over all positions

    def mean(self) -> Tensor:
        """Return [d], the mean write."""
        mean: Tensor = self.answers[:-1] / self.answers[-1]
        return mean.float()

    def map(self, ridge: float) -> Affine:
        """Return the ridge solution (module docstring)."""
        gram, cross = self.gram, self.cross
        count, read, written = gram[-1, -1], gram[-1, :-1], cross[-1]
        scatter = gram[:-1, :-1] - torch.outer(read, read) / count
        shared = cross[:-1] - torch.outer(read, written) / count
        # reads that never vary predict nothing, but rounding leaves some scatter to fit
        least = torch.clamp(1e-8 * gram.diagonal()[:-1].mean(), min=1e-30)
        penalty = torch.maximum(ridge * scatter.diagonal().mean(), least)
        weight = torch.linalg.solve(scatter + penalty * torch.eye(len(read)).to(scatter), shared)
        bias = (written - read @ weight) / count
        return Affine(weight.T.float().contiguous(), bias.float())


def _add_batch(
    view: ResidualDecoder,
    features: Features,
    chosen: Sequence[int],
    sums: Mapping[SubLayer, _Sums],
    maps: bool,
) -> None:
    """Run one batch and add what the sub-layers read and write to their sums."""
    model: Any = view
    device = next(model.model.parameters()).device
    read = features.read(chosen)
    labels = read.batch.labels.to(device)
    answers = labels != IGNORED
    # padding stands on the right, behind the last label
    used = answers.flip(1).cummax(dim=1).values.flip(1)
    memory = view.memory(read.states.to(device), read.rows.to(device))
    x = view.embed(read.batch.ids.to(device))
    for sublayer in view.sublayers:
        written = write(view, sublayer, x, memory)
        if sublayer in sums:
            one = sums[sublayer]
            one.answers = one.answers + _with_one(written[answers]).sum(dim=0)
            if maps:
                rows = _with_one(view.parts(sublayer).norm(x)[used])
                one.gram = one.gram + rows.T @ rows
                one.cross = one.cross + rows.T @ written[used].double()
        x = x + written


def _with_one(rows: Tensor) -> Tensor:
    """Return rows [n, d] as float64 with a last column of ones."""
    return functional.pad(rows.double(), (0, 1), value=1.0)


def _check_arguments(
    view: ResidualDecoder, sublayers: Collection[SubLayer], names: Collection[str], ridge: float
) -> None:
    """Refuse what cannot be fitted; all faults together."""
    problems = [choice_problem("names", name, FITTED) for name in names if name not in FITTED]
    problems += number_problems("ridge", ridge, low=1e-12)
    problems += [
        f"sublayers: got {sublayer}, allowed are {', '.join(map(str, view.sublayers))}"
        for sublayer in sorted(sublayers)
        if sublayer not in view.sublayers
    ]
    raise_together(problems, ConfigError, "Fitting replacements")
