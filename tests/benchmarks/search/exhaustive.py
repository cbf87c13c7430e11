"""Time the exhaustive walk against the loops that one would write by hand.

    OMP_NUM_THREADS=1 python tests/benchmarks/search/exhaustive.py --out results/search/exhaustive
    OMP_NUM_THREADS=1 python tests/benchmarks/search/exhaustive.py --donut-base
        --out results/search/exhaustive

Both shapes rank all 3,840 legal plans of twelve sub-layers on the same questions:

    walk     `students.walk`, led by `search.exhaustive.sweep`: every plan, measured whole
    alone    encoder states are cached; every student is built and run through its own Hugging Face
             decoder, questions in batches as they come, padded to the longest of the batch
    sorted   the same with questions sorted by length, so that little is padding
    scratch  as `alone`, but every student also runs its encoder over the pages, each page once

Of the loops, some plans are timed, drawn at random, and all are projected: a least-squares fit of
seconds to the numbers of kept S, C and M. Rounds alternate walk and loops; the spread is that of
the ratios over rounds. The losses of the timed plans are compared, too.

The shipped shape asks rendered pages. `--donut-base` has random weights and states of the true
decoder (4 layers, d 1,024, vocabulary 57,532, 4,800 encoder tokens per page); the encoder's seconds
come from one page through the true encoder (2560 x 1920).

Times are processor seconds of this process (on one thread: what a free core would take), because
the machine may be shared. Only ratios from one run on one machine mean anything.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from circuitsearch.core.budget import Budget
from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.files import read_json, write_json
from circuitsearch.core.keep import Keep
from circuitsearch.core.plan import Plan
from circuitsearch.search.exhaustive import sweep
from circuitsearch.search.space import Space
from circuitsearch.students import build_student
from circuitsearch.students.features import prepare_features
from circuitsearch.students.walk import Walk
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.documents.collate import Example, collate
from circuitsearch.teacher.documents.records import Question

BATCH = 64


@dataclass
class Case:
    """What is ranked: a teacher, cached questions, and what the loops by hand need.

    Attributes:
        encoder: seconds that the encoder takes for all pages, or what measures them.
        memory: bytes of a chunk of the walk.
    """

    name: str
    teacher: Any
    features: Any
    encoder: Callable[[], float]
    memory: float

    def walked(self, plans: Sequence[Plan]) -> tuple[dict[Plan, float], float]:
        """Return the loss of every plan and the seconds of the walk."""
        started = time.process_time()
        walk = Walk(
            residual_decoder(self.teacher.model.decoder), self.features, memory_bytes=self.memory
        )
        sums = dict.fromkeys(plans, 0.0)
        for questions in walk.chunks(plans):
            chunk = walk.chunk(questions, plans)
            met = [plan for plan, _ in sweep(plans, chunk.root, chunk.expand, chunk.leaf)]
            for plan, value in zip(met, chunk.values().sum(dim=1).tolist(), strict=True):
                sums[plan] += value
        seconds = time.process_time() - started
        count = len(self.features.examples)
        return {plan: value / count for plan, value in sums.items()}, seconds

    def alone(self, plan: Plan, ordered: bool) -> tuple[float, float]:
        """Return loss and seconds of one student, built and run through Hugging Face."""
        started = time.process_time()
        student = build_student(self.teacher, plan).decoder
        examples = self.features.examples
        order = list(range(len(examples)))
        if ordered:
            order.sort(key=lambda index: len(examples[index].ids))
        total = 0.0
        for first in range(0, len(order), BATCH):
            batch = collate([examples[i] for i in order[first : first + BATCH]], 1)
            with torch.no_grad():
                logits = student(
                    input_ids=batch.ids,
                    encoder_hidden_states=self.features.states(batch.pages),
                    use_cache=False,
                ).logits
                losses = cross_entropy(logits.transpose(1, 2), batch.labels, reduction="none")
            total += float((losses.sum(dim=1) / (batch.labels != -100).sum(dim=1)).sum())
        return total / len(order), time.process_time() - started


def projected(plans: Sequence[Plan], timed: dict[Plan, float]) -> float:
    """Return the seconds of all plans from those of some: a fit to the kept S, C and M."""

    def counts(plan: Plan) -> list[int]:
        return [1, *(sum(s.kind is kind for s in plan.sublayers) for kind in Kind)]

    some = np.array([counts(plan) for plan in timed], dtype=float)
    fit = np.linalg.lstsq(some, np.array(list(timed.values())), rcond=None)[0]
    return float((np.array([counts(plan) for plan in plans]) @ fit).sum())


def counted(case: Case, plans: Sequence[Plan]) -> dict[str, float]:
    """Return multiply-adds of walk and `alone`, padding left out, and what bounds their ratio.

    A row is a token that a sub-layer computes; behind the last self-attention of a branch the walk
    has rows for answer tokens only.
    """
    shape, examples = case.teacher.shape.decoder, case.features.examples
    d, tokens = shape.d_model, case.teacher.shape.encoder.tokens
    long = statistics.mean(len(one.ids) - 1 for one in examples)
    answers = statistics.mean(len(one.ids) - one.prompt for one in examples)
    questions, pages = len(examples), len({one.page for one in examples})
    page = 2 * tokens * d * d  # keys and values of one cross-attention

    def macs(sublayer: SubLayer, rows: float) -> float:
        if sublayer.kind is Kind.FEED:
            return 2 * d * shape.ffn * rows
        if sublayer.kind is Kind.CROSS:
            return 2 * d * d * rows + 2 * d * tokens * rows
        return 2 * d * d * (rows + long) + 2 * d * long * rows

    walk = [shape.layers * page * pages / questions]

    def expand(
        state: int, sublayer: SubLayer, keeps: tuple[Keep, ...], attended: bool
    ) -> Callable[[Keep], int]:
        walk.append(macs(sublayer, long if attended else answers))
        return lambda keep: 0

    for _ in sweep(plans, 0, expand, abs):
        pass
    readout = len(plans) * answers * d * shape.vocabulary
    alone = len(plans) * long * d * shape.vocabulary
    for plan in plans:
        alone += sum(
            macs(one, long) + (page if one.kind is Kind.CROSS else 0) for one in plan.sublayers
        )
    return {
        "walk": questions * (sum(walk) + readout),
        "walk, readout of answer rows": questions * readout,
        "alone": questions * alone,
        "ratio": alone / (sum(walk) + readout),
        "ratio if all but the readout were free": alone / readout,
    }


def compare(case: Case, rounds: int, timed: int) -> dict[str, Any]:
    """Time everything in alternating rounds."""
    space = Space(case.teacher.shape, Budget.resolve([], case.teacher.shape))
    plans = list(space.enumerate())
    encoder = case.encoder()
    ratios: dict[str, list[float]] = {"alone": [], "sorted": [], "scratch": []}
    seconds: dict[str, list[float]] = {"walk": [], **{name: [] for name in ratios}}
    worst = 0.0
    for turn in range(rounds):
        losses, walk = case.walked(plans)
        some = random.Random(turn).sample(plans, timed)
        spent: dict[str, dict[Plan, float]] = {"alone": {}, "sorted": {}}
        for plan in some:
            for name, times in spent.items():
                loss, times[plan] = case.alone(plan, name == "sorted")
                worst = max(worst, abs(loss / losses[plan] - 1))
        whole = {name: projected(plans, times) for name, times in spent.items()}
        whole["scratch"] = whole["alone"] + len(plans) * encoder
        seconds["walk"].append(walk)
        for name, value in whole.items():
            seconds[name].append(value)
            ratios[name].append(value / walk)
        print(turn, {name: f"{values[-1]:.1f}" for name, values in ratios.items()}, flush=True)
    answers = [len(one.ids) - one.prompt for one in case.features.examples]
    return {
        "plans": len(plans),
        "questions": len(answers),
        "pages": len({one.page for one in case.features.examples}),
        "tokens per question": statistics.mean(len(one.ids) - 1 for one in case.features.examples),
        "answer tokens per question": statistics.mean(answers),
        "timed plans per round": timed,
        "encoder seconds, all pages": encoder,
        "seconds": seconds,
        "ratio to the walk": {
            name: {
                "median": statistics.median(values),
                "least": min(values),
                "most": max(values),
            }
            for name, values in ratios.items()
        },
        "largest relative difference of a loss": worst,
        "multiply-adds": counted(case, plans),
    }


def shipped(folder: Path) -> Case:
    """The packaged teacher on the pages that the quickstart chooses on."""
    from circuitsearch.teacher.documents.synthetic import rendered_pages
    from circuitsearch.teacher.loading import load_teacher

    teacher = load_teacher("shipped")
    pages = rendered_pages(80, "select-0")
    pixels = teacher.pixel_values([page.image() for page in pages])

    def encoder() -> float:
        def once() -> float:
            started = time.process_time()
            for first in range(0, len(pixels), BATCH):
                teacher.encode(pixels[first : first + BATCH])
            return time.process_time() - started

        return statistics.median(once() for _ in range(5))

    return Case("shipped", teacher, prepare_features(teacher, pages, folder), encoder, 2**26)


class RandomFeatures:
    """Random states under the interface of `Features`: pages with four questions each."""

    pad_id = 1

    def __init__(self, config: Any, pages: int, tokens: int, answers: Sequence[int]) -> None:
        rng = random.Random(0)
        self.examples = [
            Example(
                page,
                Question(f"{page}-{length}", "", ("",)),
                tuple(rng.choices(range(4, config.vocab_size), k=PROMPT + length)),
                PROMPT,
            )
            for page in range(pages)
            for length in answers
        ]
        self._states = torch.randn(pages, tokens, config.d_model)

    def states(self, pages: Any) -> Tensor:
        """Return the states of some pages."""
        return self._states[torch.as_tensor(pages)]


PROMPT = 40


def donut_base(pages: int, answers: Sequence[int]) -> Case:
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

    def encoder() -> float:
        whole = Swin(swin).eval()
        started = time.process_time()
        with torch.no_grad():
            whole(pixel_values=torch.zeros(1, 3, 2560, 1920))
        return pages * (time.process_time() - started)

    with torch.device("meta"):
        there = Swin(swin)
    model = SimpleNamespace(
        encoder=there,
        decoder=decoder,
        config=SimpleNamespace(encoder=there.config, decoder=config),
        generation_config=None,
    )
    teacher = SimpleNamespace(model=model, shape=shape)
    features = RandomFeatures(config, pages, shape.encoder.tokens, answers)
    return Case("donut-base", teacher, features, encoder, 2 * 2**30)


def main() -> None:
    """Read the command line and run one comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--donut-base", action="store_true", help="true size of donut-base")
    parser.add_argument("--rounds", type=int, default=None, help="rounds (3; 1)")
    parser.add_argument("--timed", type=int, default=None, help="plans timed per round (24; 10)")
    parser.add_argument("--pages", type=int, default=2, help="pages of donut-base")
    parser.add_argument(
        "--answers",
        type=int,
        nargs="+",
        default=[4, 5, 6, 9],
        help="answer tokens of the questions of each page of donut-base",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.donut_base:
            case = donut_base(options.pages, options.answers)
        else:
            case = shipped(Path(folder))
        large = options.donut_base
        found = compare(
            case, options.rounds or (1 if large else 3), options.timed or (10 if large else 24)
        )
    found["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }
    path = options.out.with_suffix(".json")
    stored = read_json(path) if path.exists() else {}
    stored[case.name] = found
    write_json(path, stored)
    sys.stdout.write(f"{found['ratio to the walk']}\n")


if __name__ == "__main__":
    main()
