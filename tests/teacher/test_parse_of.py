"""Reading tag sequences: the parse that was written comes back, broken text gives no error."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitsearch.teacher.parses import field_f1, nted_accuracy, parse_of
from circuitsearch.teacher.tokens import PromptFormat, TeacherTokens
from tests.tiny import tiny_tokenizer

KEYS = st.text("abcxyz_", min_size=1, max_size=4)
TEXTS = st.text("abc 012.,€", min_size=1, max_size=6).map(str.strip).filter(bool)


def written(parse: Any) -> str:
    """Donut's way to write a parse: tags around values, `<sep/>` between items of a list."""
    if isinstance(parse, dict):
        return "".join(f"<s_{key}>{written(value)}</s_{key}>" for key, value in parse.items())
    if isinstance(parse, list):
        return "<sep/>".join(written(item) for item in parse)
    return str(parse)


# A key inside itself cannot be told from its end, in Donut's form: every level has its own letter.
INNER = st.dictionaries(KEYS.map("i".__add__), TEXTS, min_size=1, max_size=3)
PARSES = st.dictionaries(
    KEYS.map("o".__add__),
    TEXTS | INNER | st.lists(TEXTS, min_size=2, max_size=3) | st.lists(INNER, min_size=2),
    min_size=1,
    max_size=3,
)


@settings(max_examples=60)
@given(parse=PARSES)
def test_what_was_written_is_read_back(parse: dict[str, Any]) -> None:
    assert parse_of(written(parse)) == parse
    assert nted_accuracy(parse_of(written(parse)), parse) == 1.0
    assert field_f1([parse_of(written(parse))], [parse]) == 1.0


@pytest.mark.parametrize(
    ("text", "parse"),
    [
        ("", {}),
        ("just text", {"text_sequence": "just text"}),
        (
            "<s_menu><s_nm>a</s_nm> <sep/> <s_nm>b</s_nm></s_menu>",
            {"menu": [{"nm": "a"}, {"nm": "b"}]},
        ),
        ("<S_menu>a</s_menu>", {"menu": "a"}),
        ("<s_a>lost<s_b>kept</s_b>", {"b": "kept"}),  # a key without its end
        ("<s_a></s_a>", {"a": ""}),
        ("<s_a><yes/></s_a>", {"a": "yes"}),  # a choice among fixed words
        ("<s_a> x </s_a> noise <s_b>y</s_b>", {"a": "x", "b": "y"}),
        ("<s_a>1</s_a><sep/><s_a>2</s_a>", [{"a": "1"}, {"a": "2"}]),
    ],
)
def test_known_cases(text: str, parse: Any) -> None:
    assert parse_of(text) == parse


@settings(max_examples=60)
@given(text=st.lists(st.sampled_from(["<s_a>", "</s_a>", "<s_b>", "</s_b>", "<sep/>", "x"])))
def test_any_tag_soup_is_read(text: list[str]) -> None:
    found = parse_of("".join(text))
    assert 0.0 <= nted_accuracy(found, {"a": "x"}) <= 1.0


def test_nesting_has_an_end() -> None:
    keys = [f"k{i}" for i in range(3000)]
    text = "".join(f"<s_{k}>" for k in keys) + "x" + "".join(f"</s_{k}>" for k in keys[::-1])
    assert list(parse_of(text)) == ["k0"]


def test_a_prompt_without_question_keeps_the_tags_of_the_answer() -> None:
    tokenizer = tiny_tokenizer()
    prompt = PromptFormat("<s_docvqa>", "</s_answer></s>")
    tokens = TeacherTokens.of(tokenizer, 96, prompt)
    assert prompt.parses
    assert not PromptFormat().parses
    assert tokens.prompt_ids("anything") == tokens.prompt_ids("")
    ids = tokens.answer_ids("<s_question>a b</s_question>")
    assert tokens.text(ids) == "<s_question>a b</s_question>"
    assert TeacherTokens.of(tokenizer, 96).text(ids) == "a b"
