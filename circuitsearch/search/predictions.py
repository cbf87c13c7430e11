"""Predictions: what a plan will need of a measured limit, as a sum over what it keeps.

Latency and memory are known for a plan only once its student was measured, and no search can
measure every plan. A handful of plans is measured first (`calibration_plans`), and

    figure(plan) = fixed + sum over kept S, C, M of (opening[kind] + per unit[kind] * units)
                         + sum over replacements of replaced[kind=name]

is fitted to their figures by least squares with coefficients from 0, each plan weighted by 1/figure
so that errors count as shares. What else runs on a machine can only make a figure too high, so a
plan far off the others counts less: Huber's weights (Ann. Math. Stat. 35:73, 1964) with a bend at
the tolerance. Sub-layers of one kind have the same sizes, so they share their
coefficients. The prediction only decides what is proposed; before a plan becomes a trial its
student is measured (`study`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from scipy.optimize import nnls

from circuitsearch.core.components import Kind, SubLayer, sublayers
from circuitsearch.core.errors import ConfigError, PlanError
from circuitsearch.core.files import record_fields, seed_from
from circuitsearch.core.keep import WHOLE, Keep
from circuitsearch.core.plan import Plan, units_kept
from circuitsearch.core.shapes import DecoderShape
from circuitsearch.search.units import Choices, Part, parts_of, reads_page

__all__ = ["TOLERANCE_PERCENT", "Prediction", "calibration_plans", "fit_prediction"]

TOLERANCE_PERCENT = 5
"""How far beyond a measured limit, in percent of it, a plan may be predicted and still be proposed:
about what predictions err by. The measurement then decides."""

_ROUNDS = 20
"""Fits of which each weighs plans by the errors of the one before; the first weighs all alike."""
_RANDOM = 6
"""Random plans among those measured first."""


@dataclass(frozen=True)
class Prediction:
    """Linear prediction of one measured quantity, in its unit (nanoseconds, bytes).

    Attributes:
        fixed: what every student needs.
        openings: what a sub-layer needs as soon as any of it stays, by kind (`S`, `C`, `M`).
        per_unit: what each of its heads or neurons needs, by kind.
        replaced: what a replacement needs, e.g. by `C=mean`.
        error: largest relative error on the plans that it was fitted to.
        where: device and threads of the measurements.
    """

    fixed: int
    openings: Mapping[str, float] = field(default_factory=dict)
    per_unit: Mapping[str, float] = field(default_factory=dict)
    replaced: Mapping[str, float] = field(default_factory=dict)
    error: float = 0.0
    where: str = ""

    def entry(self, sublayer: SubLayer, keep: Keep, shape: DecoderShape) -> int:
        """Return what keeping this of a sub-layer is predicted to need, rounded.

        Raises:
            ConfigError: nothing of that kind was measured.
        """
        missing = f"Prediction: nothing is known of {sublayer}{keep}; measure plans that keep it"
        if keep.replacement is not None:
            name = f"{sublayer.kind.value}={keep.replacement}"
            if name not in self.replaced:
                raise ConfigError(missing)
            return round(self.replaced[name])
        kind = sublayer.kind.value
        if kind not in self.openings and kind not in self.per_unit:
            raise ConfigError(missing)
        units = units_kept(sublayer, keep, shape)
        return round(self.openings.get(kind, 0.0) + self.per_unit.get(kind, 0.0) * units)

    def total(self, plan: Plan, shape: DecoderShape) -> int:
        """Return what the student of a plan is predicted to need."""
        return self.fixed + sum(self.entry(one, keep, shape) for one, keep in plan.kept)

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as plain JSON; `from_json` reads it back equal."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Prediction:
        """Read what `to_json` wrote.

        Raises:
            DataError: a field is missing or unknown.
        """
        return cls(**record_fields(cls, data))


def fit_prediction(
    measured: Sequence[tuple[Plan, int]], shape: DecoderShape, where: str = ""
) -> Prediction:
    """Fit a prediction to measured plans.

    Where only one size of a kind was measured, its cost is put on the opening.

    Args:
        measured: plans with their figures, each above 0.
        shape: the decoder's sizes.
        where: device and threads of the measurements.

    Raises:
        ConfigError: there is no figure, or one is not above 0.
    """
    if not measured or any(figure <= 0 for _, figure in measured):
        raise ConfigError("Prediction: got no plan, or a figure that is not above 0")
    plans = [plan.fitted(shape) for plan, _ in measured]
    sizes: dict[str, set[int]] = {}
    for plan in plans:
        for one, keep in plan.kept:
            if keep.replacement is None:
                sizes.setdefault(one.kind.value, set()).add(units_kept(one, keep, shape))
    names = ["", *sorted(sizes)]
    names += [f"{kind}*" for kind in sorted(sizes) if len(sizes[kind]) > 1]
    names += sorted(
        {f"{one.kind.value}={k.replacement}" for p in plans for one, k in p.kept if k.replacement}
    )
    table = np.array([[_amount(plan, name, shape) for name in names] for plan in plans])
    figures = np.array([figure for _, figure in measured], dtype=np.float64)
    # Columns of about 1, so that neurons do not outweigh sub-layers in the solver's tolerance.
    scale = np.maximum(table.max(axis=0), 1.0)
    shares = table / scale / figures[:, None]
    weights = np.ones(len(figures))
    for _ in range(_ROUNDS):
        found, _ = nnls(shares * weights[:, None], weights)
        errors = np.abs(shares @ found - 1.0)
        weights = np.sqrt(np.minimum(1.0, TOLERANCE_PERCENT / 100 / np.maximum(errors, 1e-12)))
    found = found / scale
    error = float(errors.max())
    known = {name: float(value) for name, value in zip(names, found, strict=True)}
    return Prediction(
        fixed=round(known.pop("")),
        openings={name: value for name, value in known.items() if len(name) == 1},
        per_unit={name[0]: value for name, value in known.items() if name.endswith("*")},
        replaced={name: value for name, value in known.items() if "=" in name},
        error=error,
        where=where,
    )


def _amount(plan: Plan, name: str, shape: DecoderShape) -> float:
    """Return how often a plan has what a coefficient stands for (names of `fit_prediction`)."""
    if not name:
        return 1.0
    if "=" in name:
        return float(sum(f"{one.kind.value}={k.replacement}" == name for one, k in plan.kept))
    kept = [
        units_kept(one, keep, shape)
        for one, keep in plan.kept
        if keep.replacement is None and one.kind.value == name[0]
    ]
    return float(sum(kept) if name.endswith("*") else len(kept))


def calibration_plans(shape: DecoderShape, choices: Choices) -> list[Plan]:
    """Return the plans to measure before a prediction is fitted; a dozen for whole sub-layers.

    They are the whole decoder and the last cross-attention alone, each of them with all sub-layers
    of one kind turned to each of its forms (skipped, smallest, middle size, each replacement), one
    for each beginning that can be replaced, and a few random plans.

    Args:
        shape: the decoder's sizes.
        choices: what the space offers.
    """
    parts = parts_of(shape, replace(choices, within=()))
    reader = SubLayer.at(shape.layers - 1, Kind.CROSS)
    full = {sublayer: WHOLE for sublayer in sublayers(shape.layers)}
    found: list[Plan] = []
    for base in (full, {reader: WHOLE}):
        found += _plan(base)
        for kind in Kind:
            places = [part for part in parts if part.sublayer.kind is kind]
            for form in _forms(places[0]):
                changed = {one: keep for one, keep in base.items() if one.kind is not kind}
                for part in places:
                    keep = base.get(part.sublayer) if part.sublayer == reader else form(part)
                    changed |= {} if keep is None else {part.sublayer: keep}
                found += _plan(changed)
    for unit in (unit for part in parts for unit in part.units if unit.prefix):
        behind = {one: keep for one, keep in full.items() if one > unit.sublayer}
        found += _plan({unit.sublayer: unit.keep, **behind})
    turn = 0
    wanted = len(set(found)) + _RANDOM
    while len(set(found)) < wanted and turn < 20 * _RANDOM:
        drawn = {part.sublayer: _drawn(part, turn) for part in parts}
        found += _plan({one: keep for one, keep in drawn.items() if keep is not None})
        turn += 1
    return list(dict.fromkeys(found))


def _forms(part: Part) -> list[Callable[[Part], Keep | None]]:
    """Return what a sub-layer of that kind may become: nothing, smaller, replaced."""
    own = [place for place, unit in enumerate(part.units) if not unit.alone]
    names = [unit.keep.replacement for unit in part.units if unit.alone and not unit.prefix]

    def kept(count: int) -> Callable[[Part], Keep | None]:
        return lambda other: other.keep([int(place < count) for place in range(len(other.units))])

    def replaced(name: str | None) -> Callable[[Part], Keep | None]:
        return lambda other: next(
            (unit.keep for unit in other.units if unit.keep.replacement == name), None
        )

    forms: list[Callable[[Part], Keep | None]] = [lambda other: None]
    forms += [kept(count) for count in sorted({1, (len(own) + 1) // 2}) if count <= len(own)]
    forms += [replaced(name) for name in names]
    return forms


def _plan(entries: Mapping[SubLayer, Keep]) -> list[Plan]:
    """Return the plan of these entries, or nothing where they are no legal plan."""
    if not any(reads_page(one, keep) for one, keep in entries.items()):
        return []
    try:
        return [Plan(tuple(sorted(entries.items(), key=lambda entry: entry[0])))]
    except PlanError:  # entries that exclude each other, e.g. behind a replaced beginning
        return []


def _drawn(part: Part, turn: int) -> Keep | None:
    """Return a random form of a sub-layer; about one in three is skipped."""
    stand_ins = [unit.keep for unit in part.units if unit.alone and not unit.prefix]
    own = sum(not unit.alone for unit in part.units)
    pick = seed_from("calibration", part.sublayer.name, turn) % (3 * own + len(stand_ins))
    if pick < own:
        return None
    if pick >= 3 * own:
        return stand_ins[pick - 3 * own]
    kept = pick % own + 1
    return part.keep([int(place < kept) for place in range(len(part.units))])
