"""Memory: the highest sum of bytes of tensors that are alive while something runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["held_bytes", "peak_bytes"]


def peak_bytes(run: Callable[[], Any], module: Any, inputs: Iterable[Tensor] = ()) -> int:
    """Return the highest sum of bytes of tensors that are alive while `run` runs.

    Args:
        run: what is observed.
        module: its weights and buffers count from the beginning.
        inputs: tensors that count from the beginning, too.
    """
    inputs = list(inputs)
    device = next(module.parameters()).device
    held = held_bytes([module], inputs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = int(torch.cuda.memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        highest = int(torch.cuda.max_memory_allocated(device))
        return held + highest - before
    known = [*module.parameters(), *module.buffers(), *inputs]
    with _LiveBytes(known) as live:
        run()
    peak: int = live.peak
    return held + peak


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the storages that operations make, as long as they are alive.

    The sum only rises behind an operation, when its results are there and its arguments still are,
    so looking then finds the peak. A weak reference keeps a storage's address from being given to
    another one.

    Attributes:
        peak: highest sum so far, in bytes.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = False
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known and storage._cdata not in self._live:
                    weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                    self._live[storage._cdata] = weak, storage.nbytes()
                    made = True
        if made:
            self._live = {
                key: (weak, size)
                for key, (weak, size) in self._live.items()
                if not weak.expired()  # type: ignore[no-untyped-call]
            }
            self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result


def held_bytes(modules: Iterable[Any], tensors: Iterable[Tensor] = ()) -> int:
    """Return the bytes of weights, buffers and tensors, each storage once."""
    every = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    storages = [tensor.untyped_storage() for tensor in (*every, *tensors)]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())
