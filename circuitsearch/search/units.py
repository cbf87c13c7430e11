"""Units: what the bits of a plan stand for.

A *unit* is one thing that a student keeps or skips, and a plan is one bit per unit (1 = kept). The
units of a sub-layer are its *part* of the bits, and come in these kinds:

    whole         `S0`                     the whole sub-layer
    counts        `C3:1` `C3:2` ...        its best head, its two best heads ... (a chain of steps)
    heads         `C3.H0` `C3.H1` ...      any subset of its heads
    widths        `M1:128` `M1:256` ...    its best-ranked neurons, by the steps of a menu (a chain)
    replacement   `M1=mean`                a cheap stand-in, alone in its part
    prefix        `C0=token`               stands for all parts up to its own: alone in all of them

Step k of a chain is kept only if step k - 1 is, so each step has its own cost and worth, and both
add up (cumulative coding). Which bits belong to which plan is then one to one: a plan has one
canonical form and a sub-layer without any unit is skipped.

What a part costs is additive over its units, but for the *opening* of a part of free heads: what
the sub-layer costs as soon as any of its heads stays (its LayerNorm and output bias).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from circuitsearch.core.components import Kind, SubLayer, sublayers
from circuitsearch.core.errors import ConfigError, choice_problem, raise_together
from circuitsearch.core.files import record_fields
from circuitsearch.core.keep import REPLACEMENTS, WHOLE, Keep
from circuitsearch.core.shapes import DecoderShape

__all__ = ["ATTENTION_UNITS", "Choices", "Part", "Selection", "Unit", "parts_of", "reads_page"]

AttentionUnits = Literal["whole", "counts", "heads"]
ATTENTION_UNITS: tuple[AttentionUnits, ...] = ("whole", "counts", "heads")


@dataclass(frozen=True)
class Choices:
    """What a plan may choose for each sub-layer.

    Attributes:
        attention: units of self- and cross-attention (module docstring).
        widths: neurons kept by each step of a feed-forward, ascending; the whole width is always
            the last step and need not be named. Empty: whole or skipped.
        replacements: stand-ins that are offered wherever they are legal (`core.keep`); `token`
            wherever a cross-attention follows.
        heads: order of the heads of each attention, best first, by sub-layer; asked for by
            `counts`. Heads that are not named follow in their own order.
        within: names of the only sub-layers that may be kept (a composition); empty: all may be.
    """

    attention: AttentionUnits = "whole"
    widths: tuple[int, ...] = ()
    replacements: tuple[str, ...] = ()
    heads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    within: tuple[str, ...] = ()

    @property
    def coarse(self) -> bool:
        """Whether sub-layers stay whole or go whole; replacements are whole ones, too."""
        return self.attention == "whole" and not self.widths

    def check(self, shape: DecoderShape) -> None:
        """Refuse choices that the decoder does not have.

        Raises:
            ConfigError: lists every fault together.
        """
        problems = []
        if self.attention not in ATTENTION_UNITS:
            problems.append(choice_problem("attention", self.attention, ATTENTION_UNITS))
        if list(self.widths) != sorted(set(self.widths)) or not all(
            1 <= width <= shape.ffn for width in self.widths
        ):
            problems.append(
                f"widths: got {list(self.widths)}, allowed are ascending numbers of neurons from "
                f"1 to {shape.ffn}"
            )
        problems += [
            choice_problem("replacements", name, list(REPLACEMENTS))
            for name in self.replacements
            if name not in REPLACEMENTS
        ]
        if len(set(self.replacements)) < len(self.replacements):
            problems.append(f"replacements: got {list(self.replacements)}, name each once")
        names = [one.name for one in sublayers(shape.layers) if one.kind is not Kind.FEED]
        for name, order in self.heads.items():
            if name not in names:
                problems.append(choice_problem("heads", name, names))
            elif len(set(order)) < len(order) or not all(0 <= h < shape.heads for h in order):
                problems.append(
                    f"heads of {name}: got {list(order)}, allowed are different heads from 0 to "
                    f"{shape.heads - 1}"
                )
        known = [one.name for one in sublayers(shape.layers)]
        problems += [
            choice_problem("within", one, known) for one in self.within if one not in known
        ]
        if self.within and not any(one.startswith("C") for one in self.within):
            problems.append(
                f"within: got {' '.join(self.within)}, which holds no cross-attention; a student "
                "has to read the page"
            )
        raise_together(problems, ConfigError, "Units of the search space")

    def order(self, sublayer: SubLayer, shape: DecoderShape) -> tuple[int, ...]:
        """Return all heads of an attention, best first."""
        first = tuple(self.heads.get(sublayer.name, ()))
        return first + tuple(head for head in range(shape.heads) if head not in first)

    def to_json(self) -> dict[str, Any]:
        """Return the choices as plain JSON; `from_json` reads them back equal."""
        return {
            "attention": self.attention,
            "widths": list(self.widths),
            "replacements": list(self.replacements),
            "heads": {name: list(order) for name, order in self.heads.items()},
            # left out where it says nothing: studies of earlier versions have none
            **({"within": list(self.within)} if self.within else {}),
        }

    @classmethod
    def from_json(cls, data: Any) -> Choices:
        """Read what `to_json` wrote.

        Raises:
            DataError: a field is missing or unknown.
        """
        values = record_fields(cls, {"within": [], **data} if isinstance(data, dict) else data)
        return cls(
            attention=values["attention"],
            widths=tuple(values["widths"]),
            replacements=tuple(values["replacements"]),
            heads={name: tuple(order) for name, order in values["heads"].items()},
            within=tuple(values["within"]),
        )


@dataclass(frozen=True)
class Unit:
    """One bit of a plan.

    Attributes:
        name: its name, the parameter's name in the study.
        sublayer: whose it is.
        keep: what is kept of the sub-layer when this unit is and no later step of its chain; for
            one of several free heads, that head alone.
        after: index of the unit that has to be kept too, None for a first step.
        alone: whether it excludes the other units of its part (a replacement).
        prefix: whether it excludes all units of earlier parts too; it is then `alone` as well.
    """

    name: str
    sublayer: SubLayer
    keep: Keep
    after: int | None = None
    alone: bool = False
    prefix: bool = False

    @property
    def reads(self) -> bool:
        """Whether a student that keeps it reads the page through it."""
        return reads_page(self.sublayer, self.keep)

    def __str__(self) -> str:
        """Return the name."""
        return self.name


class Selection(NamedTuple):
    """One legal choice for a part.

    Attributes:
        bits: the bits of the part's units.
        keep: what a plan keeps of the sub-layer, None when it skips it.
    """

    bits: tuple[int, ...]
    keep: Keep | None


@dataclass(frozen=True)
class Part:
    """The units of one sub-layer.

    Attributes:
        sublayer: whose they are.
        first: index of the first unit in the plan's bits.
        units: the units, in the order of the bits; none where it is always skipped.
        free: whether they are heads of which any subset may stay.
        heads: number of heads of the sub-layer, to write a full subset as the whole.
    """

    sublayer: SubLayer
    first: int
    units: tuple[Unit, ...]
    free: bool
    heads: int

    @property
    def indices(self) -> range:
        """Indices of the units in the plan's bits."""
        return range(self.first, self.first + len(self.units))

    def keep(self, bits: Sequence[int]) -> Keep | None:
        """Return what the part's bits keep of the sub-layer; None when that is nothing.

        The bits must obey the rules of the units (`obeys_rules` says whether they do).
        """
        kept = [unit for unit, bit in zip(self.units, bits, strict=True) if bit]
        if not kept:
            return None
        if not self.free or kept[-1].alone:
            return kept[-1].keep
        if len(kept) == self.heads:
            return WHOLE
        return Keep(heads=tuple(head for unit in kept for head in unit.keep.heads or ()))

    def obeys_rules(self, bits: Sequence[int]) -> bool:
        """Whether the part's bits obey the rules of its units."""
        kept = [index for index, bit in zip(self.indices, bits, strict=True) if bit]
        chosen = [self.units[index - self.first] for index in kept]
        if any(unit.alone for unit in chosen) and len(chosen) > 1:
            return False
        return all(unit.after is None or unit.after in kept for unit in chosen)

    def selections(self) -> Iterator[Selection]:
        """Yield every choice that obeys the rules, in the lexicographic order of its bits."""
        count = len(self.units)
        stand_ins = sum(unit.alone for unit in self.units)
        own = count - stand_ins  # replacements come last in a part
        yield Selection((0,) * count, None)
        for index in reversed(range(own, count)):
            bits = tuple(int(place == index) for place in range(count))
            yield Selection(bits, self.units[index].keep)
        choices: Iterator[tuple[int, ...]]
        if self.free:
            choices = itertools.islice(itertools.product((0, 1), repeat=own), 1, None)
        else:
            choices = ((1,) * kept + (0,) * (own - kept) for kept in range(1, own + 1))
        for chosen in choices:
            bits = (*chosen, *(0,) * stand_ins)
            yield Selection(bits, self.keep(bits))


