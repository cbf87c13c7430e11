"""`init` and `schema`: what they write is what the code reads, whatever the fields are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner, Result

from circuitsearch.cli.main import app
from circuitsearch.config import SearchConfig
from circuitsearch.config.template import json_schema
from circuitsearch.configfile import load_config


def here(*arguments: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == code, f"{done.stderr}\n{done.exception!r}"
    return done


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from _models(field.annotation)
    for argument in getattr(annotation, "__args__", ()):
        yield from _models(argument)


MODELS = list(dict.fromkeys(_models(SearchConfig)))


def test_the_file_reads_back_as_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "my search.yaml"
    done = here("init", path)
    assert done.stdout == ""
    assert "circuitsearch validate" in done.stderr
    assert load_config(path) == SearchConfig.model_validate(
        {
            "name": "my-search",
            "output": "results/my-search",
            "budget": [
                {"quantity": "parameters", "limit": "31.25%"},
                {"quantity": "macs", "limit": "50%"},
            ],
        }
    )


@pytest.mark.parametrize(
    ("data", "source"),
    [("rendered", "rendered"), ("val.JSON", "docvqa"), ("lmms-lab/DocVQA", "huggingface")],
)
def test_every_key_is_there_with_its_meaning(tmp_path: Path, data: str, source: str) -> None:
    path = tmp_path / "search.yaml"
    here("init", path, "--teacher", "my/teacher", "--data", data, "--budget", "latency=12ms")
    config, text = load_config(path), path.read_text()
    assert (config.teacher, config.data.source) == ("my/teacher", source)
    assert [(one.quantity, one.limit) for one in config.budget] == [("latency", "12ms")]
    assert yaml.safe_load(text) == config.to_json()  # no default is left unsaid
    words = " ".join(text.replace("#", " ").split())
    for model in MODELS:
        for name, field in model.model_fields.items():
            section = isinstance(field.default, BaseModel)
            assert section or field.description, f"{model.__name__}.{name} has no meaning"
            assert section or " ".join(str(field.description).split()) in words, name


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text("mine")
    assert "exists already" in here("init", path, code=2).stderr
    assert path.read_text() == "mine"
    assert [one.name for one in tmp_path.iterdir()] == ["search.yaml"]


def test_wrong_choices_are_named(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    done = here("init", path, "--budget", "parameter=50%", code=2)
    assert "budget[0].quantity" in done.stderr
    assert "did you mean 'parameters'" in done.stderr
    assert "QUANTITY=LIMIT" in here("init", path, "--budget", "50%", code=2).stderr
    assert not path.exists()


def test_to_standard_output(tmp_path: Path) -> None:
    done = here("init", "-")
    assert done.stderr == ""
    assert SearchConfig.model_validate(yaml.safe_load(done.stdout)).name == "search"


def test_the_editor_finds_the_schema_beside_the_file(tmp_path: Path) -> None:
    here("init", tmp_path / "search.yaml")
    first = (tmp_path / "search.yaml").read_text().splitlines()[0]
    name = first.removeprefix("# yaml-language-server: $schema=")
    assert json.loads((tmp_path / name).read_text()) == json_schema()
    assert json.loads(here("schema").stdout) == json_schema()
    (tmp_path / "bare").mkdir()
    here("init", tmp_path / "bare" / "search.yaml", "--no-schema")
    assert [one.name for one in (tmp_path / "bare").iterdir()] == ["search.yaml"]
    assert "yaml-language-server" not in (tmp_path / "bare" / "search.yaml").read_text()


def _unknown(value: Any, schema: dict[str, Any], root: dict[str, Any], place: str) -> Iterator[str]:
    """Yield what of a document the schema refuses: a literal reading of the keywords it uses."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        found = [list(_unknown(value, one, root, place)) for one in choices]
        yield from min(found, key=len)
        return
    types: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "integer": int, "number": (int, float),
        "boolean": bool, "null": type(None),
    }  # fmt: skip
    if "type" in schema and not isinstance(value, types[schema["type"]]):
        yield f"{place}: {value!r} is no {schema['type']}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place}: {value!r}"
    if "const" in schema and value != schema["const"]:
        yield f"{place}: {value!r}"
    if isinstance(value, int | float) and value < schema.get("minimum", value):
        yield f"{place}: {value!r}"
    if isinstance(value, dict):
        yield from (f"{place}.{n}" for n in schema.get("required", []) if n not in value)
        for name, inner in value.items():
            if name in schema.get("properties", {}):
                yield from _unknown(inner, schema["properties"][name], root, f"{place}.{name}")
            elif schema.get("additionalProperties") is False:
                yield f"{place}.{name}"
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        for i, inner in enumerate(value):
            yield from _unknown(inner, schema["items"], root, f"{place}[{i}]")


@pytest.mark.parametrize("path", sorted(Path("searches").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_searches_fit_the_schema(path: Path) -> None:
    schema = json_schema()
    assert list(_unknown(yaml.safe_load(path.read_text()), schema, schema, "")) == []


def test_the_schema_refuses_what_the_code_refuses() -> None:
    schema = json_schema()
    good = yaml.safe_load(Path("searches/quickstart.yaml").read_text())
    for bad in (
        {"teachr": "x"},
        {"distill": {"steps": "many"}},
        {"distill": {"steps": 0}},
        {"data": {"source": "pdf"}},
        {"budget": [{"quantity": "money", "limit": "3"}]},
        {"budget": None},
    ):
        assert list(_unknown({**good, **bad}, schema, schema, "")), bad
