"""How fast exported files answer in ONNX Runtime, by the protocol of `speed`.

One page, a pass over the prompt, then one pass per further token, exactly `Generation.passes` of
them; each pass counts with its fastest time of several generations. Keys and values of the page are
an output of the encoder's graph, so their time is in `encoding` here and in `first_token` there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from circuitsearch.core.cost import Generation
from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.students.speed import REPETITIONS, repeated

__all__ = ["OnnxSpeed", "onnx_speed"]


@dataclass(frozen=True)
class OnnxSpeed:
    """Nanoseconds of one page and one answer in ONNX Runtime.

    Attributes:
        encoding: the encoder, the page's keys and values included.
        first_token: the pass over the prompt.
        per_token: mean of a further pass; 0 when there is none.
    """

    encoding: int
    first_token: int
    per_token: int


def onnx_speed(
    folder: str | Path,
    generation: Generation | None = None,
    *,
    threads: int = 0,
    repetitions: int = REPETITIONS,
) -> OnnxSpeed:
    """Measure an export on this machine.

    Args:
        folder: what `export_onnx` wrote.
        generation: prompt length and passes; `Generation()` when None.
        threads: of the runtime; 0 lets it choose.
        repetitions: timed generations.

    Raises:
        ConfigError: onnxruntime is not installed, or the generation is longer than the model's.
        DataError: the folder is damaged.
    """
    generation = generation or Generation()
    try:
        from circuitsearch.students.export.answers import OnnxStudent
    except ImportError as error:
        raise ConfigError(
            f"Timing an export: {error}; pip install 'circuitsearch[export]'"
        ) from error
    try:
        student = OnnxStudent(folder, threads)
    except (OSError, ValueError) as error:
        raise DataError(f"Timing the export in {str(folder)!r}: {error}") from error
    last, longest = generation.prompt + generation.passes - 1, student.manifest["limits"]["length"]
    if last > longest:
        raise ConfigError(
            f"generation: {generation.prompt} prompt tokens and {generation.passes} passes take "
            f"{last} positions, the model has room for {longest}; shorten it"
        )
    image = student.manifest["image"]
    pixels = np.zeros((1, 3, image["height"], image["width"]), dtype=np.float32)
    read = student.read(pixels)

    def encode() -> list[int]:
        start = time.perf_counter_ns()
        student.read(pixels)
        return [time.perf_counter_ns() - start]

    def decode() -> list[int]:
        return _passes(student, read, generation)

    encoding = min(taken for (taken,) in repeated(encode, repetitions))
    passes = [min(times) for times in zip(*repeated(decode, repetitions), strict=True)]
    return OnnxSpeed(encoding, passes[0], sum(passes[1:]) // max(1, len(passes) - 1))


def _passes(student: Any, read: dict[str, np.ndarray], generation: Generation) -> list[int]:
    """Return the nanoseconds of every pass of one generation."""
    memory = student.begin(read, [0])
    ids = np.zeros((1, generation.prompt), dtype=np.int64)
    position, taken = generation.prompt, []
    for _ in range(generation.passes):
        start = time.perf_counter_ns()
        logits = student.step(memory, ids, position)
        ids = logits.argmax(axis=-1)[:, None]
        taken.append(time.perf_counter_ns() - start)
        position += 1
    return taken
