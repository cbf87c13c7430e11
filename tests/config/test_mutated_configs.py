"""Two hundred broken searches: each refused with exit code 2, its file and the place named.

Mutations are drawn with a fixed seed from lists by kind of value, so that each is a fault by
construction. The teacher must never be asked for: a mutation that gets as far as loading it was let
through.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from circuitsearch import stages
from circuitsearch.cli.main import app
from circuitsearch.configfile import load_config

# Leaves are YAML as written; the kind of each says which mutations are faults.
GOOD: dict[str, Any] = {
    "name": ("word", "trial"),
    "output": ("path", "out"),
    "teacher": ("text", "shipped"),
    "device": ("text", "cpu"),
    "seed": ("natural", "3"),
    "data": {
        "source": ("choice", "docvqa"),
        "path": ("path", "pages.json"),
        "images": ("path", "pages"),
        "faults": ("choice", "skip"),
        "shares": {
            "train": ("share", "0.5"),
            "score": ("share", "0.1"),
            "select": ("share", "0.1"),
            "final": ("share", "0.2"),
        },
    },
    "generation": {"prompt": ("count", "42"), "passes": ("count", "34")},
    "scores": {"ablation": ("choice", "mean"), "metric": ("choice", "answer_loss")},
    "circuit": {
        "level": ("choice", "heads"),
        "pages": ("count", "24"),
        "memory_gigabytes": ("positive", "4.5"),
    },
    "space": {
        "attention": ("choice", "counts"),
        "widths": ("list", "[256, 512]"),
        "replacements": ("list", "[mean]"),
        "within": ("text", "S0 C0 C3"),
    },
    "elastic": {"steps": ("natural", "100"), "learning_rate": ("positive", "1e-3")},
    "distill": {
        "steps": ("count", "300"),
        "warmup": ("share", "0.05"),
        "temperature": ("positive", "2.0"),
        "preset": ("choice", "puzzle"),
        "losses": {"forward_kl": ("positive", "1.0")},
        "start": ("choice", "elastic"),
        "tensorboard": ("flag", "true"),
    },
    "exhaustive": {
        "top": ("count", "3"),
        "short": ("natural", "0"),
        "memory_gigabytes": ("positive", "1"),
    },
    "search": {
        "trainings": ("count", "10"),
        "sampler": ("choice", "elastic"),
        "objective": ("choice", "pareto"),
        "promote": ("natural", "0"),
        "storage": ("text", "study.db"),
        "lease_seconds": ("positive", "60"),
    },
    "evaluation": {"anls": ("choice", "strict")},
    "final": {"seeds": ("list", "[0, 1]"), "steps": ("count", "900")},
    "baselines": ("list", "[wanda]"),
    "cache": ("path", "cache"),
    "cache_gigabytes": ("positive", "20"),
    "cache_precision": ("choice", "bfloat16"),
}
BUDGET = "budget:\n  - quantity: parameters\n    limit: 31.25%\n  - {quantity: macs, limit: 757G}\n"

QUANTITY = "{quantity: parameters"
DIGITS = "9" * 5000  # more than Python turns into an integer
BLACK_HOLES = ["[a, b]", "{a: b}", "{steps: [[[{}]]]}", "2024-13-45", "!!int x", "!!python/name:os"]
NUMBERS = ["many", "'3'", "yes", "no", "null", ".nan", "2024-05-01", DIGITS, "0x" + "f" * 5000]
TEXTS = ["7", "1.5", "yes", "no", "null", "2024-05-01", '"\\0"', '"a\\eb"', '""', '" "', "1:30"]
BAD: dict[str, list[str]] = {
    "natural": [*NUMBERS, *BLACK_HOLES, "-1", "1.5", ".inf", "1e30", "9" * 30, "010", "1:30"],
    "count": [*NUMBERS, *BLACK_HOLES, "0", "-4", "2.5", "-.inf", "1e30", "9" * 30, "0100"],
    "positive": [*NUMBERS, *BLACK_HOLES, "0", "-1e-4", ".inf", "-.inf", "'1e-4'"],
    "share": [*NUMBERS, *BLACK_HOLES, "1.01", "-0.1", ".inf", "50%", "7"],
    "flag": ["7", "1", "maybe", "'yes'", "null", ".nan", *BLACK_HOLES],
    "choice": [*TEXTS, *BLACK_HOLES, "nonsense", "Elastik", "\U0001f600", '"\\ud800"'],
    "path": [*TEXTS, *BLACK_HOLES],
    "text": [*TEXTS, *BLACK_HOLES],
    "word": [*TEXTS, *BLACK_HOLES, "a/b", "../up", "-x", "é", "x" * 81],
    "list": [
        "7",
        "yes",
        "null",
        "word",
        "[yes]",
        "[null]",
        "[[1]]",
        "[-1]",
        "[.nan]",
        *BLACK_HOLES,
    ],
}
NULLABLE = {"data.images", "search.sampler", "search.storage", "final.steps"}
SECTIONS = ["7", "yes", "null", "word", "[]", "[{}]", "[steps: 3]", "!!set {a}", "2024-05-01"]
STRANGE_KEYS = ["1", "no", "~", "? [a]\n:", "'a b'", "naïve", "a[0]", "tea-cher", '"\\e[2J"', "str"]
BROKEN = {
    "tab": (lambda text: text.replace("  top", "\ttop"), "line"),
    "open bracket": (lambda text: text + "zz: [1, 2\n", "line"),
    "open quote": (lambda text: text.replace("trial", '"trial'), "line"),
    "control character": (lambda text: text.replace("trial", "tr\x1bial"), "line 5"),
    "two documents": (lambda text: text + "---\nname: other\n", "line"),
    "unknown alias": (lambda text: text + "zz: *gone\n", "line"),
    "alias of itself": (lambda text: text + "zz: &a [*a]\n", "zz[0]"),
    "many aliases": (lambda text: text + _laughs(), "more than 10,000 keys"),
    "nested without end": (lambda text: text + "zz: " + "[" * 5000, "nested"),
    "key given twice": (lambda text: text + "name: other\n", "name is given twice"),
    "nested key given twice": (
        lambda text: text.replace("exhaustive:", "exhaustive:\n  top: 3"),
        "exhaustive.top is given twice",
    ),
    "list for the file": (lambda text: "- " + text.replace("\n", "\n  "), "a list"),
    "empty": (lambda text: "# nothing\n", "nothing"),
    "a word": (lambda text: "hello", "a single value"),
    "no budget": (lambda text: text.replace("budget:", "budgets:"), "budget: missing"),
    "budget of a word": (lambda text: text.replace(BUDGET, "budget: 31%\n"), "budget"),
    "limited twice": (lambda text: text.replace("{quantity: macs", QUANTITY), "budget"),
    "share above one": (lambda text: text.replace("31.25%", "131%"), "budget[0].limit"),
    "unit that is none": (lambda text: text.replace("757G", "757X"), "budget[1].limit"),
    "share as fraction": (lambda text: text.replace("31.25%", "0.3125"), "budget[0].limit"),
    "limit of a truth value": (lambda text: text.replace("31.25%", "yes"), "budget[0].limit"),
    "accounting of a truth value": (
        lambda text: text.replace("757G", "757G, accounting: no"),
        "budget[1].accounting",
    ),
}  # fmt: skip


def _laughs() -> str:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines) + "\n"


def _written(tree: dict[str, Any], indent: str = "") -> str:
    text = ""
    for key, value in tree.items():
        inner = _written(value, indent + "  ") if isinstance(value, dict) else ""
        text += f"{indent}{key}:\n{inner}" if inner else f"{indent}{key}: {value[1]}\n"
    return text


def _leaves(
    tree: dict[str, Any], place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*place, key))
        else:
            yield (*place, key), value[0]


def _sections(tree: dict[str, Any], place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield (*place, key)
            yield from _sections(value, (*place, key))


def _changed(place: tuple[str, ...], value: Any, key: str | None = None) -> str:
    """Return the good search with another value, or another key, at a place."""
    tree = copy.deepcopy(GOOD)
    section = tree
    for part in place[:-1]:
        section = section[part]
    if key is None:
        section[place[-1]] = ("", value)
    else:
        section[key] = section.pop(place[-1])
    return BUDGET + _written(tree)


def _mutations() -> list[tuple[str, str, str]]:
    """Return (what was done, text, what the message must name); two hundred, by a fixed seed."""
    draw = random.Random(0)
    leaves, sections = list(_leaves(GOOD)), list(_sections(GOOD))
    values = [
        (f"{'.'.join(place)}: {bad[:30]}", _changed(place, bad), ".".join(place))
        for place, kind in leaves
        for bad in BAD[kind]
        if not (bad == "null" and ".".join(place) in NULLABLE)
    ]
    misspelt = [
        (f"key {'.'.join(place)} for {wrong}", _changed(place, None, wrong), wrong)
        for place, _ in leaves
        for wrong in (place[-1][:-1] + "x", place[-1].upper())
    ]
    emptied = [
        (f"section {'.'.join(place)}: {bad}", _changed(place, bad), place[0])
        for place in sections
        for bad in SECTIONS
    ]
    strange = [
        (
            f"strange key {key} in {section}",
            _changed((section, "zz"), "7").replace("zz", key),
            "line",
        )
        for section in ("search", "distill", "data")
        for key in STRANGE_KEYS
    ]
    text = BUDGET + _written(GOOD)
    broken = [(what, change(text), named) for what, (change, named) in BROKEN.items()]
    drawn = draw.sample(values, 105) + draw.sample(misspelt, 30) + draw.sample(emptied, 28)
    return broken + drawn + draw.sample(strange, 200 - len(drawn) - len(broken))


MUTATIONS = _mutations()


def test_there_are_two_hundred_different_ones(tmp_path: Path) -> None:
    assert len({text for _, text, _ in MUTATIONS}) == 200
    path = tmp_path / "good.yaml"
    path.write_text(BUDGET + _written(GOOD))
    assert load_config(path).elastic.learning_rate == 1e-3  # what they are mutations of is valid


@pytest.mark.parametrize(("what", "text", "named"), MUTATIONS, ids=[one[0] for one in MUTATIONS])
def test_it_is_refused_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, text: str, named: str
) -> None:
    def load(work: object) -> None:
        raise AssertionError(f"{what}: let through")

    monkeypatch.setattr(stages, "load", load)
    monkeypatch.chdir(tmp_path)
    path = Path("mutated.yaml")
    path.write_text(text, encoding="utf-8")
    done = CliRunner().invoke(app, ["validate", str(path)])
    assert done.exit_code == 2, f"{done.stderr}\n{done.exception!r}"
    assert "mutated.yaml" in done.stderr
    assert named in done.stderr, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr  # what a file holds never steers the terminal
    assert len(done.stderr) < 5000
    assert not Path("out").exists()
