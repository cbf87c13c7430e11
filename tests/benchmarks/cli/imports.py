"""How long `circuitsearch --help` and the records of `core` take, beside their libraries alone.

    python tests/benchmarks/cli/imports.py [--rounds 20]

Each round starts a bare interpreter, one that imports Typer and rich's console (which any such
command line needs), and the command. Prints the smallest processor seconds of each, and ratios: the
command's own share is what this package can do something about. That no help imports torch,
optuna or matplotlib is a test (`tests/cli/test_shell.py`), and so is what `core` imports.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

CORE = (
    "import importlib, pkgutil, circuitsearch.core as core\n"
    "for one in pkgutil.iter_modules(core.__path__, 'circuitsearch.core.'):\n"
    "    importlib.import_module(one.name)"
)
STARTED = {
    "interpreter": ["-c", "pass"],
    "libraries": ["-c", "import typer, rich.console"],
    "core": ["-c", CORE],
    "help": ["-c", "from circuitsearch.cli.main import main; main()", "--help"],
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    spent = {name: min(_seconds(words) for _ in range(rounds)) for name, words in STARTED.items()}
    for name, seconds in spent.items():
        print(f"{name:12} {seconds:.3f} s, {seconds / spent['libraries']:.2f} times the libraries")


def _seconds(words: list[str]) -> float:
    """Return user and system seconds of a child process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


if __name__ == "__main__":
    main()
