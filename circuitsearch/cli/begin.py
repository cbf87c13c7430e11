"""The commands to begin with: write a commented search file, print its JSON schema."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from .shell import command, emit, people

__all__ = ["init_command", "schema_command"]

SCHEMA_FILE = "circuitsearch.schema.json"
"""The schema that editors find by the first line of the search file beside it."""


@command
def init_command(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="File to write; `-` for standard output.")
    ] = Path("search.yaml"),
    teacher: Annotated[
        str, typer.Option(help="`shipped`, a checkpoint folder or a Hugging Face name.")
    ] = "shipped",
    data: Annotated[
        str, typer.Option(help="`rendered`, DocVQA's JSON file, a Parquet file, folder or name.")
    ] = "rendered",
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="QUANTITY=LIMIT",
            help="E.g. parameters=20M or latency=12ms; may be repeated. "
            "Default: parameters=31.25%, macs=50%.",
        ),
    ] = None,
    schema: Annotated[
        bool, typer.Option(help=f"Write {SCHEMA_FILE} beside it, for editors.")
    ] = True,
) -> None:
    """Write a search file with every key, its default, its meaning and what is allowed."""
    from circuitsearch.config.template import beginning, commented, json_schema
    from circuitsearch.configfile import check_config
    from circuitsearch.core.errors import ConfigError
    from circuitsearch.core.files import write_json, write_text

    printed = str(file) == "-"
    if not printed and file.exists():
        raise ConfigError(f"{file}: exists already; choose another name or remove it")
    stem = "search" if printed else file.stem
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:80] or "search"
    given = beginning(name, teacher, data, _limits(budget), f"results/{name}")
    text = commented(check_config(given, "circuitsearch init"))
    head = (
        f"# circuitsearch run {file}\n#\n# Every key; those left out have the defaults below.\n\n"
    )
    if printed:
        sys.stdout.write(text)
        return
    if schema:
        head = f"# yaml-language-server: $schema={SCHEMA_FILE}\n{head}"
        write_json(file.parent / SCHEMA_FILE, json_schema())
    write_text(file, head + text)
    people().print(f"written: {file}\nnext: circuitsearch validate {file}", markup=False)


@command
def schema_command() -> None:
    """Print the JSON schema of search files, for editors."""
    from circuitsearch.config.template import json_schema

    emit(json_schema())


def _limits(budget: list[str] | None) -> dict[str, str]:
    """Return the limits by quantity."""
    from circuitsearch.core.errors import ConfigError

    limits: dict[str, str] = {}
    for one in budget or ["parameters=31.25%", "macs=50%"]:
        quantity, equals, limit = one.partition("=")
        if not equals or not limit.strip():
            raise ConfigError(f"--budget: got {one!r}, expected QUANTITY=LIMIT, e.g. macs=50%")
        if quantity.strip() in limits:
            raise ConfigError(f"--budget: {quantity.strip()} is limited twice")
        limits[quantity.strip()] = limit.strip()
    return limits
