"""What every command shares: exit codes, output streams, quiet libraries.

Data goes to standard output, words for people to standard error. Exit codes: 0 done, 1 failure at
run time, 2 usage or configuration, 3 nothing feasible, 4 storage, 130 interrupted.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from rich.console import Console

from circuitsearch.core.errors import CircuitSearchError
from circuitsearch.processes import here

__all__ = [
    "ConfigPath",
    "Json",
    "Overrides",
    "Quiet",
    "command",
    "emit",
    "people",
    "settle_libraries",
]

P = ParamSpec("P")


def _override_keys(incomplete: str) -> list[str]:
    """Return the keys of a search file that begin so, for the shell."""
    from circuitsearch.config.template import dotted_keys

    return [f"{key}=" for key in dotted_keys() if key.startswith(incomplete)]


ConfigPath = Annotated[Path, typer.Argument(metavar="SEARCH.yaml", help="The search to run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--override",
        "-o",
        metavar="KEY=VALUE",
        help="Win over the file, e.g. seed=3.",
        autocompletion=_override_keys,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]

_go_on: list[str] = []


def people() -> Console:
    """Return the console for words to people (standard error); of several processes one talks."""
    return Console(stderr=True, highlight=False, soft_wrap=True, quiet=not here().is_main)


def emit(data: Any) -> None:
    """Print JSON on standard output."""
    sys.stdout.write(json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def on_interrupt(text: str) -> None:
    """Set the command that is printed when the user interrupts this one.

    What a scheduler sends before it takes the machine away counts as Ctrl-C: a plan is handed back.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _go_on[:] = [text]


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Turn expected errors into a message and an exit code, without a traceback."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except CircuitSearchError as error:
            people().print(f"error: {error}", style="red", markup=False)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            # a second one ends the handing back above; from here on there is nothing to cut short
            for one in (signal.SIGINT, signal.SIGTERM):
                signal.signal(one, signal.SIG_IGN)
            people().print("interrupted; finished work is kept", style="yellow", markup=False)
            if _go_on:
                people().print(f"go on with: {_go_on[0]}", markup=False)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # the reader of our output went away (e.g. `| head`): nothing is wrong
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None

    return guarded


def settle_libraries() -> None:
    """Set what libraries read from the environment when they are imported; call before that.

    What the user has set stays. Progress bars and chatter are off. A thread of GNU OpenMP that
    waits for the others sleeps soon: by default it spins for a while, and where another process
    wants the core a training step takes many times as long (`results/cli/waiting.md`).
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
