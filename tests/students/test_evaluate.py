"""Evaluation: batched answers equal `generate` one by one, losses equal the Hugging Face loss."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitsearch.core.components import SubLayer
from circuitsearch.core.cost import cost
from circuitsearch.core.errors import ConfigError
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.students import build_student
from circuitsearch.students.decoding import Limits, greedy_ids
from circuitsearch.students.evaluate import (
    answer_loss_of,
    examine,
    greedy_answers,
)
from circuitsearch.students.features import Features, prepare_features
from circuitsearch.students.scoring import answer_rows, rescored, scores_of
from circuitsearch.teacher.answering import generate_answers
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.loading import Teacher
from circuitsearch.teacher.metrics import anls, nted_accuracy
from tests.student_fixtures import any_replacements, noise_pages

LENGTH = 30  # tokens, prompt included; prompts take 5 to 16


def _leaning(teacher: Teacher, plan: str, token: int, push: float) -> Any:
    """A student whose final LayerNorm pushes every logit row towards (or away from) one token."""
    fitted = any_replacements(teacher.shape.decoder)
    student = build_student(teacher, Plan.parse(plan), replacements=fitted)
    with torch.no_grad():
        row = student.decoder.lm_head.weight[token]
        student.decoder.model.decoder.layer_norm.bias.add_(push * row / row.norm())
    return student


def _scores(features: Features, answers: list[str], examples: list[int] | None = None) -> Any:
    """What answers are worth; their losses do not enter."""
    rows = answer_rows(features, answers, [0.0] * len(answers), examples=examples)
    return scores_of(rows)


def _one_by_one(model: Any, teacher: Teacher, features: Features) -> list[str]:
    """The oracle: transformers' own greedy search, one question at a time."""
    tokens = teacher.tokens
    texts = []
    for example in features.examples:
        prompt = torch.tensor([example.ids[: example.prompt]])
        pixels = teacher.pixel_values([features.pages[example.page].image()])
        out = model.generate(
            pixels,
            decoder_input_ids=prompt,
            max_length=tokens.max_length,
            do_sample=False,
            num_beams=1,
            bad_words_ids=[[tokens.tokenizer.unk_token_id]],
        )
        texts.append(tokens.text(out[0, example.prompt :].tolist()))
    return texts


@pytest.fixture(scope="module")
def short_teacher(tiny_teacher: Teacher) -> Teacher:
    tokens = replace(tiny_teacher.tokens, max_length=LENGTH)
    return replace(tiny_teacher, tokens=tokens, max_length=LENGTH)


