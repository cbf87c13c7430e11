"""Scalars of a training for TensorBoard, where the `tensorboard` package is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from circuitsearch.core.errors import ConfigError

__all__ = ["scalar_log"]


@contextmanager
def scalar_log(folder: Path | None) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Yield a function (step, values by name) that writes to a folder; without one, to nowhere.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    if folder is None:
        yield lambda step, values: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"distill.tensorboard: it needs the package tensorboard ({error}); install it with "
            "pip install tensorboard, or set distill.tensorboard to false"
        ) from error
    writers: list[SummaryWriter] = []

    def write(step: int, values: Mapping[str, float]) -> None:
        if not writers:
            # a resumed training says again what was said after its last saved state
            writers.append(SummaryWriter(str(folder), purge_step=step))
        for name, value in values.items():
            writers[0].add_scalar(name, value, step)

    try:
        yield write
    finally:
        for writer in writers:
            writer.close()
