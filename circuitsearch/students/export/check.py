"""Whether exported files answer as the model does: strings equal, logits within a tolerance.

Per question three things are compared: the answer of `generate` in PyTorch with the answer of the
files asked alone; with that of the files asked about all questions at once; and, choice by choice,
the logits of the files' steps with those of one PyTorch forward without a cache over the same
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.teacher.answering import generate_answers
from circuitsearch.teacher.loading import Teacher

__all__ = ["TOLERANCE", "Compared", "compare_onnx"]

TOLERANCE = 1e-4
"""Largest difference of logits that passes: float32 sums in another order reach about 1e-5."""


@dataclass(frozen=True)
class Compared:
    """One question, asked both ways.

    Attributes:
        question: the question.
        torch: PyTorch's answer.
        onnx: the files' answer.
        batched: the files' answer among all questions at once.
        difference: largest difference of any logit at any choice.
    """

    question: str
    torch: str
    onnx: str
    batched: str
    difference: float

    @property
    def equal(self) -> bool:
        """Whether all three answers are one and the logits within `TOLERANCE`."""
        return self.torch == self.onnx == self.batched and self.difference <= TOLERANCE


def compare_onnx(
    teacher: Teacher,
    folder: str | Path,
    images: Sequence[Image.Image],
    questions: Sequence[tuple[int, str]],
) -> list[Compared]:
    """Ask a checkpoint and its export the same questions.

    Args:
        teacher: the checkpoint that was exported.
        folder: the export.
        images: pages.
        questions: (index of the page, question).

    Raises:
        ConfigError: onnxruntime is not installed.
        DataError: the folder is damaged, or a question is too long.
    """
    try:
        from circuitsearch.students.export.answers import OnnxStudent
    except ImportError as error:
        raise ConfigError(
            f"Checking an export: {error}; pip install 'circuitsearch[export]'"
        ) from error
    pixels = teacher.pixel_values(images)
    pages, texts = [page for page, _ in questions], [text for _, text in questions]
    try:
        files = OnnxStudent(folder)
        read = files.read(files.pixels(images))
        prompts = [files.prompt_ids(text) for text in texts]
        together = files.greedy(read, pages, prompts)
        alone = [
            files.greedy(
                {name: value[[page]] for name, value in read.items()},
                [0],
                [prompt],
                keep_logits=True,
            )[0]
            for page, prompt in zip(pages, prompts, strict=True)
        ]
    except (OSError, ValueError) as error:
        raise DataError(f"Checking the export in {str(folder)!r}: {error}") from error
    answers = generate_answers(teacher.model, teacher.tokens, pixels, pages, texts)
    states = teacher.encode(pixels)
    return [
        Compared(
            question=texts[i],
            torch=answers[i],
            onnx=files.text(alone[i].ids),
            batched=files.text(together[i].ids),
            difference=_difference(teacher.model.decoder, states[pages[i]], prompts[i], alone[i]),
        )
        for i in range(len(texts))
    ]


def _difference(decoder: Any, states: torch.Tensor, prompt: Sequence[int], written: Any) -> float:
    """Return the largest difference of logits between a PyTorch forward and the files' choices."""
    ids = torch.tensor([[*prompt, *written.ids]], device=states.device)
    with torch.no_grad():
        out = decoder(input_ids=ids, encoder_hidden_states=states[None], use_cache=False)
    first = len(prompt) - 1
    ours = out.logits[0, first : first + len(written.logits)].float().cpu().numpy()
    return float(np.abs(ours - np.stack(written.logits)).max())
