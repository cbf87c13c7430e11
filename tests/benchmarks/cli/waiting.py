"""What a training step costs by how long a thread that waits keeps its core.

    python tests/benchmarks/cli/waiting.py --out results/cli/waiting [--busy 2] [--rounds 3]

Each setting of GOMP_SPINCOUNT (turns of GNU OpenMP's waiting loop before a thread sleeps; `default`
leaves it to the library) trains a student of the shipped teacher in a process of its own, alone and
beside `--busy` processes that only count. Settings take turns, round by round; OUT.json and OUT.md
hold the fewest seconds per step of each, and ratios to `default` alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from circuitsearch.core.files import write_json, write_text

SETTINGS = ("default", "5000", "2000", "500")
STEP = """
import time
import torch
from circuitsearch import load_teacher
from circuitsearch.core.plan import Plan
from circuitsearch.students import build_student

teacher = load_teacher("shipped")
student = build_student(teacher, Plan.parse("S0 C0 S1 S2 C3")).decoder
shape = teacher.shape
ids = torch.randint(5, 100, (64, 24))
states = torch.randn(64, shape.encoder.tokens, shape.encoder.width)
seconds = []
for _ in range(20):
    begun = time.perf_counter()
    student(ids, encoder_hidden_states=states).logits.logsumexp(-1).mean().backward()
    student.zero_grad()
    seconds.append(time.perf_counter() - begun)
print(sorted(seconds[3:])[8])
"""


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    parser.add_argument("--busy", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    least: dict[str, dict[str, float]] = {}
    for busy in (0, options.busy):
        name = "alone" if busy == 0 else f"beside {busy}"
        for _ in range(options.rounds):
            with _counting(busy):
                for setting in SETTINGS:
                    took = _step(setting)
                    known = least.setdefault(setting, {}).get(name, took)
                    least[setting][name] = min(known, took)
    write_json(options.out.with_suffix(".json"), {"cores": os.cpu_count(), "seconds": least})
    write_text(options.out.with_suffix(".md"), _table(least))


@contextmanager
def _counting(processes: int) -> Iterator[None]:
    """Keep some processes busy."""
    words = [sys.executable, "-c", "while True: pass"]
    started = [subprocess.Popen(words) for _ in range(processes)]
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


def _step(setting: str) -> float:
    """Return the median seconds of a step."""
    given = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    given |= {} if setting == "default" else {"GOMP_SPINCOUNT": setting}
    words = [sys.executable, "-c", STEP]
    done = subprocess.run(words, env=given, check=True, capture_output=True, text=True)
    return float(done.stdout)


def _table(least: dict[str, dict[str, float]]) -> str:
    columns = list(least["default"])
    unit = least["default"]["alone"]
    lines = [
        "# How long a waiting thread keeps its core",
        "",
        "Made by `tests/benchmarks/cli/waiting.py`: seconds of a training step (64 questions, "
        "`S0 C0 S1 S2 C3` of the shipped teacher), the fewest of all rounds, and how many times "
        "the default's, alone, that is.",
        "",
        "| GOMP_SPINCOUNT | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for setting, found in least.items():
        cells = [f"{found[name]:.3f} ({found[name] / unit:.2f})" for name in columns]
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
