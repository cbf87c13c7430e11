"""Foreign text that cannot leave its place.

Every name that reaches a report may come from a config, a dataset or a checkpoint that somebody
else wrote. Before it is shown it becomes one line of printable characters (no terminal escapes, no
direction overrides that reorder a table) and is then escaped for the place it goes to.
"""

from __future__ import annotations

__all__ = ["escape_markdown", "one_line"]

# What starts an element of Markdown or HTML inside a line or a table cell. Dots, dashes, brackets
# of plain words and digits are left alone: they mean something at the start of a line only.
_MARKDOWN = frozenset("\\`*_[]|~#!$")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def one_line(text: str) -> str:
    """Return `text` as one line: white space collapsed, unprintable characters shown as U+FFFD.

    Control characters (terminal escapes included), bidirectional overrides, zero-width characters
    and lone surrogates are unprintable in this sense.
    """
    words = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in words)


def escape_markdown(text: str) -> str:
    """Return `text` as one line that GitHub's Markdown shows literally, also inside a table.

    `://` and `www.` are broken by an entity, because GitHub turns bare addresses into links.
    """
    escaped = "".join(
        f"\\{letter}" if letter in _MARKDOWN else _ENTITIES.get(letter, letter)
        for letter in one_line(text)
    )
    for start in ("://", "www."):
        escaped = escaped.replace(start, f"{start[:-1]}&#{ord(start[-1])};")
    return escaped
