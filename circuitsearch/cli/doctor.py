"""`circuitsearch doctor`: what this installation is and whether its parts work."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from circuitsearch import __version__

from .shell import Json, command, emit

__all__ = ["doctor_command"]

_PACKAGES = ("torch", "transformers", "optuna", "networkx", "numpy", "scipy", "datasets", "psycopg")


@command
def doctor_command(json: Json = False) -> None:
    """Check the installation: versions, device, threads, disk, the shipped teacher."""
    facts = _facts()
    checks = {name: _outcome(check) for name, check in _CHECKS.items()}
    if json:
        emit({"facts": facts, "checks": checks})
    else:
        table = Table(show_header=False)
        for name, value in facts.items():
            table.add_row(name, str(value))
        for name, outcome in checks.items():
            table.add_row(name, outcome, style=None if outcome.startswith("ok") else "red")
        Console().print(table)
    if not all(outcome.startswith("ok") for outcome in checks.values()):
        raise typer.Exit(1)


def _facts() -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "circuitsearch": __version__,
        "python": platform.python_version(),
        **versions,
        "cores": os.cpu_count(),
        "free disk here, GB": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
    }


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"ok: CUDA ({torch.cuda.get_device_name()})"
    return f"ok: CPU with {torch.get_num_threads()} threads"


def _teacher() -> str:
    from circuitsearch.teacher.loading import load_teacher

    teacher = load_teacher("shipped")
    return f"ok: {sum(p.numel() for p in teacher.model.parameters()):,} parameters"


def _solver() -> str:
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    result = milp(
        c=[-3.0, -2.0],
        constraints=LinearConstraint(np.array([[1.0, 1.0]]), ub=1.0),
        integrality=[1, 1],
        bounds=Bounds(0, 1),
    )
    return "ok" if result.x is not None and round(result.x[0]) == 1 else "wrong answer"


_CHECKS: dict[str, Callable[[], str]] = {
    "device": _device,
    "shipped teacher": _teacher,
    "integer programs": _solver,
}


def _outcome(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:  # a doctor reports whatever is broken
        return f"broken: {type(error).__name__}: {error}"
