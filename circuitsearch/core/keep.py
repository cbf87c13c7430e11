"""One entry of a plan: how much of a sub-layer is kept, and how that is written.

The text form of an entry is `C2` (whole), `S3[0-8]` or `C3[4,7-11]` (heads of an attention),
`M1:512` (the 512 best-ranked neurons of a feed-forward) or `M1=mean` (a replacement); the JSON form
is an object such as {"sublayer": "S3", "heads": [0, 1]} or {"sublayer": "M1", "replacement":
"mean"}. Readers here collect every fault and raise them together.

A *replacement* stands where the sub-layer stood (x is the stream, [B, T, d]):

    M1=mean     x + c            c [d], the sub-layer's mean write in the teacher
    S0=linear   x + A LN(x) + b  A [d, d], b [d], fitted to the teacher by least squares; the
                                 LayerNorm is the sub-layer's own
    C3=alone    f(x)             the sub-layer as it is, but its write becomes the stream instead of
                                 being added to it
    C0=token    embed(map[t])    t is the input token of the position, map [V] a table of tokens
                                 fitted to the teacher; everything up to C0 is gone

`alone` and `token` are what Donut-MINT (arXiv 2509.26235, Propositions 2 and 3) finds the two ends
of the decoder to do: M3 removes what C3 was added to, and the first sub-layers turn tokens into
tokens. A cross-attention replaced by `mean`, `linear` or `token` no longer reads the page. `token`
stands for a whole beginning, so a plan with it keeps nothing in front of it (`prefix_problems`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import (
    PlanError,
    choice_problem,
    integer_problems,
    nearest,
    raise_together,
)

__all__ = [
    "REPLACEMENTS",
    "WHOLE",
    "Keep",
    "Replacement",
    "kind_problems",
    "prefix_problems",
    "read_entry",
    "read_text",
    "spans",
]

_ITEM = re.compile(
    r"(?P<name>[^\s,\[\]:=]+)"
    r"(?:\[(?P<heads>[^\[\]]*)\]|:(?P<width>[^\s,\[\]:=]*))?"
    r"(?:=(?P<replacement>[^\s,]*))?"
)
_NUMBER = re.compile(r"0|[1-9][0-9]{0,6}")
_SPAN = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
_JSON_FIELDS = ("sublayer", "heads", "width", "replacement")


class Replacement(NamedTuple):
    """What may stand where a sub-layer stood.

    Attributes:
        kinds: the kinds of sub-layers that it may replace.
        reads: whether a cross-attention replaced by it still reads the page.
        fitted: whether it needs numbers fitted to the teacher, beside the sub-layer's own weights.
        prefix: whether it stands for everything up to the sub-layer, so that nothing may be kept
            in front of it.
    """

    kinds: tuple[Kind, ...]
    reads: bool
    fitted: bool
    prefix: bool = False


REPLACEMENTS: dict[str, Replacement] = {
    "mean": Replacement(tuple(Kind), reads=False, fitted=True),
    "linear": Replacement(tuple(Kind), reads=False, fitted=True),
    "alone": Replacement((Kind.CROSS,), reads=True, fitted=False),
    "token": Replacement(tuple(Kind), reads=False, fitted=True, prefix=True),
}
"""Replacements by name; the module docstring says what each computes."""


@dataclass(frozen=True)
class Keep:
    """How much of a sub-layer is kept; the default keeps all of it.

    Attributes:
        heads: kept heads of an attention, ascending and without repeats; None keeps all.
        width: number of kept neurons of a feed-forward, the best-ranked ones; None keeps all.
        replacement: what stands in for the sub-layer (a name in `REPLACEMENTS`), instead of heads
            or a width; None when the sub-layer itself is kept.
    """

    heads: tuple[int, ...] | None = None
    width: int | None = None
    replacement: str | None = None

    def __post_init__(self) -> None:
        """Sort the heads; refuse repeats, negative or fractional numbers, unknown replacements."""
        problems = []
        if self.heads is not None:
            heads = tuple(self.heads)
            problems = _head_problems(heads)
            if not problems:
                object.__setattr__(self, "heads", tuple(sorted(heads)))
        if self.width is not None:
            problems += integer_problems("width", self.width)
        if self.replacement is not None:
            if self.replacement not in list(REPLACEMENTS):  # anything may come from JSON
                problems.append(choice_problem("replacement", self.replacement, [*REPLACEMENTS]))
            problems += [
                f"got {what} and a replacement; write one of them, a replaced sub-layer has no "
                f"{what} to keep"
                for what, given in (("heads", self.heads), ("width", self.width))
                if given is not None
            ]
        raise_together(problems, PlanError, "Kept part of a sub-layer")

    @property
    def whole(self) -> bool:
        """Whether everything is kept, as it is."""
        return self.heads is None and self.width is None and self.replacement is None

    @property
    def prefix(self) -> bool:
        """Whether it stands for everything up to its sub-layer."""
        return self.replacement is not None and REPLACEMENTS[self.replacement].prefix

    @property
    def nothing(self) -> bool:
        """Whether no head or no neuron is kept."""
        return self.heads == () or self.width == 0

    def __str__(self) -> str:
        """Return the suffix of the plan's text: nothing, `[0-8]`, `:512` or `=mean`."""
        if self.replacement is not None:
            return f"={self.replacement}"
        if self.heads is not None:
            return f"[{spans(self.heads)}]"
        return "" if self.width is None else f":{self.width}"


WHOLE = Keep()


