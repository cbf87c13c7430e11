"""Plans: which decoder components a student keeps, with one canonical text, JSON form and hash.

Text form, the one users read and write:

    M0 C2 S3[0-8] C3[4,7-11] M1:512 M2=mean

keeps M0 and C2 whole, heads 0 to 8 of S3, heads 4 and 7 to 11 of C3 and the 512 best-ranked neurons
of M1, and puts a constant vector where M2 was (`keep` lists the replacements); every sub-layer that
is not named is skipped. In front of `C0=token`, which stands for the whole beginning, nothing may
be named. The order of writing is free, the canonical text is in execution order
(`M0 M1:512 C2 M2=mean S3[0-8] C3[4,7-11]`). An attention without heads and a
feed-forward of width 0 do nothing worth keeping, so a plan drops them: a module with zero heads
would still add its output bias (a trap that the reference file donut.md 4.7 describes).

Whether `S3[0-15]` is the whole of S3 depends on the decoder; `Plan.fitted` answers that and gives
the canonical plan for one decoder shape. Costs, students and result tables use fitted plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from circuitsearch.core.components import Kind, SubLayer, sublayers
from circuitsearch.core.errors import PlanError, raise_together
from circuitsearch.core.files import content_hash
from circuitsearch.core.keep import (
    REPLACEMENTS,
    WHOLE,
    Keep,
    kind_problems,
    prefix_problems,
    read_entry,
    read_text,
    spans,
)
from circuitsearch.core.shapes import DecoderShape

__all__ = ["WHOLE", "Keep", "Plan", "shape_problems", "units_kept"]

_EMPTY = "(empty)"  # how reports print the empty plan, accepted when pasted back


@dataclass(frozen=True)
class Plan:
    """The components that a student keeps.

    Attributes:
        kept: pairs of sub-layer and `Keep`; given in any order, held in execution order. Entries
            that keep nothing are dropped.
    """

    kept: tuple[tuple[SubLayer, Keep], ...] = ()

    def __post_init__(self) -> None:
        """Bring the entries into canonical order; refuse repeats and misplaced heads or widths."""
        entries = sorted(self.kept, key=lambda entry: entry[0])
        problems = []
        for index, (sublayer, keep) in enumerate(entries):
            if index > 0 and entries[index - 1][0] == sublayer:
                problems.append(f"{sublayer} is named more than once; name it once")
            problems.extend(kind_problems(sublayer, keep))
        problems.extend(prefix_problems(entries))
        raise_together(problems, PlanError, "Plan")
        object.__setattr__(self, "kept", tuple(entry for entry in entries if not entry[1].nothing))

    @classmethod
    def parse(cls, text: str) -> Plan:
        """Read the text form; items are separated by spaces or commas, in any order.

        Raises:
            PlanError: lists every fault of the text together.
        """
        if text.strip() == _EMPTY:
            return cls()
        entries, problems = read_text(text)
        return cls._checked(entries, problems, f"Plan {text!r}")

    @classmethod
    def of(cls, items: Iterable[str | SubLayer]) -> Plan:
        """Return the plan that keeps the given sub-layers, e.g. `Plan.of(["M0", "C2"])`.

        Texts may carry heads or a width (`"S3[0-8]"`).
        """
        return cls.parse(" ".join(str(item) for item in items))

    @classmethod
    def full(cls, layers: int) -> Plan:
        """Return the plan that keeps every sub-layer of a decoder of `layers` layers."""
        return cls(tuple((sublayer, WHOLE) for sublayer in sublayers(layers)))

    @classmethod
    def from_json(cls, data: Any) -> Plan:
        """Read the JSON form (a list of entries), or the text form.

        An entry is an object {"sublayer": "S3", "heads": [0, 1]}, {"sublayer": "M1", "width": 512},
        {"sublayer": "M2", "replacement": "mean"} or {"sublayer": "C2"}, or an item of the text
        form such as "C2".

        Raises:
            PlanError: lists every fault together.
        """
        if isinstance(data, str):
            return cls.parse(data)
        if not isinstance(data, list | tuple):
            raise PlanError(f"Plan: expected a list of sub-layers, got {type(data).__name__}")
        entries: list[tuple[SubLayer, Keep]] = []
        problems: list[str] = []
        for index, entry in enumerate(data):
            try:
                if isinstance(entry, str):
                    read, faults = read_text(entry)
                    entries.extend(read)
                    problems.extend(f"entry {index}: {fault}" for fault in faults)
                else:
                    entries.append(read_entry(entry))
            except PlanError as error:
                problems.append(f"entry {index}: {error}")
        return cls._checked(entries, problems, "Plan")

    @classmethod
    def _checked(
        cls, entries: Sequence[tuple[SubLayer, Keep]], problems: list[str], heading: str
    ) -> Plan:
        """Build the plan; raise the reader's problems and the plan's own together."""
        names = [sublayer for sublayer, _ in entries]
        repeated = sorted({sublayer for sublayer in names if names.count(sublayer) > 1})
        problems.extend(f"{one} is named more than once; name it once" for one in repeated)
        for sublayer, keep in entries:
            problems.extend(kind_problems(sublayer, keep))
        problems.extend(prefix_problems(entries))
        raise_together(problems, PlanError, heading)
        return cls(tuple(entries))

    def to_json(self) -> list[dict[str, Any]]:
        """Return the canonical JSON form; see `from_json`."""
        entries = []
        for sublayer, keep in self.kept:
            entry: dict[str, Any] = {"sublayer": sublayer.name}
            if keep.heads is not None:
                entry["heads"] = list(keep.heads)
            if keep.width is not None:
                entry["width"] = keep.width
            if keep.replacement is not None:
                entry["replacement"] = keep.replacement
            entries.append(entry)
        return entries

    def __str__(self) -> str:
        """Return the canonical text; the empty plan is the empty text."""
        return self._text

    @cached_property
    def _text(self) -> str:
        return " ".join(f"{sublayer}{keep}" for sublayer, keep in self.kept)

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical text (as a JSON string)."""
        return content_hash(self._text)

    @cached_property
    def _keeps(self) -> dict[SubLayer, Keep]:
        return dict(self.kept)

    @property
    def sublayers(self) -> tuple[SubLayer, ...]:
        """Kept sub-layers, in execution order."""
        return tuple(sublayer for sublayer, _ in self.kept)

    def __contains__(self, sublayer: object) -> bool:
        """Whether a sub-layer is kept, at least in part or by a replacement."""
        return sublayer in self._keeps

    def keep(self, sublayer: SubLayer) -> Keep | None:
        """Return how much of `sublayer` is kept, or None when it is skipped."""
        return self._keeps.get(sublayer)

    def without(self, sublayer: SubLayer) -> Plan:
        """Return the plan that skips `sublayer` too."""
        return Plan(tuple(entry for entry in self.kept if entry[0] != sublayer))

    def units(self, sublayer: SubLayer, shape: DecoderShape) -> int:
        """Return the number of the teacher's heads (attention) or neurons (feed-forward) kept.

        It is 0 when the sub-layer is skipped or replaced by what is fitted (`mean`, `linear`,
        `token`), which holds none of them, and all of them under `alone`, which runs it as it is.
        """
        keep = self.keep(sublayer)
        return 0 if keep is None else units_kept(sublayer, keep, shape)

    def fitted(self, shape: DecoderShape) -> Plan:
        """Return the canonical plan for a decoder: full head lists and full widths become whole.

        Raises:
            PlanError: a layer, head or width does not exist in `shape`; all faults together.
        """
        problems: list[str] = []
        entries: list[tuple[SubLayer, Keep]] = []
        for sublayer, keep in self.kept:
            problems.extend(shape_problems(sublayer, keep, shape))
            full = units_kept(sublayer, keep, shape) == units_kept(sublayer, WHOLE, shape)
            entries.append((sublayer, WHOLE if full and keep.replacement is None else keep))
        raise_together(problems, PlanError, f"Plan {str(self)!r} does not fit the decoder")
        return Plan(tuple(entries))


