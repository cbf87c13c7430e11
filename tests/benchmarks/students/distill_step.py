"""Time one distillation step on cached features against the plain loop.

    OMP_NUM_THREADS=1 python tests/benchmarks/students/distill_step.py [--donut-base]
        --out results/students/distill_step

The plain loop is what a training script does without this package: every step runs the encoder on
the pages of its rows, the whole teacher for its logits and the Hugging Face student, with output
logits at every position. The shipped shape uses rendered pages; `--donut-base` uses random weights
and states of the true decoder shape (4 layers, d 1,024, vocabulary 57,532, 4,800 encoder tokens per
page), times the true encoder on one page (2560 x 1920; about a minute on one core) and adds it to
the plain loop, once for every page of a step.

Times are processor seconds of this process (on one thread: what a free core would take), because
the machine may be shared. Only ratios from one run on one machine mean anything. OUT.json keeps the
last run of each shape, OUT.md shows them.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circuitsearch.core.files import read_json, write_json, write_text
from circuitsearch.core.plan import Plan
from circuitsearch.students import build_student
from circuitsearch.students.features import FeatureBatch, prepare_features
from circuitsearch.students.features.targets import TeacherRows
from circuitsearch.students.training.distill import DistillRecipe
from circuitsearch.students.training.order import DataOrder
from circuitsearch.students.training.trainer import Trainer, only_layers_train
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.documents.collate import Example, collate
from circuitsearch.teacher.documents.records import Question

PLAN = "M0 C2 S3 C3"


def timed(what: str, step: Callable[[int], object], steps: int) -> float:
    """Return the median processor seconds of a step, the first one left out."""
    step(0)
    taken = []
    for index in range(1, steps + 1):
        started = time.process_time()
        step(index)
        taken.append(time.process_time() - started)
    median = statistics.median(taken)
    sys.stdout.write(f"{what:55s} {1000 * median:10.1f} ms/step {1 / median:8.2f} steps/s\n")
    sys.stdout.flush()
    return median


def plain_step(
    teacher: Any,
    student: Any,
    batch: Any,
    states_of: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Teacher forward, student forward and backward, as a training script would write them."""
    with torch.no_grad():
        states = states_of(batch.pages)
        said = teacher(input_ids=batch.ids, encoder_hidden_states=states, use_cache=False).logits
    logits = student(input_ids=batch.ids, encoder_hidden_states=states, use_cache=False).logits
    loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
    answers = batch.labels != -100
    kd = F.kl_div(
        (logits[answers] / 2).log_softmax(-1),
        (said[answers] / 2).softmax(-1),
        reduction="batchmean",
    )
    optimizer.zero_grad()
    (loss + 4 * kd).backward()
    optimizer.step()


def compare(
    teacher: Any,
    features: Any,
    states_of: Callable[[Tensor], Tensor],
    batch: int,
    steps: int,
    encoder: float = 0.0,
) -> dict[str, float]:
    """Time both loops, and an elastic step, on the same batches.

    Args:
        teacher: Whose student is distilled.
        features: What both loops read.
        states_of: The plain loop's encoder states of pages.
        batch: Questions per step.
        steps: Steps to time.
        encoder: Seconds of a page that `states_of` leaves out.

    Returns:
        Processor seconds of a step, and how many pages a step of the plain loop encodes.
    """
    together = DistillRecipe(
        steps=10_000,
        batch=batch,
        learning_rate=1e-3,
        warmup=0.05,
        kd_weight=1.0,
        temperature=2.0,
    )
    single = replace(together, pages_together=False)
    examples = features.examples
    order = DataOrder([len(one.ids) for one in examples], range(len(examples)), batch, seed=0)
    whole = build_student(teacher, Plan.full(4))
    half = Plan.of(["S0", "C0", "M1", "C3"])
    cases = [
        (f"cached features, student {PLAN!r}", PLAN, None, together),
        ("the same, questions shuffled one by one", PLAN, None, single),
        ("cached features, elastic step of 4 sub-layers", "", lambda _: half, together),
    ]
    times = []
    for what, plan, plan_of_step, recipe in cases:
        student = build_student(teacher, Plan.parse(plan)) if plan else whole
        view = residual_decoder(student)
        with only_layers_train(view) as named:
            trainer = Trainer(view, features, recipe, 0, plan_of_step, named)
            weights = trainer.weights()
            times.append(timed(what, lambda step, t=trainer, w=weights: t.step(step, w), steps))
    student = build_student(teacher, Plan.parse(PLAN)).decoder
    named = [p for n, p in student.named_parameters() if ".layers." in n]
    optimizer = torch.optim.AdamW(named)
    plain = timed(
        f"plain loop, student {PLAN!r}",
        lambda step: plain_step(
            teacher.model.decoder,
            student,
            features.read(order.indices(step)).batch,
            states_of,
            optimizer,
        ),
        steps,
    )
    pages = statistics.fmean(
        len({examples[index].page for index in order.indices(step)}) for step in range(1, steps + 1)
    )
    plain += encoder * pages
    sys.stdout.write(f"plain / cached = {plain / times[0]:.2f}\n")
    named_times = zip(("cached", "one_by_one", "elastic"), times, strict=True)
    return {**dict(named_times), "plain": plain, "pages": pages, "batch": batch, "steps": steps}


