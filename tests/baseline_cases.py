"""Shared by the tests of baselines: cases as `stages.baselines` makes them, on the tiny teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.plan import Plan
from circuitsearch.search.exhaustive import sweep
from circuitsearch.search.knapsack import solve
from circuitsearch.search.space import Space
from circuitsearch.search.units import Choices
from circuitsearch.students.baselines import Case, widths
from circuitsearch.students.baselines.units import Granularity
from circuitsearch.students.features import Features
from circuitsearch.teacher.loading import Teacher, load_teacher
from tests.tiny import tiny_checkpoint, tiny_model, tiny_tokenizer

__all__ = [
    "BUDGETS",
    "answer_logits",
    "ask",
    "each_input",
    "linears",
    "make_case",
    "menu_space",
    "small_teacher",
    "space_of",
]

_MODULES = {"S": "self_attn", "C": "encoder_attn"}

# Generous; Donut-MINT's coarse row; heads beside biases and norms; a few heads; a single head.
BUDGETS: dict[str, tuple[Granularity, tuple[LimitSpec, ...]]] = {
    "most": ("sublayers", (LimitSpec("parameters", "80%"),)),
    "coarse": ("sublayers", (LimitSpec("parameters", "31.25%"), LimitSpec("macs", "50%"))),
    "cached": ("heads", (LimitSpec("parameters", "85%", accounting="cached"),)),
    "fine": ("heads", (LimitSpec("parameters", "20%"), LimitSpec("macs", "40%"))),
    "least": ("heads", (LimitSpec("parameters", "6.5%"),)),
}


def small_teacher(folder: Path) -> Teacher:
    """The tiny teacher, narrower: greedy rules try every head and every step of every width."""
    tiny_checkpoint(folder)
    tokenizer = tiny_tokenizer()
    start = tokenizer.convert_tokens_to_ids("<s_docvqa>")
    tiny_model(len(tokenizer), start, heads=2, ffn=4).save_pretrained(folder)
    return load_teacher(str(folder))


def space_of(teacher: Teacher, granularity: Granularity, limits: tuple[LimitSpec, ...]) -> Space:
    """Plans of the units that baselines remove."""
    choices = Choices()
    if granularity == "heads":
        choices = Choices("heads", widths(teacher.shape.decoder))
    return Space(teacher.shape, Budget.resolve(limits, teacher.shape), choices)


def menu_space(teacher: Teacher, limits: tuple[LimitSpec, ...]) -> Space:
    """Plans of numbers of heads and widths: Puzzle's alternatives."""
    choices = Choices("counts", widths(teacher.shape.decoder))
    return Space(teacher.shape, Budget.resolve(limits, teacher.shape), choices)


def make_case(teacher: Teacher, features: Features, budget: str, **options: Any) -> Case:
    """A case under one of the budgets."""
    granularity, limits = BUDGETS[budget]
    space = space_of(teacher, granularity, limits)
    if granularity == "heads":
        space = menu_space(teacher, limits)

    def best(worths: Mapping[str, float]) -> Plan:
        bits = solve([worths[name] for name in space.names], space)
        assert bits is not None
        return space.plan(bits)

    given: dict[str, Any] = {
        "teacher": teacher,
        "features": features,
        "budget": space.budget,
        "granularity": granularity,
        "seed": 0,
        "solve": best,
        "sweep": sweep,
        "most_questions": 6,
        "most_generations": 3,
    }
    return Case(**(given | options))


def linears(teacher: Any, sublayer: SubLayer) -> dict[str, Any]:
    """The Linear modules of a sub-layer by Hugging Face's names."""
    layer = getattr(teacher, "model", teacher).decoder.model.decoder.layers[sublayer.layer]
    if sublayer.kind is Kind.FEED:
        return {"fc1": layer.fc1, "fc2": layer.fc2}
    attention = getattr(layer, _MODULES[sublayer.kind.value])
    return {n: getattr(attention, n) for n in ("q_proj", "k_proj", "v_proj", "out_proj")}


def each_input(case: Case, model: Any, sublayer: SubLayer) -> dict[str, list[Tensor]]:
    """What each Linear reads, question by question without padding: [tokens, in], by hooks."""
    found: dict[str, list[Tensor]] = {}
    hooks = []
    for name, linear in linears(model, sublayer).items():

        def hook(_: Any, given: Any, __: Any, name: str = name) -> None:
            found.setdefault(name, []).append(given[0][0].detach().double())

        hooks.append(linear.register_forward_hook(hook))
    for index in case.questions:
        ask(case, model, index)
    for one in hooks:
        one.remove()
    return found


def ask(case: Case, model: Any, index: int, **options: Any) -> Any:
    """Hugging Face's forward on one question."""
    example = case.features.examples[index]
    with torch.no_grad():
        return getattr(model, "model", model).decoder(
            input_ids=torch.tensor([example.ids])[:, :-1],
            encoder_hidden_states=case.features.states([example.page]),
            use_cache=False,
            **options,
        )


def answer_logits(case: Case, model: Any, index: int) -> Tensor:
    """Logits [n, V] at the answer tokens of one question."""
    logits: Tensor = ask(case, model, index).logits[0]
    return logits[case.features.examples[index].prompt - 1 :].double()
