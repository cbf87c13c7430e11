"""Numbers for people, in few digits; foreign text is `core.text`'s business."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from circuitsearch.core.files import plain
from circuitsearch.core.text import escape_markdown, one_line

__all__ = [
    "DASH",
    "count",
    "escape_markdown",
    "filled",
    "flat",
    "one_line",
    "rounded",
    "rounded_json",
    "share",
    "signed",
]

DASH = "\N{EN DASH}"  # what stands where nothing is known
_PLACEHOLDER = re.compile(r"\{\{([a-z]+)\}\}")
_UNITS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def count(number: int) -> str:
    """Write a count in three or four digits and a decimal unit: 20971520 -> "20.97 M"."""
    for index, (size, unit) in enumerate(_UNITS):
        if abs(number) < size:
            continue
        value = number / size
        text = f"{value:.4g}" if abs(value) < 100 else f"{value:.0f}"
        # 999,999 would be "1000 k"; the next unit says it better.
        if text == "1000" and index > 0:
            return f"1 {_UNITS[index - 1][1]}"
        return f"{text} {unit}"
    return str(number)


def share(part: float, whole: float) -> str:
    """Write `part` of `whole` in per cent with one decimal; a dash when `whole` is 0."""
    return f"{100 * part / whole:.1f} %" if whole else DASH


def signed(number: float, digits: int = 3) -> str:
    """Write a number with its sign and `digits` significant digits: 0.0421 -> "+0.0421"."""
    text = f"{number:+.{digits}g}"
    return "0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def rounded(number: float, digits: int = 6) -> float | int:
    """Round to `digits` significant digits; whole numbers become integers, -0.0 becomes 0.

    Files that people compare hold no digits that differ between two machines' sums.
    """
    if not math.isfinite(number):
        return number
    value = float(f"{number:.{digits}g}")
    return int(value) if value == int(value) and abs(value) < 2**53 else value


def rounded_json(value: Any) -> Any:
    """Return plain JSON with every float rounded to six significant digits."""
    if isinstance(value, dict):
        return {key: rounded_json(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded_json(one) for one in value]
    return rounded(value) if isinstance(value, float) else value


def flat(facts: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield facts as text, nested names joined by dots, in the order given."""
    for key, value in facts.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(str(rounded_json(plain(one))) for one in value)
        else:
            yield name, str(rounded_json(plain(value)))


def filled(template: str, contents: Mapping[str, str]) -> str:
    """Return a page's template with `{{name}}` replaced by contents, escaped already.

    In one pass, so that text which happens to look like `{{name}}` is not filled in.
    """
    return _PLACEHOLDER.sub(lambda found: contents[found[1]], template)
