"""Compare the presets of losses on the shipped teacher: quality after few steps, and time.

    OMP_NUM_THREADS=1 python tests/benchmarks/students/losses.py
        [--steps 80] [--seeds 1] [--plans "M0 C3"]

Every preset trains the same students on the same rendered pages in the same order; the columns are
the mean cross-entropy (nats per question's answer token) on held-out pages and processor seconds
per step, teacher's decoder included where a loss reads it. Presets without cross-entropy are judged
by a measure that they do not train on. A few steps say which mix gets off the ground, not which one
ends best; give more steps and seeds before you choose one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from circuitsearch.core.plan import Plan
from circuitsearch.students import build_student, prepare_features
from circuitsearch.students.evaluate import answer_loss_of
from circuitsearch.students.training.distill import DistillRecipe, distill
from circuitsearch.students.training.presets import PRESETS
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.documents.synthetic import rendered_pages
from circuitsearch.teacher.loading import load_teacher

PLANS = ("M0 C2 S3 C3 M3", "C1 C3")


def main() -> None:
    """Read the command line and print one line per plan and preset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pages", type=int, default=150, help="pages to train on")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--plans", nargs="+", default=list(PLANS))
    options = parser.parse_args()
    teacher = load_teacher("shipped")
    sys.stdout.write(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {options}\n")
    with tempfile.TemporaryDirectory() as folder:
        train = prepare_features(
            teacher, rendered_pages(options.pages, "losses"), Path(folder, "train")
        )
        test = prepare_features(teacher, rendered_pages(40, "losses test"), Path(folder, "test"))
        for text in options.plans:
            for name, preset in PRESETS.items():
                recipe = DistillRecipe(
                    steps=options.steps,
                    batch=options.batch,
                    learning_rate=1e-3,
                    warmup=0.05,
                    temperature=2.0,
                    losses=preset.losses,
                )
                held, taken, weights = [], [], {}
                for seed in range(options.seeds):
                    view = residual_decoder(build_student(teacher, Plan.parse(text)))
                    started = time.process_time()
                    result = distill(view, train, recipe, seed=seed, teacher=teacher.decoder)
                    taken.append((time.process_time() - started) / options.steps)
                    weights = {loss: round(weight, 3) for loss, weight in result.weights.items()}
                    held.append(float(answer_loss_of(view, test).mean()))
                sys.stdout.write(
                    f"{text:16s} {name:16s} held-out {statistics.mean(held):6.3f} nats "
                    f"{1000 * statistics.mean(taken):7.1f} ms/step  {weights}\n"
                )
                sys.stdout.flush()


if __name__ == "__main__":
    main()
