"""The model card of a student folder: what it is, what it costs, how good it is, how it was made.

Everything in it may come from somebody else's config or data set, so it is escaped for its place;
commands stand in fences that are longer than any run of backticks inside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from circuitsearch.core.cost import ACCOUNTINGS, Cost, cost
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.text import escape_markdown
from circuitsearch.students.student import plan_of

if TYPE_CHECKING:
    from circuitsearch.teacher.loading import Teacher

__all__ = ["CardFacts", "student_card"]

_FOLDER = "STUDENT"
_ASKING = f"""import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, DonutProcessor

processor = DonutProcessor.from_pretrained("{_FOLDER}")
model = AutoModelForImageTextToText.from_pretrained("{_FOLDER}"@OPTION@)
page = processor.image_processor([Image.open("page.png").convert("RGB")], return_tensors="pt")
prompt = processor.tokenizer(@PROMPT@, add_special_tokens=False, return_tensors="pt")
ids = model.generate(page["pixel_values"], decoder_input_ids=prompt.input_ids)
@PRINTED@
"""


_WRITTEN = "processor.tokenizer.decode(ids[0, prompt.input_ids.shape[1] :]@HOW@)"


@dataclass(frozen=True)
class CardFacts:
    """What is known about a student beside its weights; what is not given is not in the card.

    Attributes:
        measurement: how good it is.
        scored_on: the pages behind the measurement.
        data: what it was trained on, e.g. {"source": "rendered", "pages": 1500}.
        training: the recipe, e.g. {"steps": 300, "learning rate": 1e-3}.
        seeds: of the training.
        command: the command that made it.
    """

    measurement: Measurement | None = None
    scored_on: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    command: str | None = None


def student_card(
    model: Any, teacher: Teacher, facts: CardFacts, *, stock: bool, reasons: Sequence[str] = ()
) -> str:
    """Return the README.md of a student's folder.

    Args:
        model: the student.
        teacher: its teacher.
        facts: what is known beside.
        stock: whether the folder holds a stock model.
        reasons: why it does not, where that was asked for.
    """
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: document-question-answering\n"
        "tags:\n- circuitsearch\n- donut\n- pruning\n- distillation\n---\n",
        f"# Student of {escape_markdown(teacher.name)}\n",
        f"Plan: {_code(str(plan_of(model)) or '(nothing)')}\n",
        "It answers questions about page images. Its decoder holds the sub-layers, heads and "
        "neurons of its teacher's decoder that the plan names; its encoder is the teacher's. It "
        "was made by circuitsearch.\n",
        _costs(model, teacher, facts),
        _section("Scores", _scores(facts)),
        _section("Training", _made(teacher, facts)),
    ]
    if facts.command is not None:
        parts.append(f"## Command\n\n{_fenced(facts.command)}\n")
    parts.append(_loading(teacher, stock, reasons))
    return "\n".join(part for part in parts if part)


def _costs(model: Any, teacher: Teacher, facts: CardFacts) -> str:
    """Return parameters and multiply-adds of every scope, in both accountings."""
    rows: list[Sequence[object]] = [("accounting", "scope", "parameters", "multiply-adds")]
    measured = {} if facts.measurement is None else facts.measurement.cost
    for accounting in ACCOUNTINGS:
        counted = (
            Cost.from_json(measured[accounting])
            if accounting in measured
            else cost(plan_of(model), teacher.shape, accounting)
        )
        rows += [
            (accounting, scope, f"{one.parameters:,}", f"{one.macs:,}")
            for scope, one in counted.scopes.items()
        ]
    lengths = counted.generation
    return (
        f"{_section('Costs', rows)}\n`paper` counts weights, and generation without a cache; "
        "`cached` counts every parameter, and generation with a cache. Multiply-adds are those of "
        f"one answer (tokens of prompt and answer: {lengths.prompt} and {lengths.passes}).\n"
    )


def _scores(facts: CardFacts) -> list[Sequence[object]]:
    """Return what was measured."""
    made = facts.measurement
    if made is None:
        return []
    rows: list[Sequence[object]] = [("measure", "value")]
    if made.quality is not None:
        interval = (
            ""
            if made.quality_low is None or made.quality_high is None
            else f" (95 % interval {made.quality_low:.3f} to {made.quality_high:.3f})"
        )
        rows.append(("ANLS", f"{made.quality:.3f}{interval}"))
    if made.exact is not None:
        rows.append(("exact answers", f"{made.exact:.3f}"))
    if made.nted is not None:
        rows.append(("nTED accuracy", f"{made.nted:.3f}"))
    if made.field_f1 is not None:
        rows.append(("field F1", f"{made.field_f1:.3f}"))
    rows += [("loss (nats per answer token)", f"{made.loss:.4f}")]
    if made.perplexity is not None:
        rows.append(("perplexity", f"{made.perplexity:.3f}"))
    rows.append(("questions", made.examples))
    rows += [(f"ANLS of {name}", f"{value:.3f}") for name, value in made.families.items()]
    if facts.scored_on is not None:
        rows.append(("pages", facts.scored_on))
    return rows


def _made(teacher: Teacher, facts: CardFacts) -> list[Sequence[object]]:
    """Return teacher, data, recipe and seeds."""
    rows: list[Sequence[object]] = [("what", "value")]
    rows += [("teacher", teacher.name), ("teacher's fingerprint", teacher.fingerprint)]
    rows += [(f"data: {name}", _shown(value)) for name, value in facts.data.items()]
    rows += [(name, _shown(value)) for name, value in facts.training.items()]
    if facts.seeds:
        rows.append(("seeds", ", ".join(map(str, facts.seeds))))
    return rows


def _shown(value: Any) -> str:
    """Return a setting as words: pairs and lists without their brackets."""
    if isinstance(value, Mapping):
        return _shown(list(value.items()))
    if isinstance(value, list | tuple):
        nested = any(isinstance(one, list | tuple) for one in value)
        return (", " if nested else " ").join(map(_shown, value))
    return str(value)


def _loading(teacher: Teacher, stock: bool, reasons: Sequence[str]) -> str:
    """Return how to load the folder."""
    question = "What is the total?"
    asked = question.lower() if teacher.prompt.lowercase_question else question
    prompt = teacher.prompt.template.replace("{question}", asked)
    parsed = f"print(processor.token2json({_WRITTEN.replace('@HOW@', '')}))"
    plainly = f"print({_WRITTEN.replace('@HOW@', ', skip_special_tokens=True')})"
    asking = _ASKING.replace("@PRINTED@", parsed if teacher.prompt.parses else plainly)
    asking = asking.replace("@PROMPT@", json.dumps(prompt, ensure_ascii=False))
    plain = _fenced(asking.replace("@OPTION@", ""), "python")
    if stock:
        return (
            "## Loading\n\nThis is a stock model: it needs nothing but transformers "
            f"(`{_FOLDER}` is this folder).\n\n{plain}"
        )
    remote = _fenced(asking.replace("@OPTION@", ", trust_remote_code=True"), "python")
    why = "".join(f"- {escape_markdown(reason)}\n" for reason in reasons)
    return (
        f"## Loading\n\n`{_FOLDER}` is this folder. Where circuitsearch is installed, `import "
        f"circuitsearch.students` lets the Auto classes know the model:\n\n"
        f"{_fenced('import circuitsearch.students', 'python')}\n{plain}\n"
        "Where it is not, the folder brings the code of its classes (`modeling.py`, `remote.py`):"
        f"\n\n{remote}\n"
        "Without either, `circuitsearch export` writes ONNX files that need onnxruntime only.\n"
        + (f"\nThe stock class cannot express this plan:\n\n{why}" if why else "")
    )


def _section(title: str, rows: Sequence[Sequence[object]]) -> str:
    """Return a table under a heading; nothing where there are no rows."""
    if not rows:
        return ""
    cells = [[escape_markdown(str(value)) for value in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return f"## {title}\n\n" + "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """Return text that cannot hold backticks, such as a plan, as code."""
    return f"`{text}`"


def _fenced(text: str, language: str = "") -> str:
    """Return text as a code block that nothing inside can close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"
