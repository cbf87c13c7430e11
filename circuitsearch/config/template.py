"""A search file to begin with, and the JSON schema for editors, both made from the fields.

Every key is written with its value, and above it its meaning and what is allowed, taken from the
field's description and type: the file cannot say anything else than the code does.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from .base import MOST
from .data import DataConfig
from .search import SearchConfig

__all__ = ["beginning", "commented", "dotted_keys", "json_schema"]

_WIDTH = 96


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a search file, for editors and other programs."""
    schema = SearchConfig.model_json_schema(mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "circuitsearch search file",
    }


def beginning(
    name: str, teacher: str, data: str, budget: Mapping[str, str], output: str
) -> dict[str, Any]:
    """Return what a new search chooses; everything else is left at its default.

    Args:
        name: Name of the search.
        teacher: `shipped`, a folder or a name.
        data: `rendered`, a DocVQA annotation file (.json), or a Hugging Face data set.
        budget: Limit by quantity.
        output: Folder for everything that the search writes.
    """
    sources: dict[str, Any] = {"source": "rendered"}
    if data != "rendered":
        kind = "docvqa" if data.lower().endswith(".json") else "huggingface"
        sources = {"source": kind, "path": data}
    limits = [{"quantity": quantity, "limit": limit} for quantity, limit in budget.items()]
    return {"name": name, "output": output, "teacher": teacher, "data": sources, "budget": limits}


def dotted_keys() -> list[str]:
    """Return every key that holds a value, e.g. `search.trainings` and `budget.0.limit`."""
    found = ["budget.0.quantity", "budget.0.limit", "budget.0.scope", "budget.0.accounting"]
    for name, field in SearchConfig.model_fields.items():
        sections: list[Any] = [field.annotation]
        if name == "data":
            sections = list(get_args(get_args(DataConfig)[0]))
        for section in sections:
            if isinstance(section, type) and issubclass(section, BaseModel):
                found += [f"{name}.{key}" for key in section.model_fields]
            elif name != "budget":
                found.append(name)
    return list(dict.fromkeys(found))


def commented(config: SearchConfig) -> str:
    """Return a search as YAML with every key, its meaning and what is allowed.

    Reading it back gives an equal search.
    """
    lines: list[str] = []
    values = config.to_json()
    facts = SearchConfig.model_json_schema()["properties"]
    for name, field in SearchConfig.model_fields.items():
        if name == "data":
            lines += ["", *_data(config.data, values["data"])]
        elif name == "budget":
            lines += ["", *_budget(config, values["budget"])]
        elif isinstance(value := getattr(config, name), BaseModel):
            lines += ["", *_comment(str(type(value).__doc__), "")]
            lines += [f"{name}:", *_fields(type(value), values[name], "  ")]
        else:
            lines += ["", *_comment(_meaning(field.description, facts[name]), "")]
            lines.append(_line(name, values[name], ""))
    return "\n".join(lines[1:]) + "\n"


def _data(data: Any, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the section of the pages; the other sources follow as comments."""
    yield from _comment(str(type(data).__doc__), "")
    yield "data:"
    yield from _fields(type(data), values, "  ")
    for other in get_args(get_args(DataConfig)[0]):
        if not isinstance(data, other):
            source = get_args(other.model_fields["source"].annotation)[0]
            needed = {"path": "PATH"} if "path" in other.model_fields else {}
            example = other.model_validate({"source": source, **needed})
            yield from _comment(f"Or: {other.__doc__}", "")
            lines = _fields(other, example.model_dump(mode="json"), "  ")
            yield from (f"# {line}" for line in ("data:", *lines))


def _budget(config: SearchConfig, values: list[dict[str, Any]]) -> Iterator[str]:
    yield from _comment(str(SearchConfig.model_fields["budget"].description), "")
    yield "budget:"
    for place, (limit, value) in enumerate(zip(config.budget, values, strict=True)):
        lines = list(_fields(type(limit), value, "    "))
        if place:  # explained once
            lines = [line for line in lines if not line.lstrip().startswith("#")]
        first = next(i for i, line in enumerate(lines) if not line.lstrip().startswith("#"))
        lines[first] = "  - " + lines[first].strip()
        yield from lines


def _fields(model: type[BaseModel], values: Mapping[str, Any], indent: str) -> Iterator[str]:
    """Yield the keys of one section."""
    facts = model.model_json_schema()["properties"]
    fields = model.model_fields
    for name in sorted(fields, key=lambda one: (one != "source", not fields[one].is_required())):
        yield from _comment(_meaning(fields[name].description, facts[name]), indent)
        yield _line(name, values[name], indent)


def _line(name: str, value: Any, indent: str) -> str:
    flow = isinstance(value, list | dict)
    text = yaml.safe_dump(
        value if flow else {name: value},
        default_flow_style=flow,
        sort_keys=False,
        allow_unicode=True,
        width=10_000,
    ).rstrip()
    return f"{indent}{name}: {text}" if flow else indent + text


def _comment(text: str, indent: str) -> list[str]:
    """Return the first paragraph of a text as comment lines."""
    words = " ".join(text.strip().split("\n\n")[0].split())
    start = f"{indent}# "
    return textwrap.wrap(
        words,
        _WIDTH,
        initial_indent=start,
        subsequent_indent=start,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _meaning(description: str | None, fact: Mapping[str, Any]) -> str:
    allowed = _allowed(fact)
    return "; ".join(part for part in (description, allowed and f"allowed: {allowed}") if part)


def _allowed(fact: Mapping[str, Any]) -> str:
    """Return in words what a JSON schema allows; empty where the meaning says it all."""
    if "anyOf" in fact:
        parts = [_allowed(one) for one in fact["anyOf"]]
        return " or ".join(parts) if all(parts) else ""
    if "enum" in fact:
        return ", ".join(map(str, fact["enum"]))
    if "const" in fact:
        return str(fact["const"])
    if fact.get("type") == "null":
        return "null"
    if fact.get("type") == "boolean":
        return "true, false"
    if fact.get("type") == "array" and isinstance(fact.get("items"), dict):
        inner = _allowed(fact["items"])
        return f"a list of {inner}" if inner else ""
    if fact.get("type") == "object":
        return ", ".join(map(str, fact.get("propertyNames", {}).get("enum", [])))
    return _range(fact)


def _range(fact: Mapping[str, Any]) -> str:
    kind = {"integer": "integers", "number": "numbers"}.get(str(fact.get("type")))
    if kind is None:
        return ""
    parts = [kind]
    if "minimum" in fact:
        parts.append(f"from {fact['minimum']:g}")
    if "exclusiveMinimum" in fact:
        parts.append(f"above {fact['exclusiveMinimum']:g}")
    if fact.get("maximum", MOST) != MOST:
        parts.append(f"to {fact['maximum']:g}")
    return " ".join(parts)
