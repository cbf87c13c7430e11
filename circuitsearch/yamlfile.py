"""YAML as people mean it: what reads otherwise than it looks is mended or refused.

* `1e-4` is a number, as in YAML 1.2; PyYAML reads a text.
* A key given twice, `010` (octal 8), `1:30` (sexagesimal 90) and keys that are no words are faults.
* Files that refer to themselves, nest without end or multiply by aliases are refused unread.

`read` also returns where every key stands, so that later faults can name their line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from circuitsearch.core.errors import ConfigError, raise_together
from circuitsearch.core.text import hide_passwords, one_line

__all__ = ["Location", "dotted", "read", "read_value", "shown"]

Location = tuple[str | int, ...]

_MOST_KEYS = 10_000
_LONGEST = 80
_TRAP = re.compile(r"[-+]?(0[0-9_]+|[0-9_]+(:[0-5]?[0-9])+(\.[0-9_]*)?)")

_WORDS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


class _CycleError(Exception):
    """A tree that holds itself, at a name and a line."""


class _Loader(yaml.SafeLoader):
    """The safe loader with the floats of YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read(text: str, where: str) -> tuple[dict[str, Any], dict[Location, int]]:
    """Read a mapping.

    Args:
        text: The YAML.
        where: The file, for messages.

    Returns:
        The mapping, and the line of every key and list entry by its location.

    Raises:
        ConfigError: It is no YAML, no mapping, or has one of the faults above; with lines.
    """
    root = _composed(text, where)
    if not isinstance(root, yaml.MappingNode):
        got = {yaml.SequenceNode: "a list", yaml.ScalarNode: "a single value"}
        raise ConfigError(
            f"{where}: expected `key: value` lines, got {got.get(type(root), 'nothing')}"
        )
    lines: dict[Location, int] = {}
    faults: list[str] = []
    try:
        for place, key, value, line in _places(root, (), ()):
            if place in lines:
                first = lines[place]
                faults.append(
                    f"line {line}: {dotted(place)} is given twice (first in line {first})"
                )
            lines[place] = line
            faults += [f"line {line}: {fault}" for fault in _traps(place, key, value)]
            if len(lines) > _MOST_KEYS:
                raise ConfigError(
                    f"{where}: more than {_MOST_KEYS:,} keys, aliases counted; a search has dozens"
                )
    except _CycleError as error:
        name, line = error.args
        raise ConfigError(
            f"{where}: line {line}: {name}: an alias (*) of what it stands in; write the value out"
        ) from None
    raise_together(faults, ConfigError, where)
    data: dict[str, Any] = _constructed(root, where)
    return data, lines


def read_value(text: str, where: str) -> Any:
    """Read one value, e.g. of an override.

    Raises:
        ConfigError: It is no YAML.
    """
    root = _composed(text, where)
    return None if root is None else _constructed(root, where)


def dotted(location: Location) -> str:
    """Return a location as people write it, e.g. `budget[0].limit`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return one_line(hide_passwords(text))


def shown(value: object) -> str:
    """Return a value for a message: on one line, cut where it is long, without passwords."""
    try:
        text = one_line(hide_passwords(repr(value)))
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _composed(text: str, where: str) -> yaml.Node | None:
    try:
        root: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(_not_yaml(error, text, where)) from error
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply to be read") from None
    return root


def _constructed(root: yaml.Node, where: str) -> Any:
    """Return a tree's value; a date or a number that is none is a ValueError of Python's own."""
    loader = _Loader("")
    try:
        return loader.construct_document(root)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}: {_culprit(root)} ({shown(problem)[1:-1]})") from error


def _culprit(root: yaml.Node) -> str:
    """Say which value Python cannot make."""
    for place, _, node, line in _places(root, (), ()):
        if not isinstance(node, yaml.ScalarNode):
            continue
        try:
            _Loader("").construct_document(node)
        except (yaml.YAMLError, ValueError, TypeError, OverflowError):
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            got = shown(node.value)
            return f"line {line}: {dotted(place)}: {got} cannot be read as {kind}; quote a text"
    return "a value cannot be read"


def _not_yaml(error: yaml.YAMLError, text: str, where: str) -> str:
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark else None
    if isinstance(error, yaml.reader.ReaderError):
        line = text[: error.position].count("\n") + 1
    place = f", line {line}" if line else ""
    problem = getattr(error, "problem", None) or str(error)
    tab = "; indent with spaces" if "'\\t'" in problem else ""
    return f"{where}{place}: not valid YAML ({one_line(problem)}{tab})"


def _places(
    node: yaml.Node, place: Location, above: tuple[int, ...]
) -> Iterator[tuple[Location, yaml.Node | None, yaml.Node, int]]:
    """Yield (location, key, value, line) of everything in a tree; entries of lists have no key."""
    if id(node) in above:
        raise _CycleError(dotted(place), node.start_mark.line + 1)
    inside = (*above, id(node))
    entries: list[tuple[yaml.Node | None, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        entries = node.value
    elif isinstance(node, yaml.SequenceNode):
        entries = [(None, value) for value in node.value]
    for i, (key, value) in enumerate(entries):
        name = i if key is None else key.value if isinstance(key, yaml.ScalarNode) else "?"
        first = value if key is None else key
        yield (*place, name), key, value, first.start_mark.line + 1
        yield from _places(value, (*place, name), inside)


def _traps(place: Location, key: yaml.Node | None, value: yaml.Node) -> Iterator[str]:
    """Say what YAML reads otherwise than it looks."""
    if key is not None and key.tag not in _WORDS:
        kind = key.tag.removeprefix("tag:yaml.org,2002:")
        yield f"{dotted(place)}: YAML reads this key as {kind}; keys are words, quote it"
    if value.tag.endswith((":int", ":float")) and _TRAP.fullmatch(str(value.value)):
        yield (
            f"{dotted(place)}: YAML reads {value.value} in base 8 or 60; write the decimal number, "
            "or quote a text"
        )
