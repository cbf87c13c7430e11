"""Speed: seconds and bytes that a plan's student really takes, measured on this machine.

Latency and memory depend on shapes alone, so the student need not be trained. It decodes one page:
a pass over the prompt, which also computes the page's keys and values, then one pass per further
token, each choosing its token, exactly `Generation.passes` of them. What the ids are is of no
account, and no end token ends it early.

* Time is wall clock, with the threads that the caller has set. After a warm-up the generation runs
  several times, and each pass counts with its *fastest* time: what else runs on a machine only
  ever adds time, and rarely to the same pass every time. With ten repetitions, on two cores under
  a load of six, this repeated to 1.4 % (standard deviation), the fastest generation to 8 and 52 %,
  the median generation to 13 and 40 %, for the shipped teacher and a student of four sub-layers.
* Memory on the CPU is exact and repeatable: every operation is observed, and the bytes of all
  storages that are alive behind it are added up. What a kernel allocates and frees inside itself is
  not seen. On CUDA it is what the allocator says, less what was allocated before.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from circuitsearch.core.cost import Generation
from circuitsearch.core.errors import ConfigError
from circuitsearch.core.plan import Plan
from circuitsearch.core.shapes import DecoderShape
from circuitsearch.core.speed import Speed
from circuitsearch.students.live_bytes import held_bytes, peak_bytes
from circuitsearch.students.replacements import FITTED, Replacements
from circuitsearch.students.student import build_student
from circuitsearch.teacher.decoders import Affine

if TYPE_CHECKING:
    from circuitsearch.teacher.loading import Teacher

__all__ = [
    "Encoding",
    "measure_encoder",
    "measure_speed",
    "passes_of",
    "peak_bytes",
    "repeated",
    "speed_of",
    "where",
]

REPETITIONS = 10
"""Timed generations of one plan."""
_LEAST, _PATIENCE = 3, 30 * 10**9
"""Generations that are timed in any case, and nanoseconds after which no further one is begun."""


@dataclass(frozen=True)
class Encoding:
    """What the encoder, which all students share, takes for one page.

    Attributes:
        time: nanoseconds of one page.
        memory: highest sum of bytes of live tensors meanwhile, its weights included.
        weights: bytes of its weights.
    """

    time: int
    memory: int
    weights: int


def where(device: torch.device) -> str:
    """Return what measurements depend on beside the student: device, its type, threads."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"{device.type} {_processor()}, {torch.get_num_threads()} threads"


def speed_of(
    teacher: Teacher,
    plan: Plan,
    generation: Generation | None = None,
    *,
    encoding: Encoding | None = None,
    repetitions: int = REPETITIONS,
) -> Speed:
    """Build the student of a plan and measure it; what replaces sub-layers is left blank.

    Args:
        teacher: whose student.
        plan: what it keeps.
        generation: prompt length and passes; `Generation()` when None.
        encoding: figures of the encoder (`measure_encoder`), measured here when None.
        repetitions: timed generations.

    Raises:
        PlanError: the plan does not fit the teacher.
        ConfigError: the generation is longer than the decoder's positions.
    """
    plan = plan.fitted(teacher.shape.decoder)
    student = build_student(teacher, plan, replacements=_blank(plan, teacher.shape.decoder))
    return measure_speed(
        student, teacher, plan, generation, encoding=encoding, repetitions=repetitions
    )


def measure_speed(
    model: Any,
    teacher: Teacher,
    plan: Plan,
    generation: Generation | None = None,
    *,
    encoding: Encoding | None = None,
    repetitions: int = REPETITIONS,
) -> Speed:
    """Measure how fast a student (or the teacher) answers, and how much memory it takes.

    Args:
        model: a `VisionEncoderDecoderModel`.
        teacher: gives the shape of the encoder's states.
        plan: the model's plan.
        generation: prompt length and passes; `Generation()` when None.
        encoding: figures of the encoder, measured here when None.
        repetitions: timed generations.

    Raises:
        ConfigError: the generation is longer than the decoder's positions.
    """
    generation = generation or Generation()
    last, positions = generation.prompt + generation.passes - 1, model.config.decoder
    if last > positions.max_position_embeddings:
        raise ConfigError(
            f"generation: {generation.prompt} prompt tokens and {generation.passes} passes take "
            f"{last} positions, the decoder has {positions.max_position_embeddings}; shorten it"
        )
    encoding = encoding or measure_encoder(teacher)
    decoder = model.decoder
    like = next(decoder.parameters())
    states = _states(teacher, like)

    def run() -> list[int]:
        return _generate(decoder, states, generation)

    passes = [min(times) for times in zip(*repeated(run, repetitions), strict=True)]
    memory = peak_bytes(run, decoder, [states])
    return Speed(
        plan=str(plan),
        plan_hash=plan.hash,
        first_token=passes[0],
        per_token=sum(passes[1:]) // max(1, len(passes) - 1),
        decoding=sum(passes),
        encoding=encoding.time,
        decoder_memory=memory,
        total_memory=max(memory + encoding.weights, encoding.memory + held_bytes([decoder])),
        generation=generation,
        where=where(like.device),
    )


