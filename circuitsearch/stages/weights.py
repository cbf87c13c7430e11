"""Weights that are trained once and kept: the recipe, and the file it ends in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from circuitsearch.config import SearchConfig
from circuitsearch.core.errors import DataError
from circuitsearch.core.files import write_bytes
from circuitsearch.processes import ALONE, Processes
from circuitsearch.students.training.distill import DistillRecipe
from circuitsearch.students.training.presets import PRESETS
from circuitsearch.students.training.trainer import trainable

__all__ = ["recipe_of", "train_once"]


def recipe_of(config: SearchConfig, *, steps: int, learning_rate: float) -> DistillRecipe:
    """Return the shared trainer's recipe for a number of steps."""
    shared = config.distill
    return DistillRecipe(
        steps=steps,
        batch=shared.batch,
        accumulate=shared.accumulate,
        learning_rate=learning_rate,
        warmup=shared.warmup,
        losses=tuple(shared.losses.items()) or PRESETS[shared.preset].losses,
        kd_weight=shared.kd_weight,
        hidden_map=shared.hidden_map,
        temperature=shared.temperature,
        precision=shared.precision,
    )


def train_once(
    view: Any, path: Path, train: Callable[[Path], None], processes: Processes = ALONE
) -> None:
    """Load a view's trained weights from a file, or train them and keep them there.

    The training state (moments included) lives beside the file while training runs and is removed
    afterwards: the weights alone take a third of its room.

    Args:
        view: What trains.
        path: The file.
        train: Trains the view; given where the training state belongs.
        processes: Those that train together; the main one writes, all read.

    Raises:
        DataError: If the file is damaged or holds another student's weights.
        StorageError: If the file cannot be written.
    """
    if not processes.on_main(path.exists):
        state = path.with_suffix(".state")
        train(state)
        processes.on_main(lambda: _keep(view, path, state))
        return
    named = trainable(view)
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it to train again") from error
    if set(stored) != set(named):
        raise DataError(f"{path}: weights of another student; delete it to train again")
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(stored[name])


def _keep(view: Any, path: Path, state: Path) -> None:
    """Write what a view has learned, and remove its training state."""
    weights = {name: p.detach().contiguous() for name, p in trainable(view).items()}
    write_bytes(path, save(weights))
    state.unlink(missing_ok=True)
