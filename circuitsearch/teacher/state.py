"""Training state on disk without pickle: parameters, AdamW moments and the step, as safetensors.

A run that resumes from such a file continues exactly as if it had not stopped: the learning rate
is a function of the step, the data a function of seed and step, and AdamW's moments are restored
bit for bit. The file is written to a temporary name and renamed, so a kill leaves the last state
whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from circuitsearch.core.errors import DataError, StorageError
from circuitsearch.core.files import open_to_umask

__all__ = ["load_state", "save_state"]

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def save_state(
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, str],
) -> None:
    """Write parameters, optimizer moments and facts (short texts such as the step).

    Args:
        path: File to write; its folder is made.
        parameters: Trainable parameters by name.
        optimizer: An Adam-family optimizer over exactly these parameters.
        facts: Stored as metadata, returned by `load_state`.

    Raises:
        StorageError: The file cannot be written; an older one is untouched.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter/{name}"] = parameter.detach().contiguous()
        for moment in _MOMENTS:
            value = optimizer.state.get(parameter, {}).get(moment)
            if value is not None:
                tensors[f"{moment}/{name}"] = torch.as_tensor(value).contiguous()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # to the file at once: bytes in memory would be a third copy of the weights
        save_file(tensors, temporary, metadata=dict(facts))
        open_to_umask(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):  # its folder may be what is wrong
            temporary.unlink(missing_ok=True)
        raise StorageError(
            f"Cannot write the training state {str(path)!r}: {error}. "
            "Check that the folder is writable and has free space."
        ) from error


def load_state(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, str]:
    """Restore what `save_state` wrote, in place.

    Returns:
        The facts.

    Raises:
        DataError: If the file is damaged or was written for other parameters.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path}: not a training state ({error}); delete it to start over"
        ) from error
    stored = {key.split("/", 1)[1] for key in tensors if key.startswith("parameter/")}
    if stored != set(parameters):
        odd = sorted(stored ^ set(parameters))
        raise DataError(
            f"{path}: the state belongs to another model (parameters that differ: "
            f"{', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''}); delete it to start over"
        )
    for name, parameter in parameters.items():
        with torch.no_grad():
            parameter.copy_(tensors[f"parameter/{name}"])
        moments = {
            m: tensors[f"{m}/{name}"].to(_place(m, parameter, optimizer), copy=True)
            for m in _MOMENTS
            if f"{m}/{name}" in tensors
        }
        if moments:
            optimizer.state[parameter] = moments
    return facts


def _place(moment: str, parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> torch.device:
    """Return where AdamW keeps a moment: counts of steps only when fused beside the parameter."""
    beside = moment != "step" or optimizer.defaults.get("fused")
    return parameter.device if beside else torch.device("cpu")