def passes_of(
    teacher: Teacher, generation: Generation, repetitions: int = REPETITIONS
) -> list[int]:
    """Return the nanoseconds of each pass of a checkpoint's own decoder.

    Args:
        teacher: a teacher or a loaded student.
        generation: prompt length and passes.
        repetitions: timed generations; each pass counts with its fastest time.
    """
    model: Any = teacher.model
    states = _states(teacher, next(model.decoder.parameters()))
    runs = repeated(lambda: _generate(model.decoder, states, generation), repetitions)
    return [min(times) for times in zip(*runs, strict=True)]


def _states(teacher: Teacher, like: Tensor) -> Tensor:
    """Return made-up encoder states of one page."""
    shape = teacher.shape
    size = (1, shape.encoder.tokens, shape.decoder.encoder_width)
    return torch.ones(size, device=like.device, dtype=like.dtype)


def measure_encoder(teacher: Teacher, repetitions: int = REPETITIONS) -> Encoding:
    """Measure the teacher's encoder, its projection included, on one blank page.

    Args:
        teacher: whose encoder; all its students share it.
        repetitions: timed pages.
    """
    model: Any = teacher.model
    modules = [model.encoder, *filter(None, [getattr(model, "enc_to_dec_proj", None)])]
    size = teacher.processor.image_processor.size
    pixels = torch.zeros(
        1, 3, size["height"], size["width"], device=teacher.device, dtype=model.dtype
    )

    def run() -> list[int]:
        start = _now(teacher.device)
        with torch.inference_mode():
            teacher.encode(pixels)
        return [_now(teacher.device) - start]

    fastest = min(time for (time,) in repeated(run, repetitions))
    joined = torch.nn.ModuleList(modules)
    return Encoding(fastest, peak_bytes(run, joined, [pixels]), held_bytes(modules))


def repeated(run: Callable[[], list[int]], repetitions: int) -> list[list[int]]:
    """Return what a run returns, several times, after a warm-up of caches and lazy parts."""
    run()
    begun = time.perf_counter_ns()
    found: list[list[int]] = []
    while len(found) < max(1, repetitions) and (
        len(found) < _LEAST or time.perf_counter_ns() - begun < _PATIENCE
    ):
        found.append(run())
    return found


def _generate(decoder: Any, states: Tensor, generation: Generation) -> list[int]:
    """Decode one answer; return the nanoseconds of each pass."""
    device = states.device
    ids = torch.zeros(1, generation.prompt, dtype=torch.long, device=device)
    times = []
    before = _now(device)
    with torch.inference_mode():
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        for _ in range(generation.passes):
            out = decoder(
                input_ids=ids,
                encoder_hidden_states=states,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            ids = out.logits[:, -1].argmax(dim=-1, keepdim=True)
            del out  # as in a loop that hands the token on
            after = _now(device)
            times.append(after - before)
            before = after
    return times


def _now(device: torch.device) -> int:
    """Return the wall clock in nanoseconds, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter_ns()


def _blank(plan: Plan, shape: DecoderShape) -> Replacements:
    """Return zeros for what a plan replaces: their cost does not depend on the numbers."""
    d = shape.d_model
    named = {name: [s for s, keep in plan.kept if keep.replacement == name] for name in FITTED}
    return Replacements(
        means={one: torch.zeros(d) for one in named["mean"]},
        maps={one: Affine(torch.zeros(d, d), torch.zeros(d)) for one in named["linear"]},
        tokens={one: torch.zeros(shape.vocabulary, dtype=torch.long) for one in named["token"]},
    )


def _processor() -> str:
    """Return the name of the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()
