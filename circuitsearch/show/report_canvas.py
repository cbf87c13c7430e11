"""The canvas of every figure: matplotlib under its own settings, and the files it becomes.

A figure is drawn under matplotlib's default settings, whatever the user's session has set, and
leaves those settings alone. Colours are Okabe and Ito's, which colour-blind readers tell apart;
markers differ too. The same input gives the same bytes: identifiers come from a fixed salt and no
date is written.

An SVG that stands inside a page shares that page's identifiers and styles with the rest of it, so
`inline_svg` gives every identifier the figure's own prefix and takes out style sheet, comments and
prologue. Text is drawn as outlines: nothing foreign is left in the markup.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from circuitsearch.show.text import one_line

__all__ = [
    "BASELINE",
    "BEST",
    "GREY",
    "INK",
    "TRIALS",
    "canvas",
    "drawing",
    "inline_svg",
    "inlined",
    "label",
    "saved",
]

INK, BEST, BASELINE, GREY = "#17212b", "#0072b2", "#d55e00", "#7d8b98"
TRIALS = (("#009e73", "o"), ("#cc79a7", "^"), ("#e69f00", "v"), ("#56b4e9", "D"), (GREY, "P"))
"""Colour and marker of the sources of trials, in the order of their names."""

_LONGEST = 40  # characters of a name in a figure
_SETTINGS = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "font.size": 10,
    "grid.color": "#e3e8ec",
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "circuitsearch",
    # A name such as "$x" is a name, not a formula.
    "text.parse_math": False,
}
_WITHOUT = {
    "svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
    "png": {"Software": None},
}
# What matplotlib writes around the drawing: XML prologue, comments, metadata and a style sheet,
# which inside a page would hold for the whole page (report.css has its one rule).
_AROUND = re.compile(
    r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL
)
_NAMES = re.compile(r'(\bid="|\bhref="#|url\(#)')
_SIZE = re.compile(r'<svg\b[^>]*?\bviewBox="([^"]*)"[^>]*>')


@contextmanager
def drawing() -> Iterator[None]:
    """Draw under the house's settings, and put the session's back."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        # A name in a script that the font lacks is drawn as boxes, which is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def label(text: str) -> str:
    """Return foreign text as one line that leaves room for the drawing beside it."""
    words = one_line(text)
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def canvas(title: str = "", size: tuple[float, float] = (8.0, 5.0)) -> Any:
    """Return empty axes of a size in inches; a bare Figure touches no global state."""
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    return axes


def saved(figure: Any, kind: str) -> bytes:
    """Return a figure as `svg` or `png`, without date, version or facts about the machine."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=_WITHOUT[kind])
    return buffer.getvalue()


def inline_svg(figure: Any, name: str, words: str) -> str:
    """Return a figure as an SVG element to stand inside a page.

    Args:
        figure: the figure.
        name: prefix of its identifiers, letters and digits, unique within the page.
        words: what it shows, for readers who do not see it; foreign text is escaped.
    """
    return inlined(saved(figure, "svg"), name, words)


def inlined(svg: bytes, name: str, words: str) -> str:
    """Return what `saved` made as an SVG element to stand inside a page, as `inline_svg` does."""
    text = _AROUND.sub("", svg.decode("utf-8"))
    text = _NAMES.sub(rf"\g<1>{name}-", text)
    head = f'<svg role="img" aria-label="{escape(words)}" '
    # HTML needs no name spaces; without them the page holds no address at all
    text = text.replace("xlink:href=", "href=")
    text = _SIZE.sub(lambda found: f'{head}viewBox="{found[1]}">', text, count=1)
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())