def reads_page(sublayer: SubLayer, keep: Keep) -> bool:
    """Whether a student that keeps this of a sub-layer reads the page through it."""
    if sublayer.kind is not Kind.CROSS:
        return False
    return keep.replacement is None or REPLACEMENTS[keep.replacement].reads


def parts_of(shape: DecoderShape, choices: Choices) -> tuple[Part, ...]:
    """Return the units of every sub-layer, in execution order.

    Raises:
        ConfigError: the choices do not fit the decoder; all faults together.
    """
    choices.check(shape)
    parts: list[Part] = []
    first = 0
    # behind it nothing reads the page, so a beginning that ends there leaves no legal plan
    last_reader = SubLayer.at(shape.layers - 1, Kind.CROSS)
    for sublayer in sublayers(shape.layers):
        if choices.within and sublayer.name not in choices.within:
            parts.append(Part(sublayer, first, (), False, shape.heads))
            continue
        steps, free = _steps(sublayer, shape, choices)
        units = [
            Unit(name, sublayer, keep, None if free or place == 0 else first + place - 1)
            for place, (name, keep) in enumerate(steps)
        ]
        units += [
            Unit(f"{sublayer}={name}", sublayer, Keep(replacement=name), None, True, one.prefix)
            for name, one in ((name, REPLACEMENTS[name]) for name in choices.replacements)
            if sublayer.kind in one.kinds and not (one.prefix and sublayer >= last_reader)
        ]
        parts.append(Part(sublayer, first, tuple(units), free, shape.heads))
        first += len(units)
    return tuple(parts)


def _steps(
    sublayer: SubLayer, shape: DecoderShape, choices: Choices
) -> tuple[list[tuple[str, Keep]], bool]:
    """Return name and keep of a sub-layer's own units, and whether they are free heads."""
    if sublayer.kind is Kind.FEED:
        if not choices.widths:
            return [(sublayer.name, WHOLE)], False
        widths = [*(width for width in choices.widths if width < shape.ffn), shape.ffn]
        steps = [
            (f"{sublayer}:{width}", WHOLE if width == shape.ffn else Keep(width=width))
            for width in widths
        ]
        return steps, False
    if choices.attention == "whole" or shape.heads == 1:
        return [(sublayer.name, WHOLE)], False
    if choices.attention == "heads":
        heads = [(f"{sublayer}.H{head}", Keep(heads=(head,))) for head in range(shape.heads)]
        return heads, True
    order = choices.order(sublayer, shape)
    counts = [
        (
            f"{sublayer}:{count}",
            WHOLE if count == shape.heads else Keep(heads=tuple(sorted(order[:count]))),
        )
        for count in range(1, shape.heads + 1)
    ]
    return counts, False
