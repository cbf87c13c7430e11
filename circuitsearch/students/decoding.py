"""Greedy decoding of many prompts at once, with a cache and without padding.

Prompts differ in length, and padding them would shift positions. All rows therefore walk in step
from position 0: at every position a row takes its own prompt's token while it is inside its prompt,
and its best token after that. Positions, cache and causal attention are then exactly those of the
row alone, so the texts are those of `generate` one by one. Rows that are done leave the batch when
half of them are.

Keys and values of the pages are computed once per page, not per question, and put into the
cross-attention cache before the first token.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from circuitsearch.core.errors import ConfigError, raise_together
from circuitsearch.teacher.answering import decoding_problems
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.tokens import TeacherTokens

__all__ = ["Limits", "answer_limits", "greedy_ids"]


@dataclass(frozen=True)
class Limits:
    """When answers end and what they may not contain.

    Attributes:
        length: longest sequence in tokens, prompt included.
        ends: tokens that end an answer.
        forbidden: tokens that are never chosen.
    """

    length: int
    ends: Collection[int]
    forbidden: Collection[int] = ()


def answer_limits(config: Any, tokens: TeacherTokens) -> Limits:
    """Return the limits under which `model.generate` answers greedily.

    What follows the closing tag is no part of an answer, so decoding ends there.

    Args:
        config: the model's generation config.
        tokens: the teacher's prompt and tokenizer.

    Raises:
        ConfigError: the config asks for more than that (`decoding_problems`).
    """
    raise_together(decoding_problems(config), ConfigError, "generation_config")
    forbidden = {word[0] for word in config.bad_words_ids or ()}
    forbidden |= set(getattr(config, "suppress_tokens", None) or ())
    unknown = tokens.tokenizer.unk_token_id
    # a forced end token takes the last place
    forced = getattr(config, "forced_eos_token_id", None) is not None
    return Limits(
        length=tokens.max_length - forced,
        ends=frozenset({tokens.answer_ids("")[0], tokens.eos_id}),
        forbidden=frozenset(forbidden if unknown is None else forbidden | {unknown}),
    )


def greedy_ids(
    decoder: Any, states: Tensor, rows: Tensor, prompts: Sequence[Sequence[int]], limits: Limits
) -> list[list[int]]:
    """Continue prompts greedily.

    Args:
        decoder: a Hugging Face decoder (teacher or student) in evaluation mode.
        states: [P, N, E] encoder states of the pages.
        rows: [B] page of each prompt.
        prompts: B lists of token ids; lists of like length decode fastest together.
        limits: when to stop.

    Returns:
        The chosen ids of each prompt, the token that ended the answer left out.
    """
    with torch.inference_mode():
        walk = _Walk(decoder, states, rows, prompts, limits)
        while walk.present:
            walk.advance()
    return walk.chosen


class _Walk:
    """Rows of a batch at one common position; `present` are those still in the cache."""

    def __init__(
        self,
        decoder: Any,
        states: Tensor,
        rows: Tensor,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
    ) -> None:
        self.chosen: list[list[int]] = [[] for _ in prompts]
        self.present = [i for i, prompt in enumerate(prompts) if len(prompt) < limits.length]
        self._done: set[int] = set()
        self._decoder, self._limits, self._prompts = decoder, limits, prompts
        self._device = next(decoder.parameters()).device
        self._forbidden = torch.tensor(sorted(limits.forbidden), dtype=torch.long)
        self._position = min((len(prompts[i]) for i in self.present), default=0)
        self._next = [list(prompts[i][: self._position]) for i in self.present]
        self._states = states.to(self._device)
        self._cache = _page_cache(decoder, self._states, rows[self.present].to(self._device))

    def advance(self) -> None:
        """Read the next tokens and settle the one behind them for every row present."""
        best = self._best_tokens()
        position = self._position
        self._next = []
        for row, token in zip(self.present, best, strict=True):
            prompt = self._prompts[row]
            if position < len(prompt):
                token = prompt[position]
            elif token in self._limits.ends:
                self._done.add(row)
            elif row not in self._done:
                self.chosen[row].append(token)
            self._next.append([token])
        self._position += 1
        if self._position >= self._limits.length:
            self.present = []
        elif 2 * len(self._done) >= len(self.present):
            self._drop_done()

    def _best_tokens(self) -> list[int]:
        """Return the best next token of every row present."""
        ids = torch.tensor(self._next, device=self._device)
        out = self._decoder(
            input_ids=ids,
            # only its shape is read: keys and values are in the cache already
            encoder_hidden_states=self._states[:1].expand(len(ids), -1, -1),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = out.logits[:, -1].float()
        logits[:, self._forbidden] = -torch.inf
        best: list[int] = logits.argmax(dim=-1).tolist()
        return best

    def _drop_done(self) -> None:
        """Take the rows that are done out of the batch and its cache."""
        places = [place for place, row in enumerate(self.present) if row not in self._done]
        self.present = [self.present[place] for place in places]
        self._next = [self._next[place] for place in places]
        self._done.clear()
        if places:
            self._cache.batch_select_indices(torch.tensor(places, device=self._device))


def _page_cache(decoder: Any, states: Tensor, rows: Tensor) -> EncoderDecoderCache:
    """Return a cache whose cross-attention half holds the pages' keys and values, row by row."""
    cross, view = DynamicCache(), residual_decoder(decoder)
    for sublayer in view.sublayers:
        # one at a time: those of all pages and of all rows lie in memory together
        for pair in view.memory(states, None, [sublayer]).keys_values.values():
            keys, values = (tensor.index_select(0, rows) for tensor in pair)
            cross.update(keys, values, sublayer.layer)
    return EncoderDecoderCache(DynamicCache(), cross)
