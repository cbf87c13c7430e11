"""Reading a search's YAML file: every fault named with its line, all of them together.

pydantic speaks of types; a user wants to know which line to change, or which override. What YAML
itself gets wrong is in `yamlfile`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from circuitsearch.config import SearchConfig
from circuitsearch.core.errors import ConfigError, nearest, raise_together
from circuitsearch.core.text import hide_passwords, one_line
from circuitsearch.yamlfile import Location, dotted, read, read_value, shown

__all__ = ["check_config", "dump_config", "load_config"]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """Read and check a search.

    Args:
        path: YAML file.
        overrides: `key.sub=value` texts that win over the file; values are YAML, and an entry of a
            list is named by its number (`budget.0.limit=40%`).

    Returns:
        The search, every default filled in.

    Raises:
        ConfigError: Naming every fault with its key and line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = nearest(path.name, [p.name for p in path.parent.glob("*.yaml")])
        hint = f"; nearest: {path.parent / near}" if near else ""
        raise ConfigError(
            f"{path}: no such file{hint}; `circuitsearch init {path}` writes one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    data, lines = read(text, str(path))
    origins = {place: f"line {line}" for place, line in lines.items()}
    return check_config(data, str(path), overrides, origins)


def check_config(
    data: dict[str, Any],
    where: str,
    overrides: Sequence[str] = (),
    origins: Mapping[Location, str] | None = None,
) -> SearchConfig:
    """Check a search.

    Args:
        data: As read from YAML; overrides are put into it.
        where: What is being read, for messages.
        overrides: See `load_config`.
        origins: Where a key was given, e.g. `line 4`, by its location.

    Raises:
        ConfigError: Naming every fault with its key and origin.
    """
    origins = dict(origins or {})
    for override in overrides:
        place = _override(data, override)
        origins = {one: origins[one] for one in origins if one[: len(place)] != place}
        origins[place] = _named(override)
    try:
        return SearchConfig.model_validate(data)
    except ValidationError as error:
        found: dict[Location, list[Any]] = {}
        for fault in error.errors():  # every alternative of a type has a fault of its own
            place = _located(tuple(fault["loc"]), data, added=fault["type"] == "missing")
            found.setdefault(place, []).append(fault)
        faults = [_describe(*one, data, origins) for one in found.items()]
        raise_together(faults, ConfigError, where)
        raise  # unreachable: a ValidationError has at least one fault


def dump_config(config: SearchConfig) -> str:
    """Return the resolved configuration as YAML that `load_config` reads back."""
    body: str = yaml.safe_dump(config.to_json(), sort_keys=False, allow_unicode=True)
    return body


def _named(override: str) -> str:
    """Return how messages call an override; its value may be a URL with a password."""
    return f"override {hide_passwords(override)!r}"


def _override(data: dict[str, Any], text: str) -> Location:
    """Apply one `key.sub=value`; return the location it sets."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{_named(text)}: expected key=value, e.g. search.trainings=20")
    place: Any = data
    location: Location = ()
    parts = key.strip().split(".")
    for part in parts:
        inner: str | int = part
        if isinstance(place, list):
            if not (part.isdecimal() and int(part) < len(place)):
                raise ConfigError(
                    f"{_named(text)}: {dotted(location)} is a list of {len(place)}; name one of "
                    "its entries by its number, from 0"
                )
            inner = int(part)
        elif not isinstance(place, dict):
            raise ConfigError(f"{_named(text)}: {dotted(location)} is no section of the search")
        location = (*location, inner)
        if len(location) == len(parts):
            place[inner] = read_value(value, _named(text))
        elif isinstance(place, dict):
            place = place.setdefault(part, {})
        else:
            place = place[int(part)]
    return location


def _describe(
    known: Location,
    faults: Sequence[Mapping[str, Any]],
    data: Any,
    origins: Mapping[Location, str],
) -> str:
    """Return the faults of one place as `line N: key: what, got, allowed`."""
    origin = next(
        (origins[known[:n]] for n in range(len(known), 0, -1) if known[:n] in origins), ""
    )
    where = (f"{origin}: " if origin else "") + (dotted(known) or "the search as a whole")
    fault, kind = faults[0], faults[0]["type"]
    if kind == "extra_forbidden":
        allowed = _allowed(known[:-1], data)
        near = nearest(str(known[-1]), allowed)
        hint = f"; did you mean {near!r}?" if near else ""
        return f"{where}: unknown key{hint} Allowed here: {', '.join(allowed)}"
    if kind == "missing":
        return f"{where}: missing; add it"
    if kind.startswith("union_tag"):
        return f"{where}.source: {_which_source(fault['input'])}"
    messages = [one_line(str(one["msg"]).removeprefix("Value error, ")) for one in faults]
    message = " or ".join(
        [messages[0], *(one.removeprefix("Input should be ") for one in messages[1:])]
    )
    got = fault.get("input")
    nothing = isinstance(got, dict | list) or kind == "value_error"
    return f"{where}: {message}{'' if nothing else f', got {shown(got)}'}{_hint(got, faults)}"


def _which_source(section: Mapping[str, Any]) -> str:
    """Say which kinds of data there are, to a section that names none of them."""
    allowed = [str(source) for source in _SOURCES]
    if "source" not in section:
        near = nearest("source", section)
        hint = f", where it has {near!r}" if near else ""
        return f"missing{hint}; allowed are {', '.join(allowed)}"
    near = nearest(str(section["source"]), allowed)
    hint = f"; did you mean {near!r}?" if near else ""
    return f"got {shown(section['source'])}, allowed are {', '.join(allowed)}{hint}"


def _hint(got: Any, faults: Sequence[Mapping[str, Any]]) -> str:
    """Return the nearest word, or what to do about a value that YAML read as something else."""
    kinds = {fault["type"] for fault in faults}
    if isinstance(got, bool):
        return "; YAML reads yes/no/on/off as true/false, quote it"
    if "string_type" in kinds and isinstance(got, int | float | date):
        return "; to write a text, quote it"
    if isinstance(got, str) and kinds & {"int_type", "float_type", "bool_type"}:
        return "; a number or true/false stands without quotes"
    if got is None:
        return "; leave the key out for its default"
    expected = " ".join(str(fault.get("ctx", {}).get("expected", "")) for fault in faults)
    near = nearest(got, re.findall("'([^']*)'", expected)) if isinstance(got, str) else None
    return f"; did you mean {near!r}?" if near else ""


def _located(location: Location, data: Any, *, added: bool) -> Location:
    """Return the keys of a location that are in the file, without what pydantic adds to it.

    Args:
        location: As pydantic has it, with names of alternatives ("docvqa", "str", "[key]").
        data: The file.
        added: Whether the last part is a key that the file lacks.
    """
    if location[:1] == ("data",) and location[1:2] in [(source,) for source in _SOURCES]:
        location = ("data", *location[2:])
    kept: Location = ()
    for i, part in enumerate(location):
        within = part in data if isinstance(data, dict) else isinstance(data, list)
        if within:
            data = data[part]  # of a list, pydantic names entries that are there
        elif not (added and i == len(location) - 1):
            continue
        kept = (*kept, part)
    return kept


def _allowed(place: Location, data: Any) -> list[str]:
    """Return the keys of the section at a location."""
    model: type[BaseModel] = SearchConfig
    for part in place:
        data = data[part]
        if isinstance(part, str):
            options = list(_models(model.model_fields[part].annotation))
            named = data.get("source") if isinstance(data, dict) else None
            model = next((one for one in options if _source(one) == named), options[0])
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models(argument)


def _source(model: type[BaseModel]) -> str | None:
    """Return the word that chooses a kind of data; None for other sections."""
    field = model.model_fields.get("source")
    return None if field is None else str(get_args(field.annotation)[0])


_SOURCES = tuple(_source(model) for model in _models(SearchConfig.model_fields["data"].annotation))
