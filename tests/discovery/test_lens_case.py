"""Case of tokens: what each reads as, and which have case at all."""

from __future__ import annotations

import numpy as np

from circuitsearch.discovery.lens.case import case_hits
from circuitsearch.discovery.lens.records import Reading
from tests.tiny import tiny_tokenizer


def reading_of(inputs: list[int], *tops: list[int]) -> Reading:
    count = len(inputs)
    top = np.array(tops)[:, :, None]
    blank = np.zeros((len(tops), count, 0))
    return Reading(
        sample="s",
        options={},
        places=("C0", "M0")[: len(tops)],
        examples=np.arange(count),
        positions=np.arange(count),
        inputs=np.array(inputs),
        top=top,
        top_logits=blank,
        top_probabilities=blank,
        wanted=blank[0],
        ranks=blank,
        logits=blank,
        log_probabilities=blank,
        entropies=np.zeros((len(tops), count)),
    )


def test_case_hits() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    inputs = [ids(c) for c in ("A", "B", "c", "7", "<s_answer>")]
    after = [ids(c) for c in ("a", "B", "c", "x", "<s_answer>")]
    hits = case_hits(reading_of(inputs, inputs, after), tokenizer)
    assert hits.places == ("C0", "M0")
    assert hits.cased.tolist() == [True, True, False, False, False]
    # a special token has neither form
    assert hits.caseless.tolist() == [False, False, True, True, False]
    assert hits.lowered.tolist() == [[False] * 5, [True, False, False, False, False]]
    assert hits.kept.tolist() == [[True] * 5, [False, True, True, False, True]]


def test_a_cased_token_without_a_lowercase_form_is_neither() -> None:
    tokenizer = tiny_tokenizer()
    vocabulary = {**tokenizer.get_vocab(), "Ö": 200}  # and no "ö"

    class Partial:
        all_special_ids = tokenizer.all_special_ids
        get_added_vocab = staticmethod(tokenizer.get_added_vocab)
        get_vocab = staticmethod(lambda: vocabulary)

        @staticmethod
        def convert_ids_to_tokens(wanted: list[int]) -> list[str]:
            names = {i: piece for piece, i in vocabulary.items()}
            return [names[i] for i in wanted]

    hits = case_hits(reading_of([200, vocabulary["A"]], [200, vocabulary["a"]]), Partial())
    assert hits.cased.tolist() == [False, True]
    assert hits.caseless.tolist() == [False, False]
