"""How much a process grows that answers with exported files.

    python growth.py ANSWERS.py FOLDER PROMPT PASSES THREADS

Opens an export with the script that it answers with, reads one blank page, writes one answer and
prints the highest resident memory meanwhile, less what was resident before, in bytes. It is run in
a process of its own without this package: what others have allocated and freed would be used again,
and would not count.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["blank_page", "passes"]

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def blank_page(student: Any) -> np.ndarray:
    """Return pixels [1, 3, H, W] of the size that an export reads."""
    image = student.manifest["image"]
    return np.zeros((1, 3, image["height"], image["width"]), dtype=np.float32)


def passes(student: Any, read: dict[str, np.ndarray], prompt: int, count: int) -> list[int]:
    """Write one answer of `count` passes behind a prompt; return the nanoseconds of each pass."""
    memory = student.begin(read, [0])
    ids = np.zeros((1, prompt), dtype=np.int64)
    position, taken = prompt, []
    for _ in range(count):
        start = time.perf_counter_ns()
        logits = student.step(memory, ids, position)
        ids = logits.argmax(axis=-1)[:, None]
        taken.append(time.perf_counter_ns() - start)
        position += 1
    return taken


def _main(answers: str, folder: str, prompt: int, count: int, threads: int) -> None:
    spec = importlib.util.spec_from_file_location("answers", answers)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{answers}: no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["answers"] = module  # its records look their module up
    spec.loader.exec_module(module)
    _RESET.write_text("5")  # the highest resident memory counts from here
    before = _resident("VmRSS")
    student = module.OnnxStudent(folder, threads)
    passes(student, student.read(blank_page(student)), prompt, count)
    print(max(0, _resident("VmHWM") - before))


def _resident(name: str) -> int:
    """Return a figure of this process's memory in bytes."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"{_STATUS} does not tell {name}")


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
