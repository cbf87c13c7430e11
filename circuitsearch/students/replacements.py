"""What stands in for a sub-layer: the fitted numbers as a record, and one step under them.

`fitting` says what the numbers are and how they come about; `core.keep` what each replacement
computes with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from circuitsearch.core.components import SubLayer
from circuitsearch.core.errors import ConfigError, DataError, PlanError
from circuitsearch.core.files import write_bytes
from circuitsearch.core.keep import REPLACEMENTS, Keep
from circuitsearch.core.plan import Plan
from circuitsearch.core.shapes import DecoderShape
from circuitsearch.teacher.decoders import Affine, Memory, ResidualDecoder, write

__all__ = ["FITTED", "Replacements", "is_table", "replaced", "token_map"]

FITTED: tuple[str, ...] = tuple(name for name, one in REPLACEMENTS.items() if one.fitted)
"""Names of the replacements that need numbers fitted to the teacher."""

_FORMAT = "circuitsearch replacements 1"


@dataclass(frozen=True)
class Replacements:
    """Fitted numbers by sub-layer, float32 but for the tables.

    Attributes:
        means: [d] mean writes.
        maps: affine maps of the LN'd stream, weight [d, d] and bias [d].
        tokens: [V] int64 tables of tokens, for beginnings that end with the sub-layer.
        fitted_to: hash of everything they were fitted to, where that is known.
    """

    means: Mapping[SubLayer, Tensor] = field(default_factory=dict)
    maps: Mapping[SubLayer, Affine] = field(default_factory=dict)
    tokens: Mapping[SubLayer, Tensor] = field(default_factory=dict)
    fitted_to: str | None = None

    def check(self, plan: Plan, shape: DecoderShape) -> None:
        """Refuse a plan that needs numbers which are not there, or are of another decoder.

        Args:
            plan: the plan.
            shape: sizes of the decoder.

        Raises:
            ConfigError: names every entry without numbers, and what to pass.
        """
        problems = []
        weights = {sublayer: one.weight for sublayer, one in self.maps.items()}
        fitted: dict[str, tuple[Mapping[SubLayer, Tensor], str, int]] = {
            "mean": (self.means, "a stream of width", shape.d_model),
            "linear": (weights, "a stream of width", shape.d_model),
            "token": (self.tokens, "a vocabulary of size", shape.vocabulary),
        }
        for sublayer, keep in plan.kept:
            if keep.replacement not in FITTED:
                continue
            found, what, size = fitted[keep.replacement]
            if sublayer not in found:
                problems.append(f"nothing is fitted for {sublayer}{keep}")
            elif found[sublayer].shape[-1] != size:
                problems.append(
                    f"{sublayer}{keep} was fitted to {what} {found[sublayer].shape[-1]}, "
                    f"this decoder's is {size}"
                )
        if problems:
            raise ConfigError(
                f"Plan {str(plan)!r}: {'; '.join(problems)}. Pass replacements="
                "fit_replacements(view, features, sublayers), fitted to this decoder for these "
                "sub-layers"
            )

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of what the numbers were fitted to, or of all numbers; part of every key.

        Another processor rounds a fit otherwise: its workers belong to the same study all the same.
        """
        if self.fitted_to is not None:
            return self.fitted_to[:16]
        return hashlib.sha256(save(self._tensors())).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write the numbers as one safetensors file, atomically.

        Raises:
            StorageError: the file cannot be written.
        """
        write_bytes(path, save(self._tensors(), metadata={"format": _FORMAT}))

    def to(self, device: torch.device) -> Replacements:
        """Return the same numbers on a device."""
        means = {sublayer: mean.to(device) for sublayer, mean in self.means.items()}
        maps = {
            sublayer: Affine(
                one.weight.to(device), None if one.bias is None else one.bias.to(device)
            )
            for sublayer, one in self.maps.items()
        }
        tokens = {sublayer: table.to(device) for sublayer, table in self.tokens.items()}
        return Replacements(means, maps, tokens, self.fitted_to)

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
            raise DataError(
                f"{where}: cannot be read ({error}); delete the file, they are fitted again"
            ) from error
        if not known:
            raise DataError(
                f"{where}: it was not written by Replacements.save; delete the file, they are "
                "fitted again"
            )
        try:
            parsed = {SubLayer.parse(key.split(".")[0]) for key in tensors}
            means = {s: tensors.pop(f"{s}.mean") for s in sorted(parsed) if f"{s}.mean" in tensors}
            maps = {
                s: Affine(tensors.pop(f"{s}.weight"), tensors.pop(f"{s}.bias"))
                for s in sorted(parsed)
                if f"{s}.weight" in tensors
            }
            tables = {s: tensors.pop(f"{s}.map") for s in sorted(parsed) if f"{s}.map" in tensors}
        except (KeyError, PlanError) as error:
            raise DataError(f"{where}: it is damaged ({error}); fit them again") from error
        if any(not is_table(table) for table in tables.values()):
            raise DataError(f"{where}: a table of tokens is damaged; fit them again")
        return cls(means, maps, tables)

    def _tensors(self) -> dict[str, Tensor]:
        """Return all numbers by name, e.g. `S0.mean`, `M1.weight`, `M1.bias`, `C0.map`."""
        tensors = {f"{sublayer}.mean": mean for sublayer, mean in sorted(self.means.items())}
        for sublayer, one in sorted(self.maps.items()):
            tensors[f"{sublayer}.weight"] = one.weight
            if one.bias is not None:
                tensors[f"{sublayer}.bias"] = one.bias
        tensors |= {f"{sublayer}.map": table for sublayer, table in sorted(self.tokens.items())}
        return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}


def replaced(
    view: ResidualDecoder,
    sublayer: SubLayer,
    name: str,
    fitted: Replacements,
    x: Tensor,
    memory: Memory,
    ids: Tensor | None = None,
) -> Tensor:
    """Return [B, T, d], the stream behind a sub-layer that is replaced.

    Args:
        view: a whole decoder; gives the LayerNorm of `linear` and the write of `alone`.
        sublayer: what is replaced.
        name: by what, a name of `core.keep.REPLACEMENTS`.
        fitted: numbers for all but `alone`, on the view's device.
        x: [B, T, d] the stream before it.
        memory: what cross-attention reads.
        ids: [B, T] the input tokens, from which `token` starts again.

    Raises:
        PlanError: the sub-layer cannot be replaced so.
        ConfigError: nothing was fitted for it, or the tokens are missing.
    """
    plan = Plan(((sublayer, Keep(replacement=name)),))
    fitted.check(plan, view.shape)
    if name == "token":
        if ids is None:
            raise ConfigError(f"{plan}: what is behind it depends on the tokens alone; pass ids")
        return view.embed(fitted.tokens[sublayer].to(ids.device)[ids])
    if name == "mean":
        return x + fitted.means[sublayer]
    if name == "linear":
        return x + fitted.maps[sublayer](view.parts(sublayer).norm(x))
    return write(view, sublayer, x, memory)


def token_map(plan: Plan, fitted: Replacements) -> Tensor | None:
    """Return the table [V] through which a plan's student reads its tokens; None without one."""
    ends = [sublayer for sublayer, keep in plan.kept if keep.prefix]
    return fitted.tokens[ends[0]] if ends else None


def is_table(table: Tensor) -> bool:
    """Whether this is a vector of tokens of a vocabulary as long as it is."""
    if table.dtype != torch.int64 or table.ndim != 1:
        return False
    return bool(((table >= 0) & (table < len(table))).all())
