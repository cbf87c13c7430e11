"""From effects of components, pairs and edges to worths of units and of units that stay together.

The integer program (`knapsack.solve`) maximises sum_i v_i x_i + sum_t w_t prod_{i in t} x_i, with
x_i = 1 for a unit that stays. Three readings of the circuit fit it:

* *components*: v_i is the effect of removing i alone;
* *pairs*: with e_i the effect of removing i, e_ij that of removing both, b_ij = e_ij - e_i - e_j,
  what the removed units cost to second order is a quadratic in the kept ones,

      sum_i e_i (1 - x_i) + sum_{i<j} b_ij (1 - x_i)(1 - x_j)
          = const - [ sum_i (e_i + sum_j b_ij) x_i - sum_{i<j} b_ij x_i x_j ]

  so v_i = e_i + sum_j b_ij and w_ij = -b_ij;
* *edges*: an edge is worth its effect if both ends stay; embedding, encoder and logits always do.

A sub-layer whose units are steps or heads shares its effect among them: heads by their own effects
where these are positive, widths by their number of neurons.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from circuitsearch.core.components import SubLayer
from circuitsearch.core.errors import ConfigError, raise_together
from circuitsearch.search.program import Interaction
from circuitsearch.search.space import Space
from circuitsearch.search.units import Part

__all__ = ["best_heads", "edge_worths", "pair_worths", "unit_worths"]


def unit_worths(
    space: Space, effects: Mapping[str, float], replaced: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return what each unit is worth by the effects of components.

    Args:
        space: the units.
        effects: effect by component name, positive = helps; heads are needed where units are
            heads or counts of them.
        replaced: worth of replacements by unit name (`M1=mean`): by how much less the metric
            suffers than from skipping the sub-layer. Those that are missing are worth nothing.

    Raises:
        ConfigError: an effect is missing; all are named.
    """
    found: dict[str, float] = {}
    problems = []
    for part in space.parts:
        name = part.sublayer.name
        if name not in effects:
            problems.append(f"{name} has no effect")
            continue
        if not part.units:
            continue
        own = [unit for unit in part.units if not unit.alone]
        shares = _shares(part, effects, space.shape.decoder.ffn)
        found |= {
            unit.name: effects[name] * float(share) for unit, share in zip(own, shares, strict=True)
        }
        found |= {u.name: (replaced or {}).get(u.name, 0.0) for u in part.units if u.alone}
    raise_together(problems, ConfigError, "Worths of units")
    return found


def _shares(part: Part, effects: Mapping[str, float], ffn: int) -> np.ndarray:
    """Return how a sub-layer's worth is shared among its own units; sums to 1."""
    own = [unit for unit in part.units if not unit.alone]
    if len(own) == 1:
        return np.ones(1)
    if own[0].keep.width is not None:
        widths = np.array([unit.keep.width or ffn for unit in own], dtype=float)
        gained: np.ndarray = np.diff(widths, prepend=0.0) / ffn
        return gained
    heads: list[int] = []
    for unit in own:
        kept = range(part.heads) if unit.keep.heads is None else unit.keep.heads
        heads += [head for head in kept if head not in heads]
    each = np.array([max(effects.get(f"{part.sublayer}.H{head}", 0.0), 0.0) for head in heads])
    # A head of no effect is worth a little: a sub-layer's last heads still fill the budget.
    each = each + 0.01 * (each.max() or 1.0)
    shares: np.ndarray = each / each.sum()
    return shares


def best_heads(space: Space, effects: Mapping[str, float]) -> dict[str, tuple[int, ...]]:
    """Return the heads of every attention by effect, best first; ties by number."""
    heads = space.shape.decoder.heads
    return {
        part.sublayer.name: tuple(
            sorted(range(heads), key=lambda h: (-effects.get(f"{part.sublayer}.H{h}", 0.0), h))
        )
        for part in space.parts
        if f"{part.sublayer}.H0" in effects
    }


def pair_worths(
    space: Space, alone: Mapping[str, float], pairs: Mapping[tuple[str, str], float]
) -> tuple[list[float], list[Interaction]]:
    """Return worths of units and of pairs of them, to second order.

    Args:
        space: units that are whole sub-layers or steps; a pair counts for their first steps.
        alone: effect of removing one sub-layer, by name.
        pairs: effect of removing both of two sub-layers, by their names.

    Raises:
        ConfigError: an effect is missing, or the units are free heads.
    """
    _refuse_free_heads(space)
    worths = dict(alone)
    together: list[Interaction] = []
    for (one, other), both in pairs.items():
        extra = both - alone[one] - alone[other]
        worths[one] += extra
        worths[other] += extra
        if _there(space, one) and _there(space, other):
            together.append(((_first(space, one), _first(space, other)), -extra))
    found = unit_worths(space, worths)
    return [found[name] for name in space.names], together


def edge_worths(
    space: Space, edges: Mapping[tuple[str, str], float]
) -> tuple[list[float], list[Interaction]]:
    """Return worths of units (edges with one end that always stays) and of pairs of units.

    Args:
        space: the units.
        edges: effect by names of writer and reader component; several edges between the same two
            (query, key, value) are already added up. Ends that are no unit always stay.

    Raises:
        ConfigError: an end is part of a sub-layer whose units are free heads, but no unit.
    """
    values = [0.0] * len(space.units)
    together: dict[tuple[int, ...], float] = {}
    for (writer, reader), worth in edges.items():
        if not (_there(space, writer) and _there(space, reader)):
            continue
        ends = [_unit(space, name) for name in (writer, reader)]
        inside = [end for end in ends if end is not None]
        if len(inside) == 1:
            values[inside[0]] += worth
        elif len(inside) == 2:
            pair = (min(inside), max(inside))
            together[pair] = together.get(pair, 0.0) + worth
    return values, list(together.items())


def _there(space: Space, name: str) -> bool:
    """Whether a component may stay: it is no part of a sub-layer that is always skipped."""
    gone = {part.sublayer.name for part in space.parts if not part.units}
    return name.split(".")[0] not in gone


def _unit(space: Space, name: str) -> int | None:
    """Return the index of the unit without which a component is gone; None if it always stays."""
    if name in space.names:
        return space.names.index(name)
    if name.split(".")[0] not in {part.sublayer.name for part in space.parts}:
        return None
    return _first(space, name.split(".")[0])


def _first(space: Space, name: str) -> int:
    """Return the index of a sub-layer's first step.

    Raises:
        ConfigError: its units are free heads, none of which stands for the sub-layer.
    """
    part = next(part for part in space.parts if part.sublayer == SubLayer.parse(name))
    if part.free:
        raise ConfigError(
            f"Edges of {name}: its units are free heads ({part.units[0]}, ...), so edges must be "
            "between heads; set circuit.level to 'heads'"
        )
    return part.first


def _refuse_free_heads(space: Space) -> None:
    """Refuse units that do not stand for sub-layers."""
    if any(part.free for part in space.parts):
        raise ConfigError(
            "Effects of pairs: they are of whole sub-layers, and the units here are free heads; "
            "set search.warm_pairs to 0, or space.attention to 'counts' or 'whole'"
        )