def units_kept(sublayer: SubLayer, keep: Keep, shape: DecoderShape) -> int:
    """Return how many heads or neurons one entry keeps; see `Plan.units`."""
    if keep.replacement is not None and REPLACEMENTS[keep.replacement].fitted:
        return 0
    if sublayer.kind is Kind.FEED:
        return shape.ffn if keep.width is None else keep.width
    return shape.heads if keep.heads is None else len(keep.heads)


def shape_problems(sublayer: SubLayer, keep: Keep, shape: DecoderShape) -> list[str]:
    """Describe what of one entry does not exist in `shape`."""
    if sublayer.layer >= shape.layers:
        last = sublayers(shape.layers)[-1]
        return [f"{sublayer}: the decoder has {shape.layers} layers, allowed are S0 to {last}"]
    if sublayer.kind is Kind.CROSS and shape.encoder_width == 0:
        return [f"{sublayer}: the decoder has no cross-attention, allowed are its S and M"]
    if keep.width is not None and keep.width > shape.ffn:
        return [f"{sublayer}: got width {keep.width}, allowed are 0 to {shape.ffn}"]
    beyond = [head for head in keep.heads or () if head >= shape.heads]
    if beyond:
        return [f"{sublayer}: got heads {spans(beyond)}, allowed are 0 to {shape.heads - 1}"]
    return []