@pytest.fixture(scope="module")
def few(short_teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Features:
    pages = [
        replace(page, questions=tuple(replace(q, text=q.text[:3]) for q in page.questions))
        if i % 2
        else page
        for i, page in enumerate(noise_pages(4, seed=5))
    ]
    return prepare_features(short_teacher, pages, tmp_path_factory.mktemp("few"))


@pytest.mark.parametrize(
    ("plan", "push"),
    [
        ("S0 C0 M0 S1 C1 M1 S2 C2 M2 S3 C3 M3", 0.0),
        ("S0 C0 M0 S1 C1 M1 S2 C2 M2 S3 C3 M3", -50.0),  # the end is never chosen
        ("S0 C0 M0 S1 C1 M1 S2 C2 M2 S3 C3 M3", 50.0),  # the end comes at once
        ("S1[0,2] C1 M1 C2[3] S3", 1.0),
        ("C0 M0 C3 M3", 1.0),  # no self-attention
        ("S0=linear C0 M0=mean S1 C1=linear C2=mean S3=mean C3=alone", -5.0),  # replacements
    ],
)
def test_answers_are_those_of_generate_one_by_one(
    short_teacher: Teacher, few: Features, plan: str, push: float
) -> None:
    closing = short_teacher.tokens.answer_ids("")[0]
    student = _leaning(short_teacher, plan, closing, push)
    expected = _one_by_one(student, short_teacher, few)
    for size in (1, 3, 64):
        assert greedy_answers(student, few, short_teacher.tokens, batch_size=size) == expected
    if push == 50.0:
        assert set(expected) == {""}
    if push == -50.0:
        assert all(expected)


def test_answers_are_those_of_the_teachers_own_answering(
    short_teacher: Teacher, few: Features
) -> None:
    rows = few.examples
    expected = generate_answers(
        short_teacher.model,
        short_teacher.tokens,
        short_teacher.pixel_values([page.image() for page in few.pages]),
        [row.page for row in rows],
        [row.question.text for row in rows],
    )
    assert greedy_answers(short_teacher.model, few, short_teacher.tokens) == expected


def test_rows_end_at_different_times(short_teacher: Teacher, few: Features) -> None:
    """Guards the test above: some answers end by themselves, others at the limit."""
    closing = short_teacher.tokens.answer_ids("")[0]
    student = _leaning(short_teacher, "S1[0,2] C1 M1 C2[3] S3", closing, 1.0)
    answers = greedy_answers(student, few, short_teacher.tokens)
    lengths = {
        len(answer) + example.prompt for answer, example in zip(answers, few.examples, strict=True)
    }
    assert len(lengths) > 2


def test_the_unknown_token_is_never_chosen(short_teacher: Teacher, few: Features) -> None:
    unknown = short_teacher.tokens.tokenizer.unk_token_id
    student = _leaning(short_teacher, "S0 C0 M0 C1", unknown, 50.0)
    expected = _one_by_one(student, short_teacher, few)
    assert greedy_answers(student, few, short_teacher.tokens) == expected
    assert any(expected)  # with <unk> allowed, every answer would be special tokens only


def test_suppressed_tokens_are_never_chosen(short_teacher: Teacher, few: Features) -> None:
    student = _leaning(short_teacher, "S0 C0 M0 C1", 7, 50.0)
    free = greedy_answers(student, few, short_teacher.tokens)
    student.generation_config.suppress_tokens = [7]
    answers = greedy_answers(student, few, short_teacher.tokens)
    assert answers == _one_by_one(student, short_teacher, few)
    assert answers != free


def test_what_is_no_greedy_decoding_is_refused(short_teacher: Teacher, few: Features) -> None:
    """`generate` would answer otherwise, so nothing is measured that nobody can repeat."""
    student = _leaning(short_teacher, "S0 C0", 7, 1.0)
    student.generation_config.no_repeat_ngram_size = 2
    student.generation_config.bad_words_ids = [[1, 2]]
    with pytest.raises(ConfigError, match=r"(?s)forbids 1 sequences.*no_repeat_ngram_size is 2"):
        greedy_answers(student, few, short_teacher.tokens)


def test_chosen_examples_are_answered_in_their_order(short_teacher: Teacher, few: Features) -> None:
    model = short_teacher.model
    everything = greedy_answers(model, few, short_teacher.tokens)
    some = [3, 0, 2]
    got = greedy_answers(model, few, short_teacher.tokens, examples=some)
    assert got == [everything[index] for index in some]
    assert greedy_answers(model, few, short_teacher.tokens, examples=[]) == []


def test_a_prompt_that_fills_the_length_gets_no_answer(
    short_teacher: Teacher, few: Features
) -> None:
    prompt = list(few.examples[0].ids[: few.examples[0].prompt])
    limits = Limits(length=len(prompt), ends=[2])
    rows = torch.tensor([0, 0])
    written = greedy_ids(
        short_teacher.model.decoder, few.states([0]), rows, [prompt, prompt[:-2]], limits
    )
    assert written[0] == []
    assert len(written[1]) == 2


def test_losses_are_the_models_example_by_example(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    student = build_student(tiny_teacher, Plan.parse("S0 C1 M1:9 C3[0]"))
    losses = answer_loss_of(residual_decoder(student), tiny_features, batch_size=7)
    for index in (0, 4, 11):
        example = tiny_features.examples[index]
        ids = torch.tensor([example.ids])
        labels = ids[:, 1:].clone()
        labels[:, : example.prompt - 1] = -100
        pixels = tiny_teacher.pixel_values([tiny_features.pages[example.page].image()])
        with torch.no_grad():
            out = student(pixel_values=pixels, decoder_input_ids=ids[:, :-1], labels=labels)
        # padding and batch change the order of sums
        assert float(losses[index]) == pytest.approx(float(out.loss), rel=1e-5)
    some = answer_loss_of(residual_decoder(student), tiny_features, examples=[11, 4])
    assert some.tolist() == pytest.approx([float(losses[11]), float(losses[4])], rel=1e-5)


def test_a_plan_under_the_whole_decoder_is_its_untrained_student(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    plan = Plan.parse("S0 C1 M1 C3")
    student = build_student(tiny_teacher, plan)
    own = answer_loss_of(residual_decoder(student), tiny_features)
    kept = answer_loss_of(tiny_teacher.decoder, tiny_features, kept=plan.sublayers)
    torch.testing.assert_close(own, kept, atol=1e-5, rtol=1e-5)
    other = answer_loss_of(tiny_teacher.decoder, tiny_features, kept=[SubLayer.parse("S0")])
    assert float((own - other).abs().max()) > 1e-2


def test_scores_by_hand(tiny_features: Features) -> None:
    some = [0, 1, 2]
    golds = [tiny_features.examples[index].question.answers[0] for index in some]
    # right, wholly wrong, and one that is right but for case and blanks
    answers = [golds[0], "§" * 40, f"  {golds[2].upper()} "]
    scored = _scores(tiny_features, answers, examples=some)
    assert scored["quality"] == pytest.approx(2 / 3)
    assert scored["exact"] == pytest.approx(2 / 3)
    families = [tiny_features.examples[index].question.family for index in some]
    expected = {
        family: sum(s for s, f in zip([1.0, 0.0, 1.0], families, strict=True) if f == family)
        / families.count(family)
        for family in set(families)
    }
    assert scored["families"] == pytest.approx(expected)


def test_interval_draws_documents(tiny_features: Features) -> None:
    answers = [example.question.answers[0] for example in tiny_features.examples]
    perfect = _scores(tiny_features, answers)
    assert (perfect["quality_low"], perfect["quality_high"]) == (1.0, 1.0)
    answers[0] = ""
    scored = _scores(tiny_features, answers)
    assert scored["quality_low"] < scored["quality"] < scored["quality_high"]
    assert scored == _scores(tiny_features, answers)
    # one document says nothing about how documents differ
    first = [i for i, e in enumerate(tiny_features.examples) if e.page < 2]
    alone = _scores(tiny_features, answers[: len(first)], examples=first)
    assert alone["quality_low"] is None


def test_rows_hold_what_every_figure_is_made_of(short_teacher: Teacher, few: Features) -> None:
    plan = Plan.parse("C1 C3 M3")
    student = build_student(short_teacher, plan)
    made, rows = examine(
        student, short_teacher, few, plan, phase="untrained", source="scores", seed=4, draws=30
    )
    losses = answer_loss_of(residual_decoder(student), few)
    said = greedy_answers(student, few, short_teacher.tokens)
    for row, example, loss, text in zip(rows, few.examples, losses.tolist(), said, strict=True):
        page = few.pages[example.page]
        assert (row.question, row.family) == (example.question.id, example.question.family)
        assert (row.page, row.document, row.answer) == (page.id, page.document, text)
        assert row.golds == example.question.answers
        assert row.anls == anls(text, example.question.answers)
        assert row.loss == pytest.approx(loss, rel=1e-6)  # the same pass in the same order
        assert row.tokens == len(example.ids) - example.prompt
    scores = scores_of(rows, seed=4, draws=30)
    assert {name: getattr(made, name) for name in scores} == scores
    assert (made.nted, made.field_f1) == (None, None)  # the task is answering questions


def test_perplexity_is_over_the_tokens_of_the_corpus(short_teacher: Teacher, few: Features) -> None:
    """The oracle: every answer token's negative log-likelihood, one example at a time."""
    model = short_teacher.model
    nll: list[float] = []
    for example in few.examples:
        ids = torch.tensor([example.ids])
        pixels = short_teacher.pixel_values([few.pages[example.page].image()])
        with torch.no_grad():
            logits = model(pixel_values=pixels, decoder_input_ids=ids[:, :-1]).logits[0]
        chances = logits.double().log_softmax(-1)
        nll += [-float(chances[i - 1, ids[0, i]]) for i in range(example.prompt, ids.shape[1])]
    made, _ = examine(
        model, short_teacher, few, Plan.full(4), phase="teacher", source="teacher", answers=False
    )
    assert made.perplexity is not None
    # float32 against float64 sums of losses near 5
    assert made.perplexity == pytest.approx(math.exp(sum(nll) / len(nll)), rel=1e-4)
    # answers differ in length, so the mean over examples is another number
    assert abs(math.log(made.perplexity) - made.loss) > 1e-4


def test_strict_anls_drops_ties_and_can_be_made_from_kept_rows(tiny_features: Features) -> None:
    golds = [example.question.answers[0] for example in tiny_features.examples]
    even = [i for i, gold in enumerate(golds) if len(gold) % 2 == 0 and gold.strip() == gold]
    answers = [g[: len(g) // 2] + "§" * (len(g) // 2) if i in even else g
               for i, g in enumerate(golds)]  # fmt: skip
    losses = [0.0] * len(answers)
    rrc = answer_rows(tiny_features, answers, losses)
    strict = answer_rows(tiny_features, answers, losses, rule="strict")
    half = [i for i, row in enumerate(rrc) if row.anls == 0.5]
    assert half  # guards the test
    assert [row.anls for row in strict] == [0.0 if i in half else r.anls for i, r in enumerate(rrc)]
    assert rescored(rrc, "strict") == strict
    assert rescored(strict, "rrc") == rrc
    assert scores_of(strict)["quality"] < scores_of(rrc)["quality"]


def test_parses_are_scored_as_parses(tiny_features: Features) -> None:
    rows = answer_rows(tiny_features, [""] * 3, [0.0] * 3, examples=[0, 1, 2])
    gold = "<s_menu><s_nm>cake</s_nm><s_price>3</s_price></s_menu><s_total>3</s_total>"
    said = [gold, gold.replace("cake", "coke"), "no tags"]
    rows = tuple(
        replace(row, answer=text, golds=(gold,)) for row, text in zip(rows, said, strict=True)
    )
    found = scores_of(rows, parses=True)
    true = {"menu": {"nm": "cake", "price": "3"}, "total": "3"}
    wrong = {"menu": {"nm": "coke", "price": "3"}, "total": "3"}
    parsed = [true, wrong, {"text_sequence": "no tags"}]
    each = [nted_accuracy(one, true) for one in parsed]
    assert each[0] == 1.0 > each[1] > each[2]
    assert found["nted"] == pytest.approx(sum(each) / 3, abs=1e-12)
    # 3 + 2 + 0 fields hit; 1 wrong and 1 missed, then 1 wrong and 3 missed
    assert found["field_f1"] == 5 / (5 + (2 + 4) / 2)
    assert "nted" not in scores_of(rows)


def test_measurement_of_a_student(short_teacher: Teacher, few: Features) -> None:
    plan = Plan.parse("M0:20 C2 S3[0-1] C3[1,3]")
    student = build_student(short_teacher, plan)
    made, _ = examine(
        student,
        short_teacher,
        few,
        plan,
        phase="untrained",
        source="exhaustive",
        seed=3,
        draws=20,
    )
    assert (made.plan, made.plan_hash, made.phase) == (str(plan), plan.hash, "untrained")
    assert (made.examples, made.seed, made.steps) == (len(few.examples), 3, 0)
    losses = answer_loss_of(residual_decoder(student), few)
    assert made.loss == pytest.approx(float(losses.mean()), rel=1e-6)
    answers = greedy_answers(student, few, short_teacher.tokens)
    assert made.quality == _scores(few, answers)["quality"]
    assert set(made.families) == {"short", "long"}
    assert made.cost["cached"] == cost(plan, short_teacher.shape, "cached").to_json()
    assert made.cost["paper"]["accounting"] == "paper"
    assert made.seconds > 0.0
    assert Measurement.from_json(made.to_json()) == made


def test_measurement_of_the_teacher_by_loss_alone(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    made, _ = examine(
        tiny_teacher.model,
        tiny_teacher,
        tiny_features,
        Plan.full(4),
        phase="teacher",
        source="teacher",
        answers=False,
    )
    assert made.quality is None
    assert made.exact is None
    assert made.loss > 0


def test_a_plan_that_is_not_the_models_is_refused(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    student = build_student(tiny_teacher, Plan.parse("C2 M0"))
    with pytest.raises(ConfigError, match="the model was built by 'M0 C2'"):
        examine(
            student,
            tiny_teacher,
            tiny_features,
            Plan.parse("M0 C2[0-2]"),
            phase="short",
            source="sampler",
        )


def test_a_saved_student_measures_the_same(
    short_teacher: Teacher, few: Features, tmp_path: Path
) -> None:
    from circuitsearch.students import load_student, save_student

    plan = Plan.parse("C2 M0:7 S1")
    student = build_student(short_teacher, plan)
    loaded = load_student(save_student(student, short_teacher, tmp_path / "s"))
    one, other = (
        examine(model, short_teacher, few, plan, phase="untrained", source="scores", draws=10)[0]
        for model in (student, loaded)
    )
    assert replace(one, seconds=0.0) == replace(other, seconds=0.0)