def shipped_shape(batch: int, steps: int) -> dict[str, float]:
    """The shape of the packaged teacher, untrained, on rendered pages."""
    from circuitsearch.teacher.documents.synthetic import rendered_pages
    from circuitsearch.teacher.loading import load_teacher
    from circuitsearch.teacher.recipe import Sizes, new_model, new_processor, save_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        processor = new_processor(Sizes())
        torch.manual_seed(0)
        model = new_model(Sizes(), processor.tokenizer)
        save_checkpoint(model, processor, Path(folder) / "teacher")
        teacher = load_teacher(str(Path(folder) / "teacher"))
        pages = rendered_pages(200, "benchmark")
        features = prepare_features(teacher, pages, Path(folder) / "features")

        def states_of(indices: Tensor) -> Tensor:
            images = [pages[int(index)].image() for index in indices]
            return teacher.encode(teacher.pixel_values(images))

        return compare(teacher, features, states_of, batch, steps)


class RandomFeatures:
    """Random states and logits under the interface of `Features`: four pages, twelve questions."""

    key = "random"

    def __init__(self, decoder: Any, tokens: int) -> None:
        """Draw everything once."""
        rng = random.Random(0)
        vocabulary = decoder.config.vocab_size
        question = Question("0", "", ("",))
        self.examples = [
            Example(page, question, tuple(rng.choices(range(vocabulary), k=length)), 40)
            for page in range(4)
            for length in (48, 50, 52)
        ]
        self._states = torch.randn(4, tokens, decoder.config.d_model)
        self._logits = torch.randn(64, vocabulary)

    def states_of(self, pages: Tensor) -> Tensor:
        """One copy of the page's states per row, as a data loader gives."""
        return self._states[pages]

    def read(self, indices: list[int]) -> FeatureBatch:
        """As `Features.read`, with the 128 best tokens of random logits."""
        batch = collate([self.examples[index] for index in indices], 1)
        pages, rows = torch.unique(batch.pages, return_inverse=True)
        answers = int((batch.labels != -100).sum())
        logits = self._logits[torch.arange(answers) % len(self._logits)]
        return FeatureBatch(
            batch, self._states[pages], rows, TeacherRows.of(logits, 128, (1.0, 2.0))
        )


def donut_base(batch: int, steps: int) -> dict[str, float]:
    """donut-base's decoder at its true size, random weights."""
    from transformers import DonutSwinConfig, MBartConfig, MBartForCausalLM
    from transformers import DonutSwinModel as Swin

    from circuitsearch.core.shapes import known_shape

    shape = known_shape("donut-base")
    sizes = shape.decoder
    config = MBartConfig(
        vocab_size=sizes.vocabulary,
        d_model=sizes.d_model,
        decoder_layers=sizes.layers,
        decoder_attention_heads=sizes.heads,
        decoder_ffn_dim=sizes.ffn,
        max_position_embeddings=sizes.positions - 2,
        is_decoder=True,
        add_cross_attention=True,
        scale_embedding=True,
        dropout=0.0,
    )
    torch.manual_seed(0)
    decoder = MBartForCausalLM(config).eval().requires_grad_(False)
    swin = DonutSwinConfig(
        image_size=[2560, 1920],
        embed_dim=128,
        depths=[2, 2, 14, 2],
        num_heads=[4, 8, 16, 32],
        window_size=10,
    )
    pages = Swin(swin).eval()
    with torch.no_grad():
        pixels = torch.zeros(1, 3, 2560, 1920)
        encoder = timed("the encoder, per page", lambda _: pages(pixel_values=pixels), 1)
    model = SimpleNamespace(
        encoder=pages,
        decoder=decoder,
        config=SimpleNamespace(encoder=pages.config, decoder=config),
        generation_config=None,
    )
    teacher = SimpleNamespace(model=model, shape=shape)
    features = RandomFeatures(decoder, shape.encoder.tokens)
    return compare(teacher, features, features.states_of, batch, steps, encoder) | {
        "encoder": encoder
    }


def table(found: dict[str, Any]) -> str:
    """Return all shapes as Markdown."""
    lines = [
        "# A distillation step on cached features",
        "",
        f"Made by `tests/benchmarks/students/distill_step.py`, student `{PLAN}`: processor seconds "
        "of a step, median. *Plain*: encoder, teacher and student at every step, as a training "
        "script would write it, questions one by one; *cached* also deals a page's questions "
        "together, which the last column leaves out.",
        "",
        "| shape | questions a step | pages a step | cached | questions one by one | elastic, half "
        "the sub-layers | plain | plain / cached | plain / one by one |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in sorted(found.items(), reverse=True):
        times = [f"{row[key]:.3f} s" for key in ("cached", "one_by_one", "elastic", "plain")]
        lines.append(
            f"| {name} | {row['batch']} | {row['pages']:.1f} | {' | '.join(times)} | "
            f"**{row['plain'] / row['cached']:.1f}** | {row['plain'] / row['one_by_one']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line and run one comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--donut-base", action="store_true", help="true size of donut-base")
    parser.add_argument("--batch", type=int, default=None, help="examples per step (32; 4)")
    parser.add_argument("--steps", type=int, default=None, help="steps timed (30; 3)")
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    options = parser.parse_args()
    sys.stdout.write(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)\n")
    file = options.out.with_suffix(".json")
    found: dict[str, Any] = read_json(file) if file.exists() else {}
    if options.donut_base:
        found["donut-base, random weights"] = donut_base(options.batch or 4, options.steps or 3)
    else:
        found["shipped teacher"] = shipped_shape(options.batch or 32, options.steps or 30)
    write_json(file, found)
    write_text(options.out.with_suffix(".md"), table(found))


if __name__ == "__main__":
    main()
