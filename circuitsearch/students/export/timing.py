"""How fast exported files answer in ONNX Runtime and what memory they take, as `speed` measures it.

One page, a pass over the prompt, then one pass per further token, exactly `Generation.passes` of
them; each pass counts with its fastest time of several generations. Keys and values of the page are
an output of the encoder's graph, so their time is in `encoding` here and in `first_token` there.
The runtime does not say what it allocates, so memory is what a process of its own grows by
(`growth`), the runtime's arenas included; there it is the bytes of live tensors.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from circuitsearch.core.cost import Generation
from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.students.export.growth import blank_page, passes
from circuitsearch.students.speed import REPETITIONS, repeated

__all__ = ["OnnxSpeed", "onnx_memory", "onnx_speed"]


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
    pixels = blank_page(student)
    read = student.read(pixels)

    def encode() -> list[int]:
        start = time.perf_counter_ns()
        student.read(pixels)
        return [time.perf_counter_ns() - start]

    def decode() -> list[int]:
        return passes(student, read, generation.prompt, generation.passes)

    encoding = min(taken for (taken,) in repeated(encode, repetitions))
    first, *further = [min(times) for times in zip(*repeated(decode, repetitions), strict=True)]
    return OnnxSpeed(encoding, first, sum(further) // max(1, len(further)))


def onnx_memory(folder: str | Path, generation: Generation, *, threads: int = 0) -> int | None:
    """Return the bytes by which a process grows that opens an export, reads a page and answers.

    Args:
        folder: what `export_onnx` wrote.
        generation: prompt length and passes.
        threads: of the runtime; 0 lets it choose.

    Returns:
        None where the system does not tell.

    Raises:
        DataError: the process fails.
    """
    if not os.access("/proc/self/clear_refs", os.W_OK):  # not Linux, or not allowed
        return None
    place = Path(__file__).parent
    asked = [generation.prompt, generation.passes, threads]
    command = [sys.executable, place / "growth.py", place / "answers.py", folder, *asked]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if ran.returncode:
        last = ran.stderr.strip().rpartition("\n")[2]
        raise DataError(f"Measuring the memory of the export in {str(folder)!r}: {last}")
    return int(ran.stdout)
