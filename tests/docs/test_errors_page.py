"""The error index misses no error class and no exit code, and its messages are in the code."""

from __future__ import annotations

import ast
import importlib
import re

from circuitsearch.core.errors import CircuitSearchError
from tests.docs.blocks import ROOT

TEXT = (ROOT / "docs" / "errors.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)\n\n(.*?)(?=\n## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
PACKAGE = ROOT / "circuitsearch"


def classes() -> dict[str, type[CircuitSearchError]]:
    """Return every public error class of the package, wherever it lives."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for name in re.findall(r"^class ([A-Z]\w*Error)\(", path.read_text(), re.MULTILINE):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            one = getattr(importlib.import_module(module), name)
            if issubclass(one, CircuitSearchError):
                found[name] = one
    return found


def literals() -> set[str]:
    """Return every text in the package, f-strings with … for what is filled in."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for part in ast.walk(ast.parse(path.read_text())):
            if isinstance(part, ast.JoinedStr):
                pieces = [str(v.value) if isinstance(v, ast.Constant) else "…" for v in part.values]
                found.add("".join(pieces))
            elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                found.add(part.value)
    return found


def test_every_class_has_a_section_with_its_code() -> None:
    known = classes()
    assert len(known) >= 7
    assert set(SECTIONS) == set(known)
    for name, one in known.items():
        assert SECTIONS[name].startswith(f"Exit code {one.exit_code}. "), name


def test_every_exit_code_is_in_the_table_with_its_classes() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*?) \|(.*?)\|$", TEXT, re.MULTILINE)
    listed = {int(code): set(re.findall(r"`(\w+Error)`", names)) for code, _, names in rows}
    known = classes()
    assert set(listed) == {0, 130} | {one.exit_code for one in known.values()}
    for name, one in known.items():
        if one.exit_code:
            assert name in listed[one.exit_code]


def test_messages_are_those_of_the_code() -> None:
    texts = literals()
    listed = 0
    for name, section in SECTIONS.items():
        messages = re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE)
        assert messages, name
        for message in messages:
            for piece in filter(None, (one.strip(" ;:") for one in message.split("…"))):
                assert any(piece in text for text in texts), f"{name}: {message}: {piece}"
            listed += 1
    assert listed >= 25
