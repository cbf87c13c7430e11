"""Running the Python of a page as a reader does: block after block, in one namespace."""

from __future__ import annotations

import contextlib
import doctest
import io
import os
from pathlib import Path
from typing import Any

from tests.docs.blocks import Block, blocks

__all__ = ["run_block", "run_page"]


def run_page(page: Path, folder: Path, teacher: Path) -> None:
    """Run the Python blocks of a page in a folder, with another teacher than the shipped one."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "python" and block.needs is None:
            run_block(block, names, folder, teacher)


def run_block(block: Block, names: dict[str, Any], folder: Path, teacher: Path) -> None:
    """Run a block; what it prints must be what the page says, where it says something."""
    # The shipped teacher takes minutes where the tiny one takes seconds.
    text = block.text.replace("teacher: shipped", f"teacher: {teacher}")
    text = text.replace('"shipped"', repr(str(teacher)))
    code = compile("\n" * (block.line - 1) + text, str(block.page), "exec")
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        exec(code, names)
    if block.output is not None:
        checker = doctest.OutputChecker()
        got = printed.getvalue()
        assert checker.check_output(block.output, got, doctest.ELLIPSIS), (
            f"{block.place} printed\n{got}\nthe page says\n{block.output}"
        )
    assert os.getcwd() != str(folder)
