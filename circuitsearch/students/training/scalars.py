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
    writer = SummaryWriter(str(folder))
    try:

        def write(step: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        yield write
    finally:
        writer.close()
