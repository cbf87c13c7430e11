"""Reading documentation as a machine does: its code blocks, commands and what they need."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "blocks", "commands", "inline_commands"]

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^(\s*)```(\w*)\s*$")
_NEEDS = re.compile(r"^<!-- needs: (network|gpu) -->$")
_INLINE = re.compile(r"`(circuitsearch [^`]+)`")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: file it is on.
        line: line of its first line of text, from 1.
        language: as written behind the fence.
        text: what is between the fences.
        needs: `network` or `gpu`, where it is marked so.
        output: the `text` block that follows it directly: what it prints.
    """

    page: Path
    line: int
    language: str
    text: str
    needs: str | None = None
    output: str | None = None

    @property
    def place(self) -> str:
        """File and line, for messages and test names."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    found: list[Block] = []
    needs, last_end = None, -9
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        mark = _NEEDS.match(lines[at].strip())
        needs = mark[1] if mark else needs
        fence = _FENCE.match(lines[at])
        if fence is None:
            needs = needs if mark or not lines[at].strip() else None
            at += 1
            continue
        end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
        inside = [line.removeprefix(fence[1]) for line in lines[at + 1 : end]]
        text = "\n".join(inside) + "\n"
        if fence[2] == "text" and found and found[-1].language == "python" and at - last_end <= 2:
            found[-1] = Block(**(vars(found[-1]) | {"output": text}))
        else:
            found.append(Block(page, at + 2, fence[2], text, needs))
        needs, last_end, at = None, end, end + 1
    return found


def commands(page: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Yield (line, program, arguments) of every command line of a page.

    Command lines are indented by four spaces or stand in `sh` fences; continued lines are joined,
    assignments in front, comments and a closing `&` are dropped.
    """
    inside, text = None, ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if fence:
            inside = None if inside is not None else fence[2]
            continue
        if inside == "sh" or (inside is None and line.startswith("    ")):
            text += line.strip()
            if text.endswith("\\"):
                text = text[:-1]
                continue
            try:
                words = shlex.split(text, comments=True)
            except ValueError:  # prose or a formula, no command
                words = []
            text = ""
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words and words[-1] == "&":
                words.pop()
            if words:
                yield number, words[0].rsplit("/", 1)[-1], words[1:]


def inline_commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, arguments) of every `circuitsearch ...` inside a sentence or a table."""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        for match in _INLINE.finditer(line):
            yield number, shlex.split(match[1])[1:]
