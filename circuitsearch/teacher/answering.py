"""Answering questions with stock `generate`: greedy, each page encoded once.

Prompts differ in length and a decoder-only prefix must not be padded on the left (positions are
learned), so rows are grouped by prompt length; within a group `generate` needs no padding.
`students.evaluate` has the faster batched decoder that search trials use and that is tested equal
to this one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from circuitsearch.core.errors import ConfigError, raise_together
from circuitsearch.core.shapes import DecoderShape

from .decoders import residual_decoder
from .tokens import TeacherTokens

__all__ = ["MOST_TOGETHER", "decoding_problems", "generate_answers", "together"]

MOST_TOGETHER = 64
"""Questions decoded together where pages are small."""
_PAGE_BYTES = 2**31  # keys and values of the pages of a batch


# What `generate` would do beside choosing the best allowed token -> the value that does nothing.
_PLAIN = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "max_new_tokens": None,
    "max_time": None,
    "stop_strings": None,
    "watermarking_config": None,
    "guidance_scale": 1.0,
    "penalty_alpha": None,
    "dola_layers": None,
    "prompt_lookup_num_tokens": None,
    "force_words_ids": None,
    "is_assistant": False,
    "return_dict_in_generate": False,
}


def decoding_problems(config: Any) -> list[str]:
    """Return what a generation config asks for that decoding here does not do."""
    problems = []
    longer = [word for word in config.bad_words_ids or () if len(word) > 1]
    if longer:
        problems.append(f"bad_words_ids forbids {len(longer)} sequences, allowed are single tokens")
    for name, plain in _PLAIN.items():
        got = getattr(config, name, None)
        if got not in (None, plain, []) and not (name == "min_length" and got <= 1):
            problems.append(f"{name} is {got}, answers are decoded without; remove it")
    return problems


def together(shape: DecoderShape, tokens: int, most: int = MOST_TOGETHER) -> int:
    """Return how many questions may be answered at once, each about a page of its own.

    Their pages' keys and values take at most 2 GiB, in float32 (of one Donut page: 157 MB); one
    question at least.

    Args:
        shape: the decoder's, the teacher's for a student.
        tokens: encoder tokens per page.
        most: never more than these.
    """
    each = 4 * tokens * shape.layers * 2 * shape.heads * shape.head_dim
    return max(1, min(most, _PAGE_BYTES // each))


def generate_answers(
    model: Any,
    tokens: TeacherTokens,
    pixel_values: Tensor,
    pages: Sequence[int],
    questions: Sequence[str],
    *,
    batch: int = MOST_TOGETHER,
    use_cache: bool = True,
) -> list[str]:
    """Answer questions greedily.

    Args:
        model: A `VisionEncoderDecoderModel` (teacher or student).
        tokens: Its prompt and tokenizer.
        pixel_values: [P, 3, H, W] the pages.
        pages: For each question the index of its page.
        questions: The questions.
        batch: Most questions decoded together; fewer where pages are large (`together`).
        use_cache: Whether decoding keeps keys and values.

    Returns:
        The answers in the order of the questions.

    Raises:
        ConfigError: The model's generation config asks for more than greedy answers.
    """
    raise_together(decoding_problems(model.generation_config), ConfigError, "generation_config")
    with torch.no_grad():
        # before any projection to the decoder's width: `generate` applies that itself
        states = model.encoder(pixel_values=pixel_values).last_hidden_state
    prompts = [tokens.prompt_ids(question) for question in questions]
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        by_length[len(prompt)].append(i)
    answers = [""] * len(questions)
    batch = together(residual_decoder(model.decoder).shape, states.shape[1], batch)
    for length, group in sorted(by_length.items()):
        for start in range(0, len(group), batch):
            rows = group[start : start + batch]
            made = model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=states[[pages[r] for r in rows]]),
                decoder_input_ids=torch.tensor([prompts[r] for r in rows], device=states.device),
                max_length=tokens.max_length,
                do_sample=False,
                num_beams=1,
                use_cache=use_cache,
            )
            for row, ids in zip(rows, made.tolist(), strict=True):
                answers[row] = tokens.text(ids[length:])
    return answers
