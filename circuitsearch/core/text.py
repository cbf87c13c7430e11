"""Foreign text that cannot leave its place.

Every name that reaches a report may come from a config, a dataset or a checkpoint that somebody
else wrote. Before it is shown it becomes one line of printable characters (no terminal escapes, no
direction overrides that reorder a table) and is then escaped for the place it goes to.
"""

from __future__ import annotations

import re

__all__ = ["drop_passwords", "escape_markdown", "hide_passwords", "one_line"]

# A user and a password may hold `@`, and a password blanks: it goes on to the last `@` of the line.
# Rather too much is hidden than too little.
_IN_AUTHORITY = re.compile(r"(://[^:/\s]*):[^\n]*@")
_IN_QUERY = re.compile(r"(?<=[?&])((?:ssl)?password=)[^&\s]*", re.IGNORECASE)
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


def hide_passwords(text: str) -> str:
    """Return `text` with `***` for every password of a URL in it, readable as a URL or not."""
    return _IN_QUERY.sub(r"\1***", _IN_AUTHORITY.sub(r"\1:***@", text))


def drop_passwords(text: str) -> str:
    """Return `text` without the passwords of URLs in it: their driver asks the environment then."""
    without = _IN_AUTHORITY.sub(r"\1@", text)
    if not _IN_QUERY.search(without):
        return without
    # what is left of `?password=x&a=b` and `?a=b&password=x` is `?&a=b` and `?a=b&`
    return re.sub(r"(?<=[?&])&+|[?&]+(?=\s|$)", "", _IN_QUERY.sub("", without))


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
