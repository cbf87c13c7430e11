"""The teacher's side of text: task prompt, token ids, and back.

`PromptFormat` says how a question becomes a prompt; `TeacherTokens` binds it to a tokenizer and is
what collation, generation and scoring ask for ids. Ids are always read from the tokenizer: the task
tokens of released Donut checkpoints sit at different ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from circuitsearch.core.errors import ConfigError

__all__ = ["PromptFormat", "TeacherTokens"]


@dataclass(frozen=True)
class PromptFormat:
    """How a question becomes a prompt and an answer a target.

    Attributes:
        template: Prompt text with `{question}` in it; without it the task is to read the whole
            page into a tag sequence, the same for every page (see `parses.parse_of`).
        end: What closes an answer.
        lowercase_question: Whether questions are lowercased, as Donut's official evaluation does.
    """

    template: str = "<s_docvqa><s_question>{question}</s_question><s_answer>"
    end: str = "</s_answer></s>"
    lowercase_question: bool = False

    @property
    def parses(self) -> bool:
        """Whether the answers are tag sequences of whole pages, not answers to a question."""
        return "{question}" not in self.template


@dataclass(frozen=True)
class TeacherTokens:
    """A prompt format bound to a tokenizer (see `documents.collate.Tokens`).

    Attributes:
        tokenizer: A Hugging Face tokenizer with the task tokens.
        prompt: The prompt format.
        max_length: Longest decoder sequence, prompt included.
        pad_id: Padding token.
        eos_id: End of sequence.
    """

    tokenizer: Any
    prompt: PromptFormat
    max_length: int
    pad_id: int
    eos_id: int

    @classmethod
    def of(
        cls, tokenizer: Any, max_length: int, prompt: PromptFormat | None = None
    ) -> TeacherTokens:
        """Bind a tokenizer.

        Raises:
            ConfigError: If the tokenizer lacks the padding, end or task tokens.
        """
        prompt = prompt or PromptFormat()
        missing = [n for n in ("pad_token_id", "eos_token_id") if getattr(tokenizer, n) is None]
        vocabulary = tokenizer.get_vocab()
        missing += [t for t in _tags(prompt.template + prompt.end) if t not in vocabulary]
        if missing:
            raise ConfigError(
                f"tokenizer: it lacks {', '.join(missing)}; a Donut question-answering checkpoint "
                "has these task tokens, a pre-trained one has to be fine-tuned first"
            )
        return cls(tokenizer, prompt, max_length, tokenizer.pad_token_id, tokenizer.eos_token_id)

    def prompt_ids(self, question: str) -> list[int]:
        """Return the ids of the task prompt up to and including `<s_answer>`."""
        text = question.lower() if self.prompt.lowercase_question else question
        return self._ids(self.prompt.template.replace("{question}", text))

    def answer_ids(self, answer: str) -> list[int]:
        """Return the ids of an answer with what closes it."""
        return self._ids(answer + self.prompt.end)

    def text(self, ids: Sequence[int]) -> str:
        """Return the answer text of generated ids, up to the closing tag.

        Other tags are kept only where they are the answer: in the tag sequence of a parse.
        """
        closing = self.tokenizer.convert_tokens_to_ids(_tags(self.prompt.end)[0])
        kept = []
        for i in ids:
            if i in (closing, self.eos_id):
                break
            kept.append(int(i))
        decoded: str = self.tokenizer.decode(kept, skip_special_tokens=not self.prompt.parses)
        return decoded.strip()

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids


def _tags(text: str) -> list[str]:
    """Return the `<...>` tags of a template in order."""
    found, rest = [], text
    while "<" in rest and ">" in rest:
        start = rest.index("<")
        end = rest.index(">", start)
        found.append(rest[start : end + 1])
        rest = rest[end + 1 :]
    return found