def kind_problems(sublayer: SubLayer, keep: Keep) -> list[str]:
    """Describe what a sub-layer of its kind cannot have: heads, a width, a replacement."""
    if sublayer.kind is Kind.FEED and keep.heads is not None:
        return [f"{sublayer} is a feed-forward and has no heads; write a width: {sublayer}:512"]
    if sublayer.kind is not Kind.FEED and keep.width is not None:
        return [f"{sublayer} is an attention and has no width; write heads: {sublayer}[0-3]"]
    if keep.replacement is not None and sublayer.kind not in REPLACEMENTS[keep.replacement].kinds:
        kinds = ", ".join(kind.value for kind in REPLACEMENTS[keep.replacement].kinds)
        allowed = ", ".join(n for n, one in REPLACEMENTS.items() if sublayer.kind in one.kinds)
        return [
            f"{sublayer}={keep.replacement}: this replacement is for {kinds} only; allowed for "
            f"{sublayer} are {allowed}"
        ]
    return []


def prefix_problems(entries: Sequence[tuple[SubLayer, Keep]]) -> list[str]:
    """Describe what is kept in front of a replacement that stands for the whole beginning.

    Args:
        entries: what a plan keeps, in any order.
    """
    problems = []
    for sublayer, keep in entries:
        if not keep.prefix:
            continue
        before = [f"{one}{kept}" for one, kept in entries if one < sublayer and not kept.nothing]
        if before:
            problems.append(
                f"{sublayer}{keep} stands for everything up to {sublayer}, but the plan keeps "
                f"{', '.join(before)} in front of it; leave that out, or drop {sublayer}{keep}"
            )
    return problems


def read_text(text: str) -> tuple[list[tuple[SubLayer, Keep]], list[str]]:
    """Read the text form of a plan; return its entries as written and the faults found."""
    entries: list[tuple[SubLayer, Keep]] = []
    problems: list[str] = []
    place = 0
    for found in _ITEM.finditer(text):
        problems.extend(_stray(text[place : found.start()]))
        place = found.end()
        try:
            entries.append(_read_item(found))
        except PlanError as error:
            problems.append(str(error))
    problems.extend(_stray(text[place:]))
    return entries, problems


def read_entry(entry: Any) -> tuple[SubLayer, Keep]:
    """Read one object of the JSON form."""
    if not isinstance(entry, dict) or not isinstance(entry.get("sublayer"), str):
        raise PlanError(f'got {entry!r}, allowed is an object such as {{"sublayer": "C2"}}')
    unknown = [str(name) for name in entry if name not in _JSON_FIELDS]
    guesses = [(name, nearest(name, _JSON_FIELDS)) for name in unknown]
    raise_together(
        [
            f"unknown field {name!r}" + (f"; did you mean {guess!r}?" if guess else "")
            for name, guess in guesses
        ],
        PlanError,
        f"Entry {entry['sublayer']!r}",
    )
    heads = entry.get("heads")
    if heads is not None and not isinstance(heads, list | tuple):
        raise PlanError(f"heads: got {heads!r}, allowed is a list of integers")
    return SubLayer.parse(entry["sublayer"]), Keep(
        heads=None if heads is None else tuple(heads),
        width=entry.get("width"),
        replacement=entry.get("replacement"),
    )


def spans(heads: Sequence[int]) -> str:
    """Write ascending heads as ranges: (4, 7, 8, 9) -> "4,7-9"."""
    runs: list[list[int]] = []
    for head in heads:
        if runs and head == runs[-1][1] + 1:
            runs[-1][1] = head
        else:
            runs.append([head, head])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _head_problems(heads: tuple[int, ...]) -> list[str]:
    """Describe heads that are no counts or appear twice."""
    problems = [problem for head in heads for problem in integer_problems("head", head)]
    if problems:
        return problems
    twice = sorted({head for head in heads if heads.count(head) > 1})
    return [f"head {head} is listed more than once; list it once" for head in twice]


def _stray(between: str) -> list[str]:
    """Describe text between two items that is more than spaces and commas."""
    stray = between.replace(",", " ").strip()
    if not stray:
        return []
    return [f"unexpected {stray!r}; write items such as M0, S3[0-8], M1:512 or M1=mean"]


def _read_item(found: re.Match[str]) -> tuple[SubLayer, Keep]:
    """Read one item of the text form."""
    sublayer = SubLayer.parse(found["name"])
    try:
        keep = Keep(
            heads=None if found["heads"] is None else _read_heads(found["heads"]),
            width=None if found["width"] is None else _read_width(found["width"]),
            replacement=found["replacement"],
        )
    except PlanError as error:
        raise PlanError(f"{found[0]!r}: {error}") from error
    return sublayer, keep


def _read_heads(text: str) -> tuple[int, ...]:
    """Read the inside of brackets: heads and ranges separated by commas."""
    heads: list[int] = []
    for part in text.split(",") if text.strip() else ():
        span = _SPAN.fullmatch(part.strip())
        first, last = (int(span[1]), int(span[2] or span[1])) if span else (1, 0)
        if first > last:
            raise PlanError(f"heads: got {part.strip()!r}, allowed are 3 or an ascending range 0-8")
        heads.extend(range(first, last + 1))
    return tuple(heads)


def _read_width(text: str) -> int:
    """Read the number after a colon."""
    if not _NUMBER.fullmatch(text):
        raise PlanError(f"width: got {text!r}, allowed is a number of neurons such as 512")
    return int(text)
